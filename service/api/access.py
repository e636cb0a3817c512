"""Access control (ASGI middleware): who asks, whether the route allows it, how often; the audit log's entry.

All of it is decided before a byte of the body is read.
"""

from __future__ import annotations

import logging
from typing import Annotated, Any
from urllib.parse import quote

import anyio.to_thread
from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.access import audit
from service.access.caller import Caller
from service.access.caller import Scope as AccessScope
from service.access.limits import Limits
from service.access.rules import Rule, rule_of, unlisted
from service.api.context import Context, Services
from service.api.credentials import FOR_BROWSERS, Credentials, Denied, Forged, key_id_of
from service.api.open_streams import OpenStreams
from service.api.problems import RETRY_AFTER_S, ProblemResponse, problem
from service.api.refusals import Refusals
from service.errors import Forbidden, Unavailable
from service.queue.store import Store

_NO_ROUTE = Rule(AccessScope.READ)
_LONGEST_PATH = 500
_REFUSED = frozenset({401, 403, 429})
_REVOKE = "POST /v1/keys/{key_id}/revoke"
_CALLER, _RULE = "syncbn.caller", "syncbn.rule"
_log = logging.getLogger(__name__)
documented_scheme = HTTPBearer(auto_error=False, description="An API key; `syncbn keys create` makes one")
"""Says in the OpenAPI document how to authenticate. The middleware does it."""


