"""The audit log's entries: who asked for which change, or was refused, from where, and what became of it."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

Result = Literal["done", "refused", "failed"]


@dataclass(frozen=True, kw_only=True)
class AuditEntry:
    """One request that was to change something, or several that were refused at the door.

    who: the key's user, or the name of the server's own credential. credential: the key's id, or the same.
    action: method and path of the route. about: the path of what it was about. status: the HTTP status that
    was answered; None if the entry was committed together with the change, before the answer. count: how many
    requests of this caller were refused alike; action and about are those of the last. Refused at the door,
    without a key that opens, who is "".
    """

    id: str
    at: datetime
    who: str
    credential: str
    address: str
    action: str
    about: str
    status: int | None = None
    count: int = 1

    @property
    def result(self) -> Result:
        if self.status is None or self.status < 400:
            return "done"
        return "refused" if self.status < 500 else "failed"


@dataclass(kw_only=True)
class Note:
    """The entry of the request that is being answered, until it is stored.

    stored: whether it belongs to the transaction that makes the change. If that fails, so does the request,
    and the failure gets an entry of its own.
    """

    who: str
    credential: str
    address: str
    action: str
    about: str
    stored: bool = False


pending: ContextVar[Note | None] = ContextVar("pending", default=None)
"""The note of the request that this context answers; None outside of one. A thread gets a copy of it."""
