"""Documents of API keys and of the audit log."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, field_validator

from service.access.audit import Result
from service.access.caller import Scope
from service.access.keys import USER
from service.api.schemas import Document
from service.jobs.job import NO_USERS

UserName = Annotated[str, StringConstraints(pattern=f"^{USER.pattern}$")]


class KeyRequest(BaseModel):
    """The body of a request for a new key."""

    model_config = ConfigDict(extra="forbid")

    user: UserName = Field(description="Whose name is on its jobs", examples=["ada"])
    scope: Scope = Field(description="read < submit < admin")
    expires_at: AwareDatetime | None = Field(
        default=None, description="When it ends: ISO 8601 with a time zone; null: never"
    )

    @field_validator("user")
    @classmethod
    def _is_nobody_else(cls, user: str) -> str:
        if user in NO_USERS:
            raise ValueError(f"{user} is what `ended_by` says where no user ended a job: choose another name")
        return user


class KeyDocument(Document):
    """An API key, without its secret."""

    id: str = Field(examples=["4w1m0x2k9q7z"])
    user: str
    scope: Scope
    created_at: datetime
    created_by: str = Field(description="The user, or the server's own credential, that made it")
    expires_at: datetime | None
    last_used_at: datetime | None = Field(description="To the minute; null: never")
    revoked_at: datetime | None


class NewKeyDocument(KeyDocument):
    """A new API key, with its text."""

    key: str = Field(description="The key itself. It is shown only here")


class KeyPage(Document):
    """All keys, newest first."""

    items: list[KeyDocument]


class AuditEntryDocument(Document):
    """One request that was to change something, or several that were refused without being read."""

    id: str
    at: datetime
    who: str = Field(description="The key's user, or the server's own credential; empty: no key that opens")
    credential: str = Field(description="The key's id, or the server's own credential; empty: none was given")
    address: str = Field(description="Where it came from; `several`: callers that were not told apart")
    action: str = Field(examples=["POST /v1/jobs/{job_id}/cancel"])
    about: str = Field(description="What it was about", examples=["/v1/jobs/j1k0w1qk530wdg8e15q54/cancel"])
    result: Result
    status: int | None = Field(description="As answered; null: committed together with the change")
    count: int = Field(description="Requests that were refused alike; the entry has the path of the last")


class AuditPage(Document):
    """One page of the audit log, newest first."""

    items: list[AuditEntryDocument]
    next_cursor: str | None = Field(description="Give it as `cursor` to get the next page; null: the last")
