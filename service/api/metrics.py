"""Route /metrics: figures for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.metrics.registry import Metrics

router = APIRouter(tags=["health"])


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"description": "Prometheus's text format", "content": {"text/plain": {}}}},
    summary="Figures for Prometheus",
)
def get_metrics(request: Request) -> Response:
    """Returns figures of the queue, the scheduler, the machines and the requests of this process.

    A part that does not answer is left out, and `syncbn_up` says so.
    """
    metrics: Metrics = request.app.state.metrics
    content, media_type = metrics.text(request.headers.get("accept", ""))
    return Response(content, headers={"Content-Type": media_type})
