"""The exceptions that the client raises, in one tree.

ClientError
├── ServerUnreachable   no server answers at the address
├── UnexpectedAnswer    a server answers, but it is not this service
├── WaitTimeout         the job did not end within the timeout (also a TimeoutError)
└── RequestError        the service returned an error: status, title, detail, errors
    └── NotFound        no such job, or no such checkpoint of it
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from service.client.models import KeyProblem


class ClientError(Exception):
    """A call to the service failed. Base class of everything that the client raises."""


class ServerUnreachable(ClientError):
    """No server answers at the address.

    `may_have_arrived`: whether the server may have received and carried out the request, because the
    connection was lost after it was opened.
    """

    def __init__(self, url: str, cause: object, *, may_have_arrived: bool = False) -> None:
        super().__init__(
            f"no syncbn server answers at {url} ({cause}). "
            "Is it the right address (SYNCBN_URL, or --url)? `syncbn up` starts a server on this machine"
        )
        self.url = url
        self.may_have_arrived = may_have_arrived


class UnexpectedAnswer(ClientError):
    """The server's answer is not one that this service gives."""

    def __init__(self, url: str, what: str) -> None:
        super().__init__(f"{url} does not answer as a syncbn server does: {what}. Is it the right address?")
        self.url = url


class WaitTimeout(ClientError, TimeoutError):
    """The job did not end within the timeout of `Client.wait`."""


class RequestError(ClientError):
    """The service refused the request (HTTP status 4xx) or failed to carry it out (5xx).

    `errors` names each offending key; `document` is the whole problem document (RFC 9457). `retry_after`: the
    seconds after which the server wants to see it again; None if it does not say.
    """

    def __init__(self, status: int, document: Mapping[str, Any], *, retry_after: float | None = None) -> None:
        self.status = status
        self.retry_after = retry_after
        self.document = dict(document)
        self.title = str(document.get("title") or f"HTTP {status}")
        self.detail = str(document.get("detail") or self.title)
        self.errors = _key_problems(document.get("errors"))
        complete = all(error.message in self.detail for error in self.errors)
        super().__init__(self.detail if complete else "; ".join([self.detail, *map(str, self.errors)]))


class NotFound(RequestError):
    """The service has no job with this id, or the job has no such attempt, rank or checkpoint."""


def _key_problems(items: object) -> list[KeyProblem]:
    if not isinstance(items, Iterable):
        return []
    return [KeyProblem.model_validate(item) for item in items if isinstance(item, Mapping)]
