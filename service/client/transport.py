"""HTTP requests to one server: address, API key, retries, problem documents, event streams."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from pydantic import ValidationError

from service.client import sse
from service.client.errors import ClientError, NotFound, RequestError, ServerUnreachable, UnexpectedAnswer
from service.client.local_token import LocalToken
from service.client.models import Answer
from service.client.retry import Retry

RETRIED_STATUSES = frozenset({429, 502, 503, 504})
"""Statuses to retry: too many requests, a proxy cannot reach the server, or the server its database."""

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_RETRY_SECONDS = 1.0
A = TypeVar("A", bound=Answer)
Result = TypeVar("Result")


class Transport:
    """Sends requests to one server. Retries after a lost connection, so every request must be idempotent."""

    def __init__(
        self,
        url: str,
        api_key: str | None,
        timeout: float,
        user: str = "",
        retry_seconds: float = _RETRY_SECONDS,
    ) -> None:
        self._retry_seconds = min(retry_seconds, _RETRY_SECONDS)
        self.url = (url if "://" in url else f"http://{url}").rstrip("/")
        try:
            address = httpx.URL(self.url)
            self._http = httpx.Client(
                base_url=address,
                headers=_headers(api_key, user),
                auth=None if api_key or address.host not in _LOOPBACK else LocalToken(address.port or 80),
                timeout=httpx.Timeout(timeout, connect=min(timeout, 5.0)),
                trust_env=address.host not in _LOOPBACK,  # a company's proxy cannot reach this machine
                # Loading the certificates takes longer than a request. Proxies may need them.
                verify=address.scheme == "https" or address.host not in _LOOPBACK,
            )
        except (httpx.InvalidURL, UnicodeEncodeError) as error:
            raise ClientError(f"the address or API key is not valid: {self.url} ({error})") from None

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def call(self, model: type[A], method: str, path: str, **request: Any) -> A:
        """Sends a request and returns the answer parsed as `model`. Raises ClientError."""
        response = self.send(method, path, **request)
        try:
            return model.model_validate_json(response.content)
        except ValidationError as error:
            raise UnexpectedAnswer(self.url, f"{method} {path} gave {_first_problem(error)}") from None

    def send(self, method: str, path: str, *, retry: Retry | None = None, **request: Any) -> httpx.Response:
        """Sends a request and returns the answer if its status is 2xx; raises ClientError otherwise.

        Blocks. Retries lost connections and `RETRIED_STATUSES` until `retry` is exhausted (default: 1 s,
        or `retry_seconds` of the constructor if that is less).
        """
        retry, may_have_arrived = retry or Retry(self._retry_seconds), False
        while True:
            try:
                return self._checked(self._http.request(method, path, **request))
            except (httpx.TransportError, httpx.DecodingError) as error:
                may_have_arrived |= not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
                retry.back_off(ServerUnreachable(self.url, _cause(error), may_have_arrived=may_have_arrived))
            except RequestError as error:
                if error.status not in RETRIED_STATUSES:
                    raise
                retry.back_off(error)
            except ValueError as error:  # of the json module, for NaN and infinity
                raise ClientError(f"the request cannot be sent: {error}") from None

    def read(
        self, path: str, write: Callable[[Iterator[bytes], httpx.Headers], Result], retry: Retry
    ) -> Result:
        """Gives an answer's body in chunks, and its headers, to `write`, and returns what it returns.

        After a lost connection, which may be in the middle of the body, begins again. Raises ClientError.
        """
        while True:
            try:
                with self._http.stream("GET", path) as response:
                    if not response.is_success:
                        response.read()
                    self._checked(response)
                    return write(response.iter_bytes(), response.headers)
            except (httpx.TransportError, httpx.DecodingError) as error:
                retry.back_off(ServerUnreachable(self.url, _cause(error)))
            except RequestError as error:
                if error.status not in RETRIED_STATUSES:
                    raise
                retry.back_off(error)

    def events(
        self, path: str, headers: Mapping[str, str], *, deadline: float = math.inf
    ) -> Iterator[sse.Event]:
        """Yields `sse.OPEN`, then server-sent events until the stream ends.

        Raises ServerUnreachable if it breaks. deadline: by the monotonic clock; the stream is taken to have
        ended then.
        """
        accept = {"Accept": "text/event-stream", **headers}
        timeout = self._http.timeout
        if (left := deadline - time.monotonic()) < (timeout.read or math.inf):
            timeout = httpx.Timeout(**{**timeout.as_dict(), "read": max(left, 0.001)})
        try:
            with self._http.stream("GET", path, headers=accept, timeout=timeout) as response:
                if not response.is_success:
                    response.read()
                chunks = self._checked(response).iter_text()
                yield sse.OPEN
                yield from sse.events(_until(deadline, chunks))
        except (httpx.TransportError, httpx.DecodingError) as error:
            if time.monotonic() < deadline:
                raise ServerUnreachable(self.url, _cause(error)) from error

    def _checked(self, response: httpx.Response) -> httpx.Response:
        if response.is_success:
            return response
        document = _problem_document(response)
        if document is None and response.status_code not in RETRIED_STATUSES:
            raise UnexpectedAnswer(self.url, f"{response.request.method} gave HTTP {response.status_code}")
        kind = NotFound if response.status_code == httpx.codes.NOT_FOUND else RequestError
        after = response.headers.get("Retry-After", "")
        raise kind(
            response.status_code,
            document or {"title": response.reason_phrase},
            retry_after=float(after) if after.isdecimal() else None,
        )


def _headers(api_key: str | None, user: str) -> dict[str, str]:
    key = {"Authorization": f"Bearer {api_key.strip()}"} if api_key else {}
    return {**key, "Syncbn-User": quote(user)} if user else key


def _until(deadline: float, chunks: Iterator[str]) -> Iterator[str]:
    """Yields the chunks, heartbeats among them, until the deadline."""
    for chunk in chunks:
        yield chunk
        if time.monotonic() >= deadline:
            return


def _cause(error: httpx.RequestError) -> str:
    return str(error) or type(error).__name__


def _problem_document(response: httpx.Response) -> dict[str, Any] | None:
    try:
        document = response.json()
    except ValueError:
        return None
    return document if isinstance(document, dict) and "title" in document else None


def _first_problem(error: ValidationError) -> str:
    item = error.errors(include_url=False, include_context=False)[0]
    return f"{'.'.join(map(str, item['loc'])) or 'a body'}: {item['msg']}"
