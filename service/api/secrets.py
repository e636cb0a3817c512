"""Routes /v1/secrets: the names of secrets; sets and deletes them. No route shows a value."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request

from service.api.bodies import read_secret
from service.api.context import Services
from service.api.problems import documented
from service.api.schemas import SecretDocument, SecretPage
from service.secrets import Secrets

router = APIRouter(prefix="/v1/secrets", tags=["secrets"])

_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The value, as text in UTF-8",
        "content": {"text/plain": {"schema": {"type": "string", "format": "password"}}},
    }
}
SecretName = Annotated[str, Path(description="The name of the environment variable")]


def _secrets(services: Services) -> Secrets:
    return Secrets.of(services.settings, services.store)


JobSecrets = Annotated[Secrets, Depends(_secrets)]


async def _value(request: Request) -> str:
    return await read_secret(request)


@router.get("", responses=documented(503), summary="List the names of secrets")
def list_secrets(secrets: JobSecrets) -> SecretPage:
    """Returns all of them, without values."""
    return SecretPage(items=[SecretDocument.model_validate(entry) for entry in secrets.entries()])


@router.put(
    "/{name}",
    status_code=204,
    responses=documented(413, 415, 422, 503),
    openapi_extra=_BODY,
    summary="Set a secret",
)
def set_secret(secrets: JobSecrets, name: SecretName, value: Annotated[str, Depends(_value)]) -> None:
    """Stores the value encrypted, or replaces it. Ranks that run keep the old value."""
    secrets.put(name, value)


@router.delete("/{name}", status_code=204, responses=documented(404, 422, 503), summary="Delete a secret")
def delete_secret(secrets: JobSecrets, name: SecretName) -> None:
    """Ranks that run keep it; a job that needs it waits when it starts again."""
    secrets.delete(name)
