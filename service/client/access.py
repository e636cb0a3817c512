"""API keys and the audit log: the calls of the REST API about them, which are a part of `Client`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import quote

from service.client.models import Answer
from service.client.pages import all_items
from service.client.retry import Retry
from service.client.transport import Transport


class ApiKey(Answer):
    """An API key, without its secret.

    scope: "read", "submit" or "admin". created_by: who made it. expires_at, last_used_at, revoked_at: UTC;
    None: never.
    """

    id: str
    user: str
    scope: str
    created_at: datetime
    created_by: str
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    revoked_at: datetime | None = None

    @property
    def ended(self) -> bool:
        """Whether it opens nothing any more."""
        expired = self.expires_at is not None and self.expires_at <= datetime.now(UTC)
        return expired or self.revoked_at is not None


class NewApiKey(ApiKey):
    """A new API key, with its text, which nothing shows again."""

    key: str


class ApiKeyPage(Answer):
    """All keys."""

    items: list[ApiKey]


class AuditEntry(Answer):
    """One request that was to change something, or several that were refused without being read.

    who: the user of its key; "" without one that opens. credential: the id of the key. address: where it came
    from. action: method and path of the route. about: the path of what it was about. result: "done",
    "refused" or "failed". status: the HTTP status of the answer; None: the change was committed with this
    entry, before the answer. count: how many requests were refused alike; the path is that of the last.
    """

    id: str
    at: datetime
    who: str
    credential: str
    address: str
    action: str
    about: str
    result: str
    status: int | None = None
    count: int = 1


class AuditPage(Answer):
    """One page of the audit log."""

    items: list[AuditEntry]
    next_cursor: str | None = None


class AccessCalls:
    """Who may do what, and who did. All of it needs a key with the scope admin."""

    _server: Transport

    def api_keys(self) -> list[ApiKey]:
        """Returns all keys, newest first, also those that have ended."""
        return self._server.call(ApiKeyPage, "GET", "/v1/keys").items

    def create_key(
        self, user: str, scope: Literal["read", "submit", "admin"], *, expires_at: datetime | None = None
    ) -> NewApiKey:
        """Makes a key and returns it with its text. Not idempotent, and therefore not retried.

        user: whose name is on its jobs. expires_at: when it ends; a time without a zone is local; None:
        never. Raises RequestError for a name or a time that cannot be used.
        """
        end = expires_at.astimezone(UTC).isoformat() if expires_at else None
        body = {"user": user, "scope": scope, "expires_at": end}
        return self._server.call(NewApiKey, "POST", "/v1/keys", json=body, retry=Retry(0))

    def revoke_key(self, key_id: str) -> ApiKey:
        """Ends a key at once. Idempotent. Raises NotFound if there is no key with this id."""
        return self._server.call(ApiKey, "POST", f"/v1/keys/{quote(key_id, safe='')}/revoke")

    def audit(
        self,
        *,
        user: str | None = None,
        about: str | None = None,
        since: datetime | None = None,
        limit: int | None = None,
    ) -> Iterator[AuditEntry]:
        """Yields the requests that were to change something, newest first, at most `limit` (None: all).

        user: only of this user. about: only about this id, or paths with this text. since: only of then and
        later; a time without a zone is local.
        """
        moment = since.astimezone(UTC).isoformat() if since else None
        once = {"user": user, "about": about, "since": moment}
        query: list[tuple[str, Any]] = [(key, value) for key, value in once.items() if value]
        yield from all_items(
            lambda position: self._server.call(AuditPage, "GET", "/v1/audit", params=[*query, *position]),
            limit,
        )
