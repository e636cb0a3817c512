"""What can go wrong in the service, one tree.

ServiceError
├── Unavailable       a server we depend on (Ray, MLflow, the database) does not answer
├── NotFound          no job, no archive of that name
├── Conflict          the job's state does not allow it
├── KeyReused         an Idempotency-Key came back with another body
└── Refused           the request itself is wrong: a spec, an archive, a cursor
"""

from __future__ import annotations

from collections.abc import Iterable

from training.spec import Problem


class ServiceError(Exception):
    """Something went wrong in the service."""


class Unavailable(ServiceError):
    """A server that this one depends on does not answer.

    `name` is what people call it: "Ray", "MLflow", "the database".
    """

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(f"{name} is not reachable: {detail}")
        self.name = name


class NotFound(ServiceError):
    """There is no such thing."""


class Conflict(ServiceError):
    """The job's state does not allow it."""


class KeyReused(ServiceError):
    """The Idempotency-Key was used before with another body."""


class Refused(ServiceError):
    """The request is wrong; `problems` name each offending key."""

    def __init__(self, detail: str, problems: Iterable[Problem] = ()) -> None:
        super().__init__(detail)
        self.problems = list(problems)
