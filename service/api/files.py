"""Routes /v1/jobs/{id}/files: the files that a job's own code has written, and each as a download."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, BinaryIO
from urllib.parse import quote

from fastapi import APIRouter, Depends, Path, Response
from fastapi.responses import StreamingResponse

from service.api.checkpoints import chunks
from service.api.context import Services
from service.api.problems import documented
from service.api.schemas import FileDocument, FilePage
from service.job_files import JobFiles

router = APIRouter(prefix="/v1/jobs/{job_id}/files", tags=["jobs"], responses=documented(404, 503))


@router.get("", summary="List the files that a job has written")
def list_files(services: Services, job_id: str) -> FilePage:
    """Of a training: what it wrote to relative paths. Of a script: what it wrote to SYNCBN_CHECKPOINT_DIR."""
    found = JobFiles(services.settings, services.store.get(job_id)).all()
    return FilePage(
        items=[FileDocument.model_validate(file) for file in found.files], left_out=found.left_out
    )


def _opened(
    services: Services,
    job_id: str,
    path: Annotated[str, Path(description="As the list has it", examples=["logs/metrics.csv"])],
) -> Iterator[tuple[BinaryIO, int]]:
    """Yields the open file and its size; closes it after the answer, also if the client left before."""
    file, size = JobFiles(services.settings, services.store.get(job_id)).open(path)
    with file:
        yield file, size


@router.get(
    "/{path:path}",
    response_class=Response,
    responses={200: {"description": "The file", "content": {"application/octet-stream": {}}}},
    summary="Download a file that a job has written",
)
def download_file(path: str, opened: Annotated[tuple[BinaryIO, int], Depends(_opened)]) -> Response:
    """Sends the file as it is when the request arrives; a running job may still be writing it."""
    file, size = opened
    name = quote(path.rpartition("/")[2], safe="")
    return StreamingResponse(
        chunks(file, size),
        media_type="application/octet-stream",
        headers={
            "Content-Length": str(size),
            "Content-Disposition": f"attachment; filename*=UTF-8''{name}",
            "Cache-Control": "no-store",
        },
    )
