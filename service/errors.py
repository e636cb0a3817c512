"""The exceptions of the service, one tree.

ServiceError
├── Unavailable       a server we depend on (Ray, MLflow, the database) does not answer
├── NotFound          there is no such job, sweep, archive, secret, key, webhook or checkpoint
├── Forbidden         the job or sweep is of another user
├── Conflict          the state of the job or sweep does not allow the command
├── KeyReused         an Idempotency-Key was sent again with a different body
└── Refused           the request is invalid: a spec, an archive, a secret, a cursor
"""

from __future__ import annotations

from collections.abc import Iterable

from training.spec import Problem


class ServiceError(Exception):
    """Something went wrong in the service."""


class Unavailable(ServiceError):
    """A server that this one depends on does not answer.

    name: the server as users know it: "Ray", "MLflow", "the database". detail: why it does not answer.
    """

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(f"{name} is not reachable: {detail}")
        self.name, self.detail = name, detail


class NotFound(ServiceError):
    """The job, sweep, archive, secret or checkpoint does not exist."""


class Forbidden(ServiceError):
    """The job or sweep is of another user, and the caller may not change it."""


class Conflict(ServiceError):
    """The state of the job or sweep does not allow the command."""


class KeyReused(ServiceError):
    """The Idempotency-Key was used before with a different body."""


class Refused(ServiceError):
    """The request is invalid; `problems` names each offending key."""

    def __init__(self, detail: str, problems: Iterable[Problem] = ()) -> None:
        super().__init__(detail)
        self.problems = list(problems)
