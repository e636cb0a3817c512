"""Who sends a request: by its key, by the token of this machine, or by a browser's session."""

from __future__ import annotations

import base64
import binascii
import hmac
import logging

import anyio.to_thread
from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.types import Scope

from service.access import keys, sessions
from service.access.caller import LOCAL_TOKEN, SERVER_KEY, Caller
from service.access.keys import ApiKey
from service.access.known import Known
from service.access.rules import SAFE_METHODS
from service.access.sessions import Session
from service.api.context import Context
from service.api.raw_headers import header_of
from service.errors import Unavailable
from service.jobs.job import utc_now
from service.queue.store import Store

FOR_BROWSERS = frozenset({"/docs", "/openapi.json"})
_log = logging.getLogger(__name__)


class Denied(Exception):
    """The request has nothing that opens anything; the message says what to do."""


class Forged(Exception):
    """A page from elsewhere may have made the browser send the request; the message says what is missing."""


class Credentials:
    """Knows the credentials of one API process. Not thread-safe: for one event loop."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._keys, self._sessions = Known[ApiKey](), Known[Session]()

    async def caller(self, scope: Scope) -> Caller:
        """Returns who sends the request. Raises Denied, Forged and Unavailable."""
        given = _given(header_of(scope, b"authorization") or "", scope)
        if not given and (value := cookie_of(headers := Headers(scope=scope))):
            return await self._caller_by_session(value, scope, headers)
        return await self.caller_by_text(given)

    async def caller_by_text(self, text: str) -> Caller:
        """Returns whose key or token it is. Raises Denied and Unavailable."""
        settings, token = self._context.settings, self._context.local_token
        if settings.api_key is not None and _equal(text, settings.api_key.get_secret_value()):
            return SERVER_KEY
        if token is not None and _equal(text, token):
            return LOCAL_TOKEN
        if keys.id_in(text) is None:
            raise Denied(self._why_not(text))
        if (key := self._keys.find(text)) is None:
            otherwise = self._why_not(text)
            key = await anyio.to_thread.run_sync(_stored_key, text, self._context.store, otherwise)
            self._keys.add(text, key)
        if why := key.problem(utc_now()):
            raise Denied(why)
        return key.caller

    async def _caller_by_session(self, value: str, scope: Scope, headers: Headers) -> Caller:
        if (session := self._sessions.find(value)) is None:
            digest = sessions.digest(value)
            found = await anyio.to_thread.run_sync(self._context.store.find_session, digest)
            if found is None:
                raise Denied(f"this browser is not signed in any more; {self.how_to_authenticate()}")
            session = found
            self._sessions.add(value, session)
        if why := session.problem(utc_now()):
            raise Denied(why)
        caller = session.key.caller if session.key else self._server_caller(session)
        given = headers.get(sessions.FORGERY_HEADER, "")
        if scope["method"] not in SAFE_METHODS and sessions.is_forged(value, given):
            raise Forged(f"a request of a browser's session needs the header {sessions.FORGERY_HEADER}")
        return caller

    def _server_caller(self, session: Session) -> Caller:
        key = self._context.settings.api_key
        if key is None and session.credential == _LOCAL:
            return LOCAL_TOKEN
        if key is not None and session.credential == sessions.server_fingerprint(key.get_secret_value()):
            return SERVER_KEY
        raise Denied(f"this session was made with another key; {self.how_to_authenticate()}")

    async def sign_in(self, text: str) -> tuple[Caller, str]:
        """Makes a session for whom the key or token belongs to. Returns the caller and the cookie's value.

        Raises Denied and Unavailable.
        """
        caller = await self.caller_by_text(text)
        # A token of this machine is another one after each start; a session goes on.
        credential = _LOCAL if caller is LOCAL_TOKEN else sessions.fingerprint(caller, text)
        session, value = sessions.new_session(credential, utc_now())
        await anyio.to_thread.run_sync(self._context.store.add_session, session)
        return caller, value

    async def sign_out(self, value: str) -> None:
        """Ends the session of this cookie. Raises Unavailable."""
        await anyio.to_thread.run_sync(self._context.store.end_session, sessions.digest(value))
        self._sessions.clear()

    def forget(self) -> None:
        """Looks up everything again: a key was revoked."""
        self._keys.clear()
        self._sessions.clear()

    def _why_not(self, text: str) -> str:
        """Returns why a text opens nothing, the same for every one: it does not say which keys there are."""
        if not text:
            return self.how_to_authenticate()
        why = (
            "the key or token that was sent opens nothing here: it is unknown, was revoked or has expired; "
            "whoever administers this service makes a key with `syncbn keys create`"
        )
        if self._context.local_token is None:
            return f"{why}, for SYNCBN_API_KEY or --api-key"
        return f"{why}; without a key, who started it has the token in {self._context.token_file}"

    def how_to_authenticate(self) -> str:
        """Returns what to do, for a refusal."""
        if self._context.local_token is None:
            return (
                "this service requires an API key: Authorization: Bearer KEY; for syncbn: SYNCBN_API_KEY or "
                "--api-key"
            )
        file = self._context.token_file
        return (
            "this service has no SYNCBN_API_KEY, so it answers who started it: syncbn and its Python client "
            f"read the token in {file} by themselves, others send it: "
            f'curl -H "Authorization: Bearer $(cat {file})"'
        )


_LOCAL = "token of this machine"


def cookie_of(headers: Headers) -> str:
    """Returns the value of the session's cookie; "" if there is none."""
    name = sessions.cookie_name(headers.get("host", ""))
    return cookie_parser(headers.get("cookie", "")).get(name, "")


def key_id_of(scope: Scope) -> str:
    """Returns the id of the key that a request gives, whether or not there is one; "" if it gives none."""
    return keys.id_in(_given(Headers(scope=scope).get("authorization", ""), scope)) or ""


def _stored_key(text: str, store: Store, otherwise: str) -> ApiKey:
    """Returns the key with this text. Raises Denied if there is none, and Unavailable."""
    key = store.find_key(keys.id_in(text) or "")
    if key is None or not keys.opens(key, text):
        raise Denied(otherwise)
    now = utc_now()
    if key.problem(now) is None:
        try:
            store.note_use(key, now)
        except Unavailable as error:
            _log.warning("the use of key %s is not written down: %s", key.id, error)
    return key


def _given(header: str, scope: Scope) -> str:
    """Returns the key in the header; "" if there is none.

    From a browser it comes as a password, where a page is to be read: it sends that by itself, also for a
    foreign page, so nothing else accepts it.
    """
    scheme, _, given = header.partition(" ")
    if scheme.lower() == "bearer":
        return given.strip()
    if scheme.lower() == "basic" and scope["path"] in FOR_BROWSERS:
        try:
            return base64.b64decode(given, validate=True).decode("latin-1").partition(":")[2]
        except binascii.Error:
            return ""
    return ""


def _equal(given: str, key: str) -> bool:
    # Starlette decodes header bytes as Latin-1, whatever their encoding.
    return hmac.compare_digest(given.encode("latin-1", "replace"), key.encode())
