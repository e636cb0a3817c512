"""Routes /v1/queue and /v1/cluster: who waits, and what there is."""

from __future__ import annotations

from fastapi import APIRouter

from service.api.context import Services
from service.api.problems import documented
from service.api.schemas import AmountDocument, ClusterDocument, NodeDocument, QueuePage, WaitingDocument
from service.queue import lease
from service.scheduling import capacity
from service.scheduling.capacity import UNITS, Amount

router = APIRouter(prefix="/v1", tags=["cluster"])


@router.get("/queue", responses=documented(503), summary="The jobs that wait, in the order they start")
def get_queue(services: Services) -> QueuePage:
    waiting = enumerate(services.store.queue(), start=1)
    return QueuePage(items=[WaitingDocument.of(position, job) for position, job in waiting])


@router.get("/cluster", responses=documented(503), summary="The machines and what is free")
def get_cluster(services: Services) -> ClusterDocument:
    """As the scheduler last saw them; a 503 if none runs or Ray does not answer it."""
    nodes, active = lease.machines(services.store.scheduler()), services.store.active()
    machines = capacity.occupied(nodes, active)
    return ClusterDocument(
        nodes=[NodeDocument.model_validate(node) for node in nodes],
        total=_document(capacity.total(machine.total for machine in machines)),
        free=_document(capacity.total(machine.free for machine in machines)),
        running=[job.id for job in active],
    )


def _document(amount: Amount) -> AmountDocument:
    return AmountDocument(cpus=amount.cpus / UNITS, gpus=amount.gpus / UNITS)
