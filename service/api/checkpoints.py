"""Routes /v1/jobs/{id}/checkpoints: a job's checkpoints as a list, and each as a download."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Annotated, BinaryIO

from fastapi import APIRouter, Depends, Path, Response
from fastapi.responses import StreamingResponse

from service.api.context import Services
from service.api.problems import documented
from service.api.schemas import CheckpointDocument, CheckpointPage
from service.checkpoints import JobCheckpoints, Opened
from service.errors import Refused
from training.checkpoints.listing import which_of
from training.spec import Problem

CHUNK = 2**20

router = APIRouter(prefix="/v1/jobs/{job_id}/checkpoints", tags=["jobs"], responses=documented(404, 503))


@router.get("", summary="List a job's checkpoints")
def list_checkpoints(services: Services, job_id: str) -> CheckpointPage:
    """The last ones and the best one are kept, also after the job has ended."""
    job = services.store.get(job_id)
    checkpoints = JobCheckpoints(services.settings, job).all()
    return CheckpointPage(items=[CheckpointDocument.of(each, job) for each in checkpoints])


def _opened(
    services: Services,
    job_id: str,
    which: Annotated[str, Path(description="best, last, or the number of a step", examples=["best"])],
) -> Iterator[Opened]:
    """Yields the open checkpoint; closes it after the answer, also if the client did not wait for that."""
    try:
        wanted = which_of(which)
    except ValueError as error:
        raise Refused(str(error), [Problem(key="which", message=str(error))]) from None
    opened = JobCheckpoints(services.settings, services.store.get(job_id)).open(wanted)
    with opened.file:
        yield opened


@router.get(
    "/{which}",
    response_class=Response,
    responses={
        200: {
            "description": "A checkpoint of Lightning, which `torch.load(file, weights_only=True)` opens. "
            "`Repr-Digest` has its SHA-256 (RFC 9530)",
            "content": {"application/octet-stream": {}},
        },
        **documented(422),
    },
    summary="Download a checkpoint",
)
def download_checkpoint(job_id: str, opened: Annotated[Opened, Depends(_opened)]) -> Response:
    """Sends the file in chunks. It is complete even if the job deletes the checkpoint meanwhile."""
    digest = base64.b64encode(bytes.fromhex(opened.sha256)).decode()
    return StreamingResponse(
        chunks(opened.file, opened.size),
        media_type="application/octet-stream",
        headers={
            "Content-Length": str(opened.size),
            "Content-Disposition": f'attachment; filename="{job_id}-step-{opened.checkpoint.step}.ckpt"',
            "Repr-Digest": f"sha-256=:{digest}:",
            "Cache-Control": "no-store",
        },
    )


def chunks(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Yields the first `size` bytes of a file; fewer only if it has become shorter."""
    while size > 0 and (chunk := file.read(min(CHUNK, size))):
        size -= len(chunk)
        yield chunk
