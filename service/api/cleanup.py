"""Routes under /v1/cleanup: what retention would remove, and its removal now."""

from __future__ import annotations

import base64
import binascii
from datetime import datetime
from typing import Annotated, Self

from fastapi import APIRouter, Query
from pydantic import Field

from service.api.context import Services
from service.api.problems import documented
from service.api.schemas import Document
from service.cleanup.policy import Policy
from service.cleanup.retention import Position, Report, Retention
from service.errors import Refused
from service.jobs.job import Removed, is_id
from service.queue.retained import Place
from training.spec import Problem

router = APIRouter(prefix="/v1/cleanup", tags=["cleanup"], responses=documented(422, 503))

Cursor = Annotated[str | None, Query(description="`next_cursor` of the page before")]


class PolicyDocument(Document):
    """Days after a job's end when it loses what; null: never (the settings SYNCBN_RETENTION_…_DAYS)."""

    other_checkpoints: float | None = Field(description="All checkpoints except the best and the last")
    checkpoints: float | None = Field(description="All checkpoints, and what a script has saved")
    logs: float | None = Field(description="Logs and exit records")
    spools: float | None = Field(description="Spools of metrics that MLflow has")
    code: float | None = Field(description="Code archives that no later job uses")


class CleanupItem(Document):
    """What goes of one job, or a code archive."""

    what: str = Field(examples=["other_checkpoints"])
    job: str | None = Field(description="Id of the job; null for code")
    name: str | None = Field(description="Name of the job; null for code")
    code: str | None = Field(description="Digest of the archive; null for what a job has")
    bytes: int


class CleanupPage(Document):
    """A page of what retention removes."""

    policy: PolicyDocument
    items: list[CleanupItem]
    bytes: int = Field(description="Of all items of this page")
    problems: list[str] = Field(description="Why something else could not be removed, or not be measured")
    next_cursor: str | None = Field(
        description="Give it as `cursor` to get the next page, which may have items even if this one has "
        "none; null: the last"
    )

    @classmethod
    def of(cls, policy: Policy, report: Report) -> Self:
        """Returns the document of a report."""
        return cls(
            policy=PolicyDocument.model_validate(policy),
            items=[CleanupItem.model_validate(item) for item in report.items],
            bytes=report.bytes,
            problems=report.problems,
            next_cursor=report.next and _encoded(report.next),
        )


@router.get("", summary="List what retention would remove")
def plan_cleanup(services: Services, cursor: Cursor = None) -> CleanupPage:
    """Returns a page of what the policy gives up now, with sizes. Changes nothing."""
    retention = Retention(services.settings, services.store)
    return CleanupPage.of(retention.policy, retention.plan(_decoded(cursor)))


@router.post("", summary="Remove what retention gives up")
def clean_up(services: Services, cursor: Cursor = None) -> CleanupPage:
    """Removes a page of what the policy gives up now, and returns what it was; the scheduler does the same
    in the background. Idempotent.
    """
    retention = Retention(services.settings, services.store)
    return CleanupPage.of(retention.policy, retention.apply(_decoded(cursor)))


def _encoded(position: Position) -> str:
    what, place = position
    parts = [str(int(what)), *([place.finished_at.isoformat(), place.job_id] if place else [])]
    return base64.urlsafe_b64encode("|".join(parts).encode()).decode().rstrip("=")


def _decoded(cursor: str | None) -> Position | None:
    if cursor is None:
        return None
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
        what, *place = text.split("|")
        part = Removed(int(what))
        if len(list(part)) != 1 or (place and (len(place) != 2 or not is_id(place[1]))):
            raise ValueError
        return part, Place(datetime.fromisoformat(place[0]), place[1]) if place else None
    except (binascii.Error, ValueError):
        problem = Problem(key="cursor", message="is not a cursor of this service; start without one")
        raise Refused("the cursor is not valid", [problem]) from None
