"""Route /v1/audit: who changed what, and from where."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import AwareDatetime

from service.api.access_schemas import AuditEntryDocument, AuditPage
from service.api.context import Services
from service.api.problems import documented

router = APIRouter(prefix="/v1/audit", tags=["access"])
_TEXT = r"^[^\x00]*$"


@router.get("", responses=documented(503), summary="List the audit log, newest first")
def list_audit(
    services: Services,
    user: Annotated[str | None, Query(pattern=_TEXT, description="Only of this user")] = None,
    about: Annotated[
        str | None, Query(pattern=_TEXT, description="Only about this: an id, or a part of the path")
    ] = None,
    since: Annotated[
        AwareDatetime | None, Query(description="Of then and later; ISO 8601 with a time zone")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: str | None = None,
) -> AuditPage:
    """Returns one page of the requests that were to change something, and what became of them."""
    entries, next_cursor = services.store.list_audit(
        who=user, about=about, since=since, cursor=cursor, limit=limit
    )
    return AuditPage(
        items=[AuditEntryDocument.model_validate(entry) for entry in entries], next_cursor=next_cursor
    )