class Access:
    """Lets through who may do what is asked, and notes in the audit log who changed what.

    Refuses with 401 whom it does not know, with 403 whose scope is too small, with 429 who asks too often:
    the audit log counts these. Refuses with 503 if it cannot look up a key. The routes find the caller with
    `Asking`.
    """

    def __init__(
        self, app: ASGIApp, *, context: Context, credentials: Credentials, routes: list[BaseRoute]
    ) -> None:
        self._app, self._context, self._routes = app, context, routes
        self._credentials = credentials
        self._streams = OpenStreams(credentials)
        self._refusals = Refusals(context.store)
        settings = context.settings
        self._limits = Limits(settings.requests_per_second, settings.bytes_per_minute / 60)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        action, rule = self._rule(scope)
        try:
            caller = await self._credentials.caller(scope)
        except (Denied, Forged, Unavailable) as error:
            caller = None
            if rule.scope is not None:
                answer = self._refusal(scope, rule, error)
                await answer(scope, receive, self._noting_refusals(action, None, scope, send))
                return
        if caller is not None:
            if objection := self._objection(scope, rule, caller):
                await objection(scope, receive, self._noting_refusals(action, caller, scope, send))
                return
            receive = self._counted(receive, caller)
        scope[_CALLER], scope[_RULE] = caller, rule
        if caller is None:
            await self._app(scope, receive, self._noting_refusals(action, None, scope, send))
        elif not rule.changes:
            await self._streams.answer(self._app, scope, receive, send)
        else:
            await self._noted(action, caller, scope, receive, send)

    def _rule(self, scope: Scope) -> tuple[str, Rule]:
        """Returns the method and path of the request's route, and its rule.

        Where there is no route, everybody with a key gets to know that.
        """
        if (known := rule_of(scope["method"], scope["path"])) is not None:
            return known
        exists = any(route.matches(scope)[0] is Match.FULL for route in self._routes)
        return f"{scope['method']} {_path(scope)}", unlisted(scope["method"]) if exists else _NO_ROUTE

    def _refusal(self, scope: Scope, rule: Rule, error: Denied | Forged | Unavailable) -> Response:
        if rule.page and isinstance(error, Denied) and "text/html" in Headers(scope=scope).get("accept", ""):
            return _to_sign_in(scope)  # a browser; other clients learn what is missing
        if isinstance(error, Unavailable):
            headers = {"Retry-After": str(RETRY_AFTER_S)}
            title = "A server that this one depends on does not answer"
            return problem(scope["path"], 503, title, str(error), kind="unavailable", headers=headers)
        if isinstance(error, Forged):
            return problem(scope["path"], 403, "Forbidden", str(error))
        # A browser asks its user for a password only where that is the way in.
        scheme = 'Basic realm="the API key as password"' if scope["path"] in FOR_BROWSERS else "Bearer"
        headers = {"WWW-Authenticate": scheme}
        return problem(scope["path"], 401, "Unauthorized", str(error), headers=headers)

    # Whether it may

    def _objection(self, scope: Scope, rule: Rule, caller: Caller) -> ProblemResponse | None:
        if rule.scope is not None and not caller.scope.includes(rule.scope):
            detail = (
                f"this needs a key with the scope {rule.scope}; the key {caller.credential} of {caller.user} "
                f"has {caller.scope}"
            )
            return problem(scope["path"], 403, "Forbidden", detail)
        if seconds := self._limits.admit(caller.credential):
            detail = f"too many requests, or bytes, with this key: send it again after {seconds} s"
            headers = {"Retry-After": str(seconds)}
            return problem(scope["path"], 429, "Too Many Requests", detail, headers=headers)
        return None

    def _noting_refusals(self, action: str, caller: Caller | None, scope: Scope, send: Send) -> Send:
        """Returns `send` that counts an answer if it is a refusal, as of a key on the page for signing in."""

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] in _REFUSED:
                self._refusals.note(_note(action, caller, scope), message["status"])
            await send(message)

        return noting

    def _counted(self, receive: Receive, caller: Caller) -> Receive:
        async def counted() -> Message:
            message = await receive()
            if body := message.get("body"):
                self._limits.received(caller.credential, len(body))
            return message

        return counted

    # What it has done

    async def _noted(self, action: str, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers the request. Its entry is in the audit log before the answer is sent."""
        note = _note(action, caller, scope)

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                if action == _REVOKE:
                    self._credentials.forget()
                await self._store_note(note, message)
            await send(message)

        before = audit.pending.set(note)
        try:
            await self._app(scope, receive, noted)
        finally:
            audit.pending.reset(before)

    async def _store_note(self, note: audit.Note, start: Message) -> None:
        status: int = start["status"]
        if note.stored and status < 400:
            return
        note.about = Headers(raw=start["headers"]).get("location", note.about)
        try:
            await anyio.to_thread.run_sync(self._context.store.add_audit, note, status)
        except Unavailable as error:
            # It has changed nothing, so the answer need not wait for the database.
            _log.error("not in the audit log: %s, answered with %d: %s", note, status, error)


def _note(action: str, caller: Caller | None, scope: Scope) -> audit.Note:
    """Returns the beginning of an entry. caller: None if no key opened; then the id of the given one."""
    return audit.Note(
        who=caller.name if caller else "",
        credential=caller.credential if caller else key_id_of(scope),
        address=scope["client"][0] if scope.get("client") else "",
        action=action,
        about=_path(scope),
    )


def _to_sign_in(scope: Scope) -> Response:
    """Sends a browser to the page for signing in, which sends it back."""
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    query = scope["query_string"].decode("latin-1")
    wanted = quote(path.removeprefix("/") + (f"?{query}" if query else ""), safe="")
    # Relative: a proxy may serve this under a prefix that only it knows.
    up = "../" * (path.count("/") - 1)
    return Response(status_code=303, headers={"Location": f"{up}sign-in?next={wanted}"})


def _path(scope: Scope) -> str:
    """Returns the path as it was sent, which is ASCII: any database can store it."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode("ascii", "backslashreplace")
    return raw.decode("ascii", "backslashreplace")[:_LONGEST_PATH]


async def caller_of(request: Request) -> Caller:
    """Returns who asks, on a route that requires a key. It needs no thread of its own."""
    caller: Caller = request.scope[_CALLER]
    return caller


Asking = Annotated[Caller, Depends(caller_of)]


def known(request: Request) -> bool:
    """Returns whether the caller of a route that is open to everybody has shown a key."""
    return caller_or_none(request) is not None


def caller_or_none(request: Request) -> Caller | None:
    """Returns who asks; None if the route is open to everybody and no key was shown."""
    caller: Caller | None = request.scope.get(_CALLER)
    return caller


async def check_owner(request: Request, services: Services) -> None:
    """Raises Forbidden if the request changes a job or sweep of another user, and the caller is not admin.

    Raises NotFound if there is none. The user of a job never changes, so no other request can interfere.
    """
    caller: Caller = request.scope[_CALLER]
    rule: Rule = request.scope[_RULE]
    if caller.scope is AccessScope.ADMIN or not rule.changes:
        return
    kind, owner = await anyio.to_thread.run_sync(_owner_of, request.path_params, services.store)
    if kind and not caller.may_change(owner):
        whose = f"of {owner}" if owner else "of no user"
        raise Forbidden(
            f"this {kind} is {whose}, and the key {caller.credential} of {caller.user} changes only {kind}s "
            f"of {caller.user}: that needs the scope admin"
        )


def _owner_of(ids: dict[str, Any], store: Store) -> tuple[str, str | None]:
    if "job_id" in ids:
        return "job", store.get(ids["job_id"]).user
    if "sweep_id" in ids:
        return "sweep", store.get_sweep(ids["sweep_id"]).user
    return "", None
