"""Routes /v1/keys: makes API keys, lists and revokes them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter

from service.access.keys import new_key
from service.api.access import Asking
from service.api.access_schemas import KeyDocument, KeyPage, KeyRequest, NewKeyDocument
from service.api.bodies import json_body, json_schema
from service.api.context import Services
from service.api.problems import documented
from service.errors import Refused
from service.jobs.job import utc_now
from training.spec import Problem

router = APIRouter(prefix="/v1/keys", tags=["access"], responses=documented(503))


@router.get("", summary="List API keys, newest first")
def list_keys(services: Services) -> KeyPage:
    """Returns all of them, also those that have ended. Nothing shows the text of a key."""
    return KeyPage(items=[KeyDocument.model_validate(key) for key in services.store.list_keys()])


@router.post(
    "",
    status_code=201,
    responses=documented(413, 415),
    openapi_extra=json_schema(KeyRequest),
    summary="Make an API key",
)
def create_key(
    services: Services, caller: Asking, request: Annotated[KeyRequest, json_body(KeyRequest)]
) -> NewKeyDocument:
    """Its text is in this answer and nowhere else. Not idempotent: a repeated request makes another key."""
    now = utc_now()
    if request.expires_at is not None and request.expires_at <= now:
        raise Refused(
            "the key would have ended already", [Problem(key="expires_at", message="must be in the future")]
        )
    key, text = new_key(
        request.user, request.scope, created_by=caller.name, now=now, expires_at=request.expires_at
    )
    services.store.add_key(key)
    return NewKeyDocument(**KeyDocument.model_validate(key).model_dump(), key=text)


@router.post("/{key_id}/revoke", responses=documented(404), summary="Revoke an API key")
def revoke_key(services: Services, key_id: str) -> KeyDocument:
    """From now on it opens nothing. Idempotent."""
    return KeyDocument.model_validate(services.store.revoke_key(key_id))
