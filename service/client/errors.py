"""What a call to the service can raise, one tree.

ClientError
├── ServerUnreachable   nobody answers at the address
├── UnexpectedAnswer    somebody answers, but not as this service does
├── WaitTimeout         the job did not end in the time given (a TimeoutError too)
└── RequestError        the service said no: status, title, detail, errors
    └── NotFound        no such job
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from service.client.models import KeyProblem


class ClientError(Exception):
    """Something went wrong between this program and the service."""


class ServerUnreachable(ClientError):
    """No server answers at the address.

    `may_have_arrived`: the request was sent and only its answer is missing.
    """

    def __init__(self, url: str, cause: object, *, may_have_arrived: bool = False) -> None:
        super().__init__(
            f"no syncbn server answers at {url} ({cause}). "
            "Is it the right address (SYNCBN_URL, or --url)? `syncbn up` starts a server on this machine"
        )
        self.url = url
        self.may_have_arrived = may_have_arrived


class UnexpectedAnswer(ClientError):
    """The server's answer is not one of this service."""

    def __init__(self, url: str, what: str) -> None:
        super().__init__(f"{url} does not answer as a syncbn server does: {what}. Is it the right address?")
        self.url = url


class WaitTimeout(ClientError, TimeoutError):
    """The job did not end in time."""


class RequestError(ClientError):
    """The service refused the request, or failed at it.

    `errors` names each offending key; `document` is the whole problem document (RFC 9457).
    """

    def __init__(self, status: int, document: Mapping[str, Any]) -> None:
        self.status = status
        self.document = dict(document)
        self.title = str(document.get("title") or f"HTTP {status}")
        self.detail = str(document.get("detail") or self.title)
        self.errors = _key_problems(document.get("errors"))
        said = all(error.message in self.detail for error in self.errors)
        super().__init__(self.detail if said else "; ".join([self.detail, *map(str, self.errors)]))


class NotFound(RequestError):
    """The service knows no such job."""


def _key_problems(items: object) -> list[KeyProblem]:
    if not isinstance(items, Iterable):
        return []
    return [KeyProblem.model_validate(item) for item in items if isinstance(item, Mapping)]
