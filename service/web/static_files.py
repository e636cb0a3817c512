"""The files of the console: scripts, styles, their licences. All of them are in this package."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request, Response

from service.errors import NotFound

router = APIRouter(include_in_schema=False)
_FOLDER = Path(__file__).parent / "static"
_TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}


@dataclass(frozen=True, kw_only=True)
class _File:
    content: bytes
    packed: bytes
    kind: str
    tag: str


@cache
def _files() -> dict[str, _File]:
    return {path.name: _read(path) for path in _FOLDER.iterdir() if path.suffix in _TYPES}


def _read(path: Path) -> _File:
    content = path.read_bytes()
    return _File(
        content=content,
        packed=gzip.compress(content, mtime=0),
        kind=_TYPES[path.suffix],
        tag=f'"{hashlib.sha256(content).hexdigest()[:16]}"',
    )


@router.get("/static/{name}")
async def static_file(request: Request, name: str) -> Response:
    """Returns a file; browsers keep it, and ask whether it is still the same."""
    if (file := _files().get(name)) is None:
        raise NotFound(f"no file {name!r}")
    headers = {"ETag": file.tag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(file.packed, headers={**headers, "Content-Encoding": "gzip"}, media_type=file.kind)
    return Response(file.content, headers=headers, media_type=file.kind)
