"""Points of metrics as the ranks of a job leave them in its folder."""

from __future__ import annotations

from collections.abc import Iterable

from tests.service.live_api import Service
from training.protocol import Point
from training.run_dir import RunFolder
from training.tracking.spool import Spool

BEGAN = 1_700_000_000_000


def log_points(service: Service, job_id: str, points: Iterable[tuple[str, int, float]]) -> None:
    """Writes points (name, step, value) to the job's spool; a step takes a second."""
    spool = Spool(RunFolder(path=service.storage / job_id).spool)
    for name, step, value in points:
        spool.append(Point(name, value, BEGAN + 1000 * step, step))
    spool.close()
