"""Route /v1/version: the versions of the API's environment."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, Field

from training.versions import own_versions

router = APIRouter(prefix="/v1", tags=["health"])


class VersionDocument(BaseModel):
    """The versions of Python and of the packages that have to match between the parts of the service."""

    versions: dict[str, str] = Field(examples=[{"syncbn": "0.2.0", "python": "3.11.7", "ray": "2.60.0"}])


@router.get("/version", summary="Show the versions of the API")
def get_version() -> VersionDocument:
    """Returns the versions in the environment of this API process. Asks no dependency."""
    return VersionDocument(versions=own_versions())
