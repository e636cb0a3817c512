"""Route /v1/code: uploads the user's own modules as a zip archive."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from service.api.bodies import CODE_TYPES, CodeBody
from service.api.context import Services
from service.api.problems import documented
from service.api.schemas import CodeDocument
from service.user_code.check import check_archive

router = APIRouter(prefix="/v1/code", tags=["code"])

_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "A zip archive whose root is put on the import path",
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in CODE_TYPES},
    }
}


@router.post(
    "",
    status_code=201,
    responses=documented(413, 415, 422, 503),
    openapi_extra=_BODY,
    summary="Upload code",
)
def upload_code(services: Services, body: CodeBody) -> CodeDocument:
    """Stores the archive and returns its digest. Idempotent: the same bytes are stored once."""
    check_archive(body, services.settings.max_code_bytes)
    return CodeDocument(digest=services.store.put_code(body), size=len(body))
