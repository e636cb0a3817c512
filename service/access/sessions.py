"""Sessions of browsers: a cookie in place of a key. A session ends with the key that it was made with.

The cookie's value is 256 random bits, of which only the SHA-256 is stored. Requests that change anything must
also carry a token that a page of this site can read and that a foreign site cannot (against forgery).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

from service.access.caller import Caller
from service.access.keys import ApiKey

LASTS = timedelta(hours=12)
FORGERY_HEADER = "X-CSRF-Token"
_OF_KEY = "key:"


@dataclass(frozen=True, kw_only=True)
class Session:
    """A session as it is stored.

    digest: SHA-256 of the cookie's value. credential: the fingerprint of what it was made with. key: the API
    key that it was made with; None if it was one of the server's own.
    """

    digest: bytes
    credential: str
    created_at: datetime
    expires_at: datetime
    key: ApiKey | None = None

    def problem(self, now: datetime) -> str | None:
        """Returns why the session opens nothing any more; None if it does."""
        if self.expires_at <= now:
            return "the session has ended: sign in again"
        return self.key.problem(now) if self.key else None


def new_session(credential: str, now: datetime) -> tuple[Session, str]:
    """Returns a new session, and the value of its cookie, which is known to nobody else."""
    value = secrets.token_urlsafe(32)
    session = Session(digest=digest(value), credential=credential, created_at=now, expires_at=now + LASTS)
    return session, value


def digest(value: str) -> bytes:
    """Returns what is stored of a cookie's value."""
    return hashlib.sha256(value.encode("latin-1", "replace")).digest()


def forgery_token(value: str) -> str:
    """Returns what a request with this cookie must carry in FORGERY_HEADER if it changes anything."""
    return hmac.new(value.encode("latin-1", "replace"), b"not from elsewhere", hashlib.sha256).hexdigest()


def is_forged(value: str, given: str) -> bool:
    """Returns whether a request lacks the right token. Compares in constant time."""
    return not hmac.compare_digest(forgery_token(value).encode(), given.encode("latin-1", "replace"))


def fingerprint(caller: Caller, text: str) -> str:
    """Returns what names a caller's credential in a session: the key's id, or a digest of the server's own.

    So a session of the server's own key ends when the key is another one. text: of the key or token.
    """
    if caller.user is not None:
        return f"{_OF_KEY}{caller.credential}"
    return server_fingerprint(text)


def server_fingerprint(text: str) -> str:
    """Returns the fingerprint of a key of the server's settings."""
    return f"server:{hashlib.sha256(b'session of ' + text.encode('latin-1', 'replace')).hexdigest()[:32]}"


def key_id(credential: str) -> str | None:
    """Returns the id of the API key in a fingerprint; None if it is of the server's own."""
    return credential.removeprefix(_OF_KEY) if credential.startswith(_OF_KEY) else None


def cookie_name(host: str) -> str:
    """Returns the name of the cookie for a Host header.

    It contains the port: browsers send a cookie of 127.0.0.1 to all ports of it, and two services on one
    machine would sign each other out.
    """
    _, _, port = host.rpartition(":")
    return f"syncbn_{port}" if port.isdigit() else "syncbn"
