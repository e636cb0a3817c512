"""Metric points per second that an MLflow server on PostgreSQL accepts from several runs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import product
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric

from benchmarks.capacity import cpu
from benchmarks.progress import Progress
from benchmarks.result import Result
from benchmarks.servers import wait_until
from service.embedded.processes import StackState
from service.embedded.servers import MlflowServer
from service.ports import free_port
from testing.postgres import Postgres
from training.tracking.mlflow_tracker import BATCH, MlflowTracker

RUNS, REQUESTS, QUICK_REQUESTS = (1, 4), 20, 3
METRICS = 2
SMALL, SMALL_REQUESTS, QUICK_SMALL_REQUESTS = 20, 60, 10
NOTES = (
    "`mlflow server --workers 2`, with its tables in PostgreSQL. Runs are threads of one process on the same "
    "cores.",
    f"Requests of {BATCH} points: what a tracker with a full spool sends, {{large}} a run, as fast as the "
    "server accepts them.",
    f"Requests of {SMALL} points: the same call with what a job with five steps a second and {METRICS} "
    "metrics collects in two seconds, {small} a run.",
)


class OverPostgres(MlflowServer):
    """As in docker-compose.yml."""

    def __init__(self, state: StackState, port: int, database: str) -> None:
        super().__init__(state, port)
        self.database = database.replace("postgresql://", "postgresql+psycopg://", 1)

    def command(self) -> list[str]:
        command = super().command()
        command[command.index("--backend-store-uri") + 1] = self.database
        command[command.index("--workers") + 1] = "2"
        return command


def runs() -> int:
    return 2 * len(RUNS)


def measure(server: Postgres, shown: Progress, *, quick: bool) -> Result:
    large, small = (QUICK_REQUESTS, QUICK_SMALL_REQUESTS) if quick else (REQUESTS, SMALL_REQUESTS)
    table = []
    with (
        tempfile.TemporaryDirectory(prefix="capacity-") as folder,
        _mlflow(server, Path(folder)) as (uri, pid),
    ):
        client = MlflowClient(tracking_uri=uri)
        experiment = client.create_experiment("capacity")
        _send_large(uri, client.create_run(experiment).info.run_id, 1)  # the first request takes longest
        sizes = ((BATCH, large, _send_large), (SMALL, small, _send_small))
        for (points, requests, send), runs in product(sizes, RUNS):
            shown.doing(f"requests of {points} points, {runs} runs")
            ids = [client.create_run(experiment).info.run_id for _ in range(runs)]
            pids = (pid, server.pid)
            before, begun = [cpu.seconds(one) for one in pids], time.perf_counter()
            with ThreadPoolExecutor(runs) as pool:
                list(pool.map(send, [uri] * runs, ids, [requests] * runs))
            pace = runs * requests / (time.perf_counter() - begun)
            took = [cpu.seconds(one) - then for one, then in zip(pids, before, strict=True)]
            each = (f"{1000 * seconds / runs / requests:.0f}" for seconds in took)
            table.append((str(points), str(runs), f"{pace:.1f}", f"{pace * points:,.0f}", *each))
            shown.done(f"requests of {points} points, {runs} runs: {pace:.1f}/s")
    columns = (
        "points a request",
        "runs",
        "requests per second",
        "points per second",
        "CPU of MLflow, ms a request",
        "CPU of PostgreSQL, ms a request",
    )
    notes = [note.format(large=large, small=small) for note in NOTES]
    return Result(title="Points to MLflow", columns=columns, rows=table, notes=notes)


def _send_large(uri: str, run_id: str, requests: int) -> None:
    """Blocks until the server has all points."""
    tracker = MlflowTracker(uri, run_id, params={}, tags={})
    for number in range(requests * BATCH):
        tracker.log(1 + number // METRICS, 0, {f"metric_{number % METRICS}": 1 / (1 + number)})
    tracker.close()


def _send_small(uri: str, run_id: str, requests: int) -> None:
    client = MlflowClient(tracking_uri=uri)
    for request in range(requests):
        now = int(time.time() * 1000)
        steps = range(request * SMALL, (request + 1) * SMALL)
        metrics = [Metric(f"metric_{step % METRICS}", 1.0, now, 1 + step // METRICS) for step in steps]
        client.log_batch(run_id, metrics=metrics)


@contextmanager
def _mlflow(server: Postgres, folder: Path) -> Iterator[tuple[str, int]]:
    """Yields the server's URL and process."""
    mlflow = OverPostgres(StackState.load(folder), free_port(), server.create("mlflow"))
    try:
        mlflow.start()
        wait_until(mlflow.is_ready, mlflow.is_alive, mlflow.log)
        process = mlflow.process()
        assert process is not None
        yield f"http://127.0.0.1:{mlflow.port}", process.pid
    finally:
        mlflow.end()
