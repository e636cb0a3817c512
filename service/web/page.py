"""Pages: templates, relative links, and errors that a person reads in a browser."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, StreamingResponse
from fastapi.routing import APIRoute
from fastapi.sse import format_sse_event
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.exceptions import HTTPException

from service.access import sessions
from service.access.caller import Scope
from service.api import problems
from service.api.access import caller_or_none
from service.api.credentials import cookie_of
from service.errors import ServiceError
from service.web import shown

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
"""Nothing from elsewhere, and no script or style within a page."""
_HEADERS = {
    "Content-Security-Policy": POLICY,
    # With "no-referrer" browsers send a form with "Origin: null", as a foreign page does: refused.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_PIECES = 200  # of a template in what is sent at once of a long page: some dozens of rows

_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    finalize=shown.plain,
    auto_reload=False,  # it would look at every file of every page
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters |= shown.FILTERS
_templates.globals |= {"query": urlencode}
_show = {live: _templates.get_template("macros.html").make_module({"live": live}) for live in (False, True)}
"""Imported by each template, the macros would be made anew for each part: a third of its time."""


def render(request: Request, template: str, /, status: int = 200, **values: Any) -> HTMLResponse:
    """Returns a page. Every value is escaped: no text of a user becomes markup."""
    given = _of_page(request) | values
    return HTMLResponse(_templates.get_template(template).render(given), status, _HEADERS)


def render_long(request: Request, template: str, /, **values: Any) -> StreamingResponse:
    """Returns a page that is sent while it is rendered: a browser shows its beginning at once.

    Whatever may fail has to be done before: the status is sent first.
    """
    given = _of_page(request) | values
    text = _templates.get_template(template).stream(given)
    text.enable_buffering(_PIECES)
    return StreamingResponse(text, headers=_HEADERS, media_type="text/html")


def fragment(request: Request, template: str, /, **values: Any) -> bytes:
    """Returns a part of a page, to be put into it while it is shown: as lines of an event of a stream.

    Its text does not change with the time alone: ages are for the script of the page.
    """
    text = _templates.get_template(template).render(_of_page(request, live=True) | values)
    return format_sse_event(data_str=text).removesuffix(b"\n")  # the event may have further lines


def link(request: Request, path: str) -> str:
    """Returns a link to a path of this service, relative to the page.

    So the pages need not know the prefix under which a proxy serves them.
    """
    return link_from(request.scope["path"].removeprefix(request.scope.get("root_path", "")), path)


def link_from(page: str, path: str) -> str:
    """Returns a link to a path of this service for a page at another path.

    As `url` of a part that is put into a page of another depth than the path that answers with the part.

    >>> link_from("/jobs", "/jobs/j1"), link_from("/jobs/j1", "/"), link_from("/", "/")
    ('jobs/j1', '../', './')
    """
    return "../" * (page.count("/") - 1) + path.removeprefix("/") or "./"


def number_in_query(request: Request, name: str) -> int | None:
    """Returns a whole number of the page's query, from 0 to 10**9; None if it is not there or none."""
    text = request.query_params.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def _of_page(request: Request, *, live: bool = False) -> dict[str, Any]:
    caller = caller_or_none(request)
    value = cookie_of(request.headers)
    return {
        "live": live,
        "show": _show[live],
        "url": partial(link, request),
        "caller": caller,
        "may_submit": caller is not None and caller.scope.includes(Scope.SUBMIT),
        "is_admin": caller is not None and caller.scope is Scope.ADMIN,
        "forgery_token": sessions.forgery_token(value) if value else "",
        "here": request.scope["path"],
        "with_query": partial(_with_query, request),
    }


def _with_query(request: Request, **changed: object) -> str:
    """Returns this page's query with some parameters changed; None and "" remove one."""
    pairs = [(key, value) for key, value in request.query_params.multi_items() if key not in changed]
    pairs += [(key, str(value)) for key, value in changed.items() if value not in (None, "")]
    return "?" + urlencode(pairs, quote_via=quote)


class PageRoute(APIRoute):
    """A route of a page: its errors are pages, too."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await handler(request)
            except (ServiceError, RequestValidationError, HTTPException) as error:
                return error_page(request, problems.response_of(request, error))

        return handle


def error_page(request: Request, response: Response) -> HTMLResponse:
    """Returns a problem document as a page."""
    document: Mapping[str, Any] = json.loads(bytes(response.body))
    page = render(request, "error.html", document["status"], problem=document)
    if (seconds := response.headers.get("retry-after")) is not None:
        page.headers["retry-after"] = seconds
    return page
