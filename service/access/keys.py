"""API keys: made, recognised, checked. What is stored of a key does not give it away.

A key is `syncbn_ID_SECRET`. The id is public: it finds the key's row, and stands in lists and in the audit
log. Of the secret only the SHA-256 is stored. A slow hash protects what people choose, which can be guessed;
the secret is 256 random bits, which no number of fast guesses finds.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import datetime

from service.access.caller import Caller, Scope

USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}", re.ASCII)
"""The names that users may have."""

_KEY = re.compile(r"syncbn_([0-9a-z]{12})_([A-Za-z0-9_-]{43})", re.ASCII)
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """A key as it is stored. digest: SHA-256 of its secret."""

    id: str
    digest: bytes
    user: str
    scope: Scope
    created_at: datetime
    created_by: str
    expires_at: datetime | None = None
    """None: never."""
    last_used_at: datetime | None = None
    """To the minute; None if it was never used."""
    revoked_at: datetime | None = None

    def problem(self, now: datetime) -> str | None:
        """Returns why the key opens nothing any more; None if it does."""
        if self.revoked_at is not None:
            return f"the key {self.id} was revoked"
        if self.expires_at is not None and self.expires_at <= now:
            return f"the key {self.id} has expired: ask for a new one"
        return None

    @property
    def caller(self) -> Caller:
        return Caller(user=self.user, scope=self.scope, credential=self.id)


def new_key(
    user: str, scope: Scope, *, created_by: str, now: datetime, expires_at: datetime | None = None
) -> tuple[ApiKey, str]:
    """Returns a new key, and its text, which is known to nobody else and to be shown once."""
    key_id = "".join(secrets.choice(_ALPHABET) for _ in range(12))
    secret = secrets.token_urlsafe(32)
    key = ApiKey(
        id=key_id,
        digest=_digest(secret),
        user=user,
        scope=scope,
        created_at=now,
        created_by=created_by,
        expires_at=expires_at,
    )
    return key, f"syncbn_{key_id}_{secret}"


def id_in(text: str) -> str | None:
    """Returns the id in the text of a key; None if it is not the text of one."""
    match = _KEY.fullmatch(text)
    return match[1] if match else None


def opens(key: ApiKey, text: str) -> bool:
    """Returns whether the text is that of this key. Compares in constant time."""
    match = _KEY.fullmatch(text)
    return match is not None and hmac.compare_digest(_digest(match[2]), key.digest)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
