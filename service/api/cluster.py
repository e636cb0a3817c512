"""Routes /v1/queue and /v1/cluster: the queued jobs and the cluster's resources."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query, Response

from service.api.cluster_schemas import AmountDocument, ClusterDocument, NodeDocument, QueuePage
from service.api.context import Services
from service.api.problems import documented
from service.api.schemas import json_response
from service.queue import lease
from service.scheduling import capacity
from service.scheduling.capacity import UNITS, Amount

router = APIRouter(prefix="/v1", tags=["cluster"])


@router.get(
    "/queue",
    response_model=QueuePage,
    responses=documented(422, 503),
    summary="List queued jobs in starting order",
)
def get_queue(
    services: Services,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: str | None = None,
) -> Response:
    """Returns one page of the queued jobs, in the order in which they will start."""
    return json_response(QueuePage.of(services.store.queue_page(cursor=cursor, limit=limit)))


@router.get("/cluster", responses=documented(503), summary="Show nodes and free resources")
def get_cluster(services: Services) -> ClusterDocument:
    """Returns the cluster as the scheduler last saw it. 503 if no scheduler runs or Ray does not answer."""
    nodes, active = lease.machines(services.scheduler()), services.store.active()
    machines = capacity.occupied(nodes, active)
    free = {machine.id: _document(machine.free) for machine in machines}
    return ClusterDocument(
        nodes=[NodeDocument.model_validate({**asdict(node), "free": free[node.id]}) for node in nodes],
        total=_document(capacity.total(machine.total for machine in machines)),
        free=_document(capacity.total(machine.free for machine in machines)),
        running=[job.id for job in active],
    )


def _document(amount: Amount) -> AmountDocument:
    return AmountDocument(cpus=amount.cpus / UNITS, gpus=amount.gpus / UNITS, memory=amount.memory)
