"""Error responses as problem documents (RFC 9457, `application/problem+json`)."""

from __future__ import annotations

import http
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from service import logs
from service.errors import Conflict, Forbidden, KeyReused, NotFound, Refused, ServiceError, Unavailable
from training.spec import Problem, SpecError

RETRY_AFTER_S = 5
MEDIA_TYPE = "application/problem+json"
_log = logging.getLogger(__name__)


class KeyProblem(BaseModel):
    """One problem with the request and the offending key."""

    key: str = Field(examples=["training.global_batch_size"])
    message: str = Field(examples=["2 samples cannot be shared by 4 workers; give at least 4"])


class ProblemDocument(BaseModel):
    """What went wrong (RFC 9457)."""

    type: str = Field(default="about:blank", examples=["urn:syncbn:invalid-spec"])
    title: str = Field(examples=["The spec is not valid"])
    status: int = Field(examples=[422])
    detail: str
    instance: str = Field(description="Path of the request", examples=["/v1/jobs"])
    errors: list[KeyProblem] = []
    request_id: str = Field(default="", description="Id of the request, as in the log: header X-Request-Id")


class ProblemResponse(JSONResponse):
    """A problem document as a response."""

    media_type = MEDIA_TYPE


_KINDS: Mapping[type[ServiceError], tuple[int, str, str]] = {
    Unavailable: (503, "unavailable", "A server that this one depends on does not answer"),
    Forbidden: (403, "forbidden", "Forbidden"),
    NotFound: (404, "not-found", "Not found"),
    Conflict: (409, "conflict", "The state of the job or sweep does not allow it"),
    KeyReused: (422, "idempotency-key-reused", "The Idempotency-Key was used for another spec"),
    Refused: (422, "refused", "The request is not valid"),
}


def problem(
    path: str,
    status: int,
    title: str,
    detail: str,
    *,
    kind: str | None = None,
    errors: Iterable[Problem] = (),
    headers: Mapping[str, str] | None = None,
    **extensions: Any,
) -> ProblemResponse:
    """Returns the error response for a request to `path`.

    kind: last part of the type URN; None: about:blank. errors: the offending keys. extensions: further
    members of the document.
    """
    document = ProblemDocument(
        type=f"urn:syncbn:{kind}" if kind else "about:blank",
        title=title,
        status=status,
        detail=detail,
        instance=path,
        errors=[KeyProblem(key=error.key, message=error.message) for error in errors],
        request_id=logs.request_id(),
    )
    content = {**document.model_dump(), **extensions}
    return ProblemResponse(content, status, headers=dict(headers or {}))


def install(app: FastAPI) -> None:
    """Registers handlers so that `app` answers every error with a problem document."""
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(SpecError, _spec_error)
    app.add_exception_handler(RequestValidationError, _request_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _own_error)


def response_of(request: Request, error: Exception) -> ProblemResponse:
    """Returns the problem document of an error that a route has raised."""
    if isinstance(error, ServiceError):
        return _service_error(request, error)
    if isinstance(error, RequestValidationError):
        return _request_error(request, error)
    return _http_error(request, error)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Returns a route's `responses` entries for statuses that carry a problem document."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}}
    return {status: {"description": _phrase(status), "content": content} for status in statuses}


def _service_error(request: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, ServiceError)
    status, kind, title = next(
        (entry for base, entry in _KINDS.items() if isinstance(error, base)), (500, "internal", _phrase(500))
    )
    headers = {"Retry-After": str(RETRY_AFTER_S)} if isinstance(error, Unavailable) else {}
    problems = error.problems if isinstance(error, Refused) else []
    return problem(request.url.path, status, title, str(error), kind=kind, errors=problems, headers=headers)


def _spec_error(request: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, SpecError)
    title = "The spec is not valid"
    return problem(request.url.path, 422, title, str(error), kind="invalid-spec", errors=error.problems)


def _request_error(request: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, RequestValidationError)
    problems = [
        Problem(key=".".join(map(str, item["loc"][1:])), message=item["msg"]) for item in error.errors()
    ]
    title, detail = "The request is not valid", "; ".join(map(str, problems))
    return problem(request.url.path, 422, title, detail, kind="refused", errors=problems)


def _http_error(request: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, HTTPException)
    detail = str(error.detail)
    if error.status_code == 404 and detail == _phrase(404):
        detail = f"there is nothing at {request.url.path}; /docs lists the routes"
    if error.status_code == 405:
        detail = f"{request.method} is not allowed here"
    title = _phrase(error.status_code)
    headers = {**(error.headers or {}), **({"Allow": _allowed(request)} if error.status_code == 405 else {})}
    return problem(request.url.path, error.status_code, title, detail, headers=headers)


def _gone(request: Request, _error: Exception) -> ProblemResponse:
    """Nobody reads this answer. It is the end of the request in the logs, and no fault of the service."""
    detail = "the client closed the connection before it had sent the whole request"
    return problem(request.url.path, 400, _phrase(400), detail)


def _allowed(request: Request) -> str:
    """Returns the methods of all routes of the path; Starlette names only those of the first route."""

    def answers(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    return ", ".join(filter(answers, ["DELETE", "GET", "PATCH", "POST", "PUT"]))


def _own_error(request: Request, error: Exception) -> ProblemResponse:
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    detail = "the service failed to answer; its log says why"
    return problem(request.url.path, 500, _phrase(500), detail)


def _phrase(status: int) -> str:
    return http.HTTPStatus(status).phrase
