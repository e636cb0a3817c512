"""Signing in: with a key, or by the link that `syncbn up` prints; and out."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import parse_qs

from fastapi import APIRouter, Query, Request, Response

from service.access import audit, sessions
from service.access.caller import Caller
from service.api.credentials import Credentials, Denied, cookie_of
from service.api.problems import problem
from service.web.page import PageRoute, error_page, link, render

router = APIRouter(route_class=PageRoute, include_in_schema=False)
_LONGEST_FORM = 10_000


@router.get("/sign-in")
async def sign_in_page(
    request: Request,
    wanted: Annotated[str, Query(alias="next", max_length=4_000)] = "",
    token: Annotated[str | None, Query(max_length=500)] = None,
) -> Response:
    """Asks for a key. With a token, as in the link that `syncbn up` prints, signs in."""
    if token is None:
        return render(request, "sign_in.html", wanted=wanted, refusal="")
    return await _signed_in(request, token, wanted)


@router.post("/sign-in")
async def sign_in(request: Request) -> Response:
    """Signs in with the key of the form."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _LONGEST_FORM:
            return error_page(request, problem("/sign-in", 413, "Too large", "this is no form of this page"))
    form = parse_qs(body.decode("utf-8", "replace"))
    return await _signed_in(request, form.get("key", [""])[0].strip(), form.get("next", [""])[0])


@router.post("/sign-out")
async def sign_out(request: Request) -> Response:
    """Ends the session."""
    credentials: Credentials = request.app.state.credentials
    await credentials.sign_out(cookie_of(request.headers))
    response = Response(status_code=204)
    response.delete_cookie(sessions.cookie_name(request.headers.get("host", "")), samesite="strict")
    return response


async def _signed_in(request: Request, text: str, wanted: str) -> Response:
    credentials: Credentials = request.app.state.credentials
    try:
        caller = await credentials.caller_by_text(text)
        value = await _session_of(request, caller, text, credentials)
    except Denied as error:
        what = "This link is of an earlier start" if request.method == "GET" else "Not a valid key"
        return render(request, "sign_in.html", 401, wanted=wanted, refusal=f"{what}: {error}")
    # A page that goes on by itself, not a redirect: a browser that came from another site would not yet send
    # the new cookie with that.
    response = render(
        request, "signed_in.html", target=_own_path(request, wanted), icon=link(request, "/static/icon.svg")
    )
    response.set_cookie(
        sessions.cookie_name(request.headers.get("host", "")),
        value,
        max_age=int(sessions.LASTS.total_seconds()),
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https",
    )
    return response


async def _session_of(request: Request, caller: Caller, text: str, credentials: Credentials) -> str:
    """Makes a session, and notes in the audit log that somebody signed in."""
    client = request.client
    note = audit.Note(
        who=caller.name,
        credential=caller.credential,
        address=client.host if client else "",
        action="POST /sign-in",
        about="/sign-in",
    )
    before = audit.pending.set(note)
    try:
        return (await credentials.sign_in(text))[1]
    finally:
        audit.pending.reset(before)


def _own_path(request: Request, wanted: str) -> str:
    """Returns the link to the page that was wanted; to the overview if that is not of this service."""
    is_own = wanted and not wanted.startswith(("/", "\\")) and ":" not in wanted.partition("?")[0]
    return link(request, f"/{wanted}" if is_own and ".." not in wanted.partition("?")[0] else "/")
