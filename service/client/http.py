"""`Client`: every call of the REST API as a method, blocking, with the retries that are safe."""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import ValidationError

from service.client import sse
from service.client.errors import (
    ClientError,
    NotFound,
    RequestError,
    ServerUnreachable,
    UnexpectedAnswer,
    WaitTimeout,
)
from service.client.models import (
    Answer,
    Cluster,
    Job,
    JobPage,
    Point,
    Points,
    Queue,
    Upload,
    Validation,
    Waiting,
)
from service.client.patience import Patience

DEFAULT_URL = "http://127.0.0.1:8000"
_AWAY = frozenset({502, 503, 504})  # a proxy without its server, a server without its database
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_RETRY_SECONDS = 1.0
_PAGE = 100
A = TypeVar("A", bound=Answer)


class Client:
    """Talks to one service. Close it, or use it in a `with` statement; not for several threads at once.

    Every call blocks for up to `timeout` seconds without an answer, retries a lost connection for about a
    second, and raises ClientError. No retry can do a thing twice. `wait`, `follow` and `follow_logs` go
    on while the server is away, as during its restart, for up to `patience` seconds.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        api_key: str | None = None,
        timeout: float = 30.0,
        *,
        patience: float = 60.0,
    ) -> None:
        self.url = (url if "://" in url else f"http://{url}").rstrip("/")
        self.patience = patience
        try:
            address = httpx.URL(self.url)
            self._http = httpx.Client(
                base_url=address,
                headers={"Authorization": f"Bearer {api_key.strip()}"} if api_key else {},
                timeout=httpx.Timeout(timeout, connect=min(timeout, 5.0)),
                trust_env=address.host not in _LOOPBACK,  # a company's proxy cannot reach this machine
            )
        except (httpx.InvalidURL, UnicodeEncodeError) as error:
            raise ClientError(f"not an address and key to use: {self.url} ({error})") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def submit(self, spec: Mapping[str, Any] | str, idempotency_key: str | None = None) -> Job:
        """Queues a job; `spec` is a mapping, or YAML or JSON text.

        Idempotent under its key: the same key and spec again give the same job. Without one a key is
        made for this call, so that its own retries cannot run a job twice.
        """
        body, headers = _encoded(spec)
        headers["Idempotency-Key"] = idempotency_key or str(uuid.uuid4())
        return self._ask(Job, "POST", "/v1/jobs", content=body, headers=headers)

    def validate(self, spec: Mapping[str, Any] | str) -> Validation:
        """What would run, where and how big; changes nothing. Raises RequestError for a bad spec."""
        body, headers = _encoded(spec)
        return self._ask(Validation, "POST", "/v1/jobs/validate", content=body, headers=headers)

    def jobs(
        self,
        *,
        states: Iterable[str] = (),
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        limit: int | None = None,
    ) -> Iterator[Job]:
        """Jobs, newest first, up to `limit`; pages are fetched as the iteration reaches them."""
        query: list[tuple[str, Any]] = [("state", state) for state in states]
        query += [("label", f"{key}:{value}") for key, value in (labels or {}).items()]
        query += [("name", name)] if name else []
        cursor, left = None, limit
        while left is None or left > 0:
            size = _PAGE if left is None else min(left, _PAGE)
            position = [("limit", size)] + ([("cursor", cursor)] if cursor else [])
            page = self._ask(JobPage, "GET", "/v1/jobs", params=[*query, *position])
            yield from page.items
            left = None if left is None else left - len(page.items)
            cursor = page.next_cursor
            if not cursor:
                return

    def job(self, job_id: str) -> Job:
        return self._ask(Job, "GET", _path(job_id))

    def cancel(self, job_id: str) -> Job:
        """Asks the job to end. Returns at once; the job may still be stopping."""
        return self._ask(Job, "POST", f"{_path(job_id)}/cancel")

    def wait(self, job_id: str, timeout: float | None = None, poll: float = 0.5) -> Job:
        """Blocks until the job has ended, in whatever state. Raises WaitTimeout after `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not (job := self._patient_job(job_id)).ended:
            left = math.inf if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise WaitTimeout(f"job {job_id} is still {job.state} after {timeout:g} s")
            time.sleep(min(poll, left))
        return job

    def follow(self, job_id: str, poll: float = 0.5) -> Iterator[Job]:
        """Yields the job now and whenever it has changed; the last one has ended."""
        last: Job | None = None
        while last is None or not last.ended:
            if last is not None:
                time.sleep(poll)
            if (job := self._patient_job(job_id)) != last:
                last = job
                yield job

    def _patient_job(self, job_id: str) -> Job:
        return self._ask(Job, "GET", _path(job_id), patience=self.patience)

    def logs(self, job_id: str, tail: int | None = None) -> str:
        """What the job printed so far; with `tail` its last lines alone."""
        params = {} if tail is None else {"tail": tail}
        return self._send("GET", f"{_path(job_id)}/logs", params=params).text

    def follow_logs(self, job_id: str) -> Iterator[str]:
        """Yields each line that the job prints, from the first, as it comes, until the job has ended.

        A dropped connection is taken up where it broke: no line is missing and none comes twice.
        """
        last_id, patience = "", Patience(self.patience)
        while True:
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_id} if last_id else {})
            broken: ClientError = ServerUnreachable(self.url, "the stream of the log ended early")
            try:
                for event in self._events(f"{_path(job_id)}/logs", headers):
                    patience.renew()
                    last_id = event.id or last_id
                    if event.name == "end":
                        return
                    if event.name == "log":
                        yield event.data
            except ServerUnreachable as error:
                broken = error
            except RequestError as error:
                if error.status not in _AWAY:
                    raise
                broken = error
            patience.rest(broken)

    def _events(self, path: str, headers: Mapping[str, str]) -> Iterator[sse.Event]:
        try:
            with self._http.stream("GET", path, params={"follow": "true"}, headers=headers) as response:
                if not response.is_success:
                    response.read()
                self._check(response)
                yield from sse.events(response.iter_text())
        except httpx.TransportError as error:
            raise ServerUnreachable(self.url, error) from error

    def metrics(self, job_id: str, names: Iterable[str] = ()) -> list[Point]:
        """Every point of the metrics named (none named: all), by name and step."""
        params = [("name", name) for name in names]
        return self._ask(Points, "GET", f"{_path(job_id)}/metrics", params=params).items

    def upload_code(self, archive: bytes) -> str:
        """Stores a zip archive, once however often; returns the digest to put into a spec's `code`."""
        headers = {"Content-Type": "application/zip"}
        return self._ask(Upload, "POST", "/v1/code", headers=headers, content=archive).digest

    def queue(self) -> list[Waiting]:
        """The jobs that wait, in the order in which they start."""
        return self._ask(Queue, "GET", "/v1/queue").items

    def cluster(self) -> Cluster:
        """The machines and what is free on them."""
        return self._ask(Cluster, "GET", "/v1/cluster")

    def ready(self) -> bool:
        """Whether the server and all that it depends on can take jobs now. Raises ServerUnreachable."""
        try:
            self._send("GET", "/readyz", patience=0)
        except RequestError:
            return False
        return True

    def _ask(self, model: type[A], method: str, path: str, **request: Any) -> A:
        response = self._send(method, path, **request)
        try:
            return model.model_validate_json(response.content)
        except ValidationError as error:
            raise UnexpectedAnswer(self.url, f"{method} {path} gave {_first(error)}") from None

    def _send(
        self, method: str, path: str, *, patience: float = _RETRY_SECONDS, **request: Any
    ) -> httpx.Response:
        trying, may_have_arrived = Patience(patience), False
        while True:
            try:
                return self._check(self._http.request(method, path, **request))
            except (httpx.TransportError, httpx.DecodingError) as error:
                may_have_arrived |= not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
                cause = str(error) or type(error).__name__
                trying.rest(ServerUnreachable(self.url, cause, may_have_arrived=may_have_arrived))
            except RequestError as error:
                if error.status not in _AWAY:
                    raise
                trying.rest(error)

    def _check(self, response: httpx.Response) -> httpx.Response:
        if response.is_success:
            return response
        document = _problem_document(response)
        if document is None and response.status_code not in _AWAY:
            raise UnexpectedAnswer(self.url, f"{response.request.method} gave HTTP {response.status_code}")
        kind = NotFound if response.status_code == httpx.codes.NOT_FOUND else RequestError
        raise kind(response.status_code, document or {"title": response.reason_phrase})


def _encoded(spec: Mapping[str, Any] | str) -> tuple[bytes, dict[str, str]]:
    if isinstance(spec, str):
        return spec.encode(), {"Content-Type": "application/yaml"}
    # Not ASCII alone: the server reads JSON as YAML, which does not join two escaped surrogates.
    text = json.dumps(dict(spec), allow_nan=False, ensure_ascii=False)
    return text.encode(), {"Content-Type": "application/json"}


def _path(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"


def _problem_document(response: httpx.Response) -> dict[str, Any] | None:
    try:
        document = response.json()
    except ValueError:
        return None
    return document if isinstance(document, dict) and "title" in document else None


def _first(error: ValidationError) -> str:
    item = error.errors(include_url=False, include_context=False)[0]
    return f"{'.'.join(map(str, item['loc'])) or 'a body'}: {item['msg']}"
