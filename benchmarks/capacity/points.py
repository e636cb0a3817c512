"""Points per second that an MLflow server over PostgreSQL takes from the trackers of several runs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient

from benchmarks.capacity import cpu
from benchmarks.postgres import Postgres
from benchmarks.progress import Progress
from benchmarks.result import Result
from benchmarks.servers import free_port, wait_until
from service.processes import State
from service.servers import MlflowServer
from training.mlflow_tracking import BATCH, MlflowTracker

RUNS, POINTS, QUICK_POINTS = (1, 4), 20, 3
METRICS = 2
NOTES = (
    f"`mlflow server --workers 2`, its tables in PostgreSQL. Each tracker has {{points}} requests of {BATCH} "
    f"points of {METRICS} metrics in its spool and sends them as fast as the server takes them; trackers in "
    "threads of one process on the same cores.",
)


class OverPostgres(MlflowServer):
    """As docker-compose.yml starts it."""

    def __init__(self, state: State, port: int, database: str) -> None:
        super().__init__(state, port)
        self.database = database.replace("postgresql://", "postgresql+psycopg://", 1)

    def command(self) -> list[str]:
        command = super().command()
        command[command.index("--backend-store-uri") + 1] = self.database
        command[command.index("--workers") + 1] = "2"
        return command


def runs() -> int:
    return len(RUNS)


def measure(server: Postgres, shown: Progress, *, quick: bool) -> Result:
    points = BATCH * (QUICK_POINTS if quick else POINTS)
    table = []
    with (
        tempfile.TemporaryDirectory(prefix="capacity-") as folder,
        _mlflow(server, Path(folder)) as (uri, pid),
    ):
        client = MlflowClient(tracking_uri=uri)
        experiment = client.create_experiment("capacity")
        _send(uri, client.create_run(experiment).info.run_id, METRICS)  # the first request takes longest
        for runs in RUNS:
            shown.doing(f"{runs} trackers")
            ids = [client.create_run(experiment).info.run_id for _ in range(runs)]
            before, begun = [cpu.seconds(one) for one in (pid, server.pid)], time.perf_counter()
            with ThreadPoolExecutor(runs) as pool:
                list(pool.map(lambda run_id: _send(uri, run_id, points), ids))
            pace = runs * points / (time.perf_counter() - begun)
            after = [cpu.seconds(one) for one in (pid, server.pid)]
            took = [
                1000 * (now - then) / (runs * points / 1000) for then, now in zip(before, after, strict=True)
            ]
            table.append(
                (str(runs), f"{pace:,.0f}", f"{pace / BATCH:.1f}", *(f"{each:.0f}" for each in took))
            )
            shown.done(f"{runs} trackers: {pace:,.0f} points/s")
    notes = [note.format(points=points // BATCH) for note in NOTES]
    columns = (
        "runs at once",
        "points per second",
        "requests per second",
        "CPU of MLflow, ms a 1,000 points",
        "CPU of PostgreSQL, ms a 1,000 points",
    )
    return Result(title="Points to MLflow", columns=columns, rows=table, notes=notes)


def _send(uri: str, run_id: str, points: int) -> None:
    """Returns when the server has all of them."""
    tracker = MlflowTracker(uri, run_id, params={}, tags={})
    for step in range(1, points // METRICS + 1):
        tracker.log(step, 0, {f"metric_{number}": 1 / step for number in range(METRICS)})
    tracker.close()


@contextmanager
def _mlflow(server: Postgres, folder: Path) -> Iterator[tuple[str, int]]:
    """Its URL and its process."""
    mlflow = OverPostgres(State.load(folder), free_port(), server.create("mlflow"))
    try:
        mlflow.start()
        wait_until(mlflow.is_ready, mlflow.is_alive, mlflow.log)
        yield f"http://127.0.0.1:{mlflow.port}", mlflow.known["pid"]
    finally:
        mlflow.end()
