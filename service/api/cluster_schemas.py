"""Documents of the queue and of the cluster, as they appear in responses and in OpenAPI."""

from __future__ import annotations

from datetime import datetime
from typing import Self

from pydantic import Field

from service.api.schemas import Document, ExpectedStartDocument, Total, shown_wait
from service.jobs.expected import ExpectedStart
from service.queue.queue_pages import QueuedJob, QueuedPage
from service.scheduling.estimates import FIRST, TOO_FAR
from training.spec import Resources


class WaitingDocument(Document):
    """A job in the queue."""

    position: int = Field(description="From 1")
    id: str
    name: str
    priority: int
    reason: str
    needs: Total = Field(description="For the smallest number of workers that it starts with")
    not_before: datetime | None = Field(description="When it may start again after a failure; null: it may")
    expected_start: ExpectedStartDocument | None = Field(description="null: no estimate has been made yet")
    created_at: datetime

    @classmethod
    def of(cls, job: QueuedJob) -> Self:
        """Returns the document of a job in the queue."""
        resources = Resources.model_validate(job.resources)
        return cls(
            position=job.position,
            id=job.id,
            name=job.name,
            priority=job.priority,
            reason=job.reason,
            needs=Total.of(resources.min_workers, resources),
            not_before=shown_wait(job),
            expected_start=ExpectedStartDocument.of(job.expected or _too_far(job.position)),
            created_at=job.created_at,
        )


def _too_far(position: int) -> ExpectedStart | None:
    """Returns why there is no estimate for a job at this position; None: there will be one."""
    return ExpectedStart(at=None, because=TOO_FAR) if position > FIRST else None


class QueuePage(Document):
    """One page of the queued jobs, in starting order."""

    items: list[WaitingDocument]
    next_cursor: str | None = Field(description="Give it as `cursor` to get the next page; null: the last")
    total: int = Field(description="Number of jobs in the whole queue")

    @classmethod
    def of(cls, page: QueuedPage) -> Self:
        """Returns the document of a page of the queue."""
        items = [WaitingDocument.of(job) for job in page.items]
        return cls(items=items, next_cursor=page.next_cursor, total=page.total)


class AmountDocument(Document):
    """A number of CPUs and GPUs, fractions are possible; and memory in bytes."""

    cpus: float
    gpus: float
    memory: int


class NodeDocument(Document):
    """A node and its resources, in use or not."""

    id: str
    address: str
    cpus: float
    gpus: float
    memory: int = Field(description="Bytes that workers can reserve")
    labels: dict[str, str] = Field(description="By which a job's node_labels choose")
    free: AmountDocument = Field(
        description="What running jobs leave free of it: an estimate, as Ray decides where workers are"
    )


class ClusterDocument(Document):
    """The nodes as the scheduler last saw them, and the resources that running jobs leave free."""

    nodes: list[NodeDocument]
    total: AmountDocument
    free: AmountDocument
    running: list[str] = Field(description="Ids of the jobs that hold workers")
