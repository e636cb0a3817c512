"""The API on PostgreSQL: requests per second and latency for growing numbers of jobs in the table.

The API is a separate process without a scheduler; it only uses the database.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from statistics import median, quantiles

import httpx
from pydantic import SecretStr
from sqlalchemy import select

from benchmarks.capacity import cpu
from benchmarks.progress import Progress
from benchmarks.result import Result
from service.backends.memory import MemoryCluster
from service.backends.memory_tracking import FakeResults
from service.dispatcher.dispatcher import Dispatcher
from service.ports import free_port
from service.queue.database import make_engine
from service.queue.store import Store
from service.queue.tables import jobs
from service.settings import Settings
from testing import rows
from testing.postgres import Postgres

SIZES, QUICK_SIZES = (1_000, 10_000, 100_000), (100, 1_000)
REQUESTS, QUICK_REQUESTS = 200, 20
CLIENTS = 16
SECONDS, QUICK_SECONDS = 6.0, 2.0
SECONDS_TO_START = 60.0
NOTES = (
    "PostgreSQL with its default settings: each commit waits for the disk. A job is recipes/digits.yaml with "
    "one label; the jobs in the table have ended.",
    "Latency: one client sends {requests} requests one after the other. Per second: clients that each send "
    "the next request when the last is answered, for {seconds:g} s, from one process on the same cores.",
    "A round: of the dispatcher, while no job is queued or running.",
    "To show a job, the API only asks the database, whether the job waits, trains or has ended.",
)


def runs(*, quick: bool) -> int:
    return len(QUICK_SIZES if quick else SIZES) + 1


def measure(server: Postgres, shown: Progress, *, quick: bool) -> list[Result]:
    requests, seconds = (QUICK_REQUESTS, QUICK_SECONDS) if quick else (REQUESTS, SECONDS)
    url = server.create("queue")
    store, engine = Store(url), make_engine(url)
    store.migrate()
    latencies: list[tuple[str, ...]] = []
    with _api(url) as api:
        for before, size in pairwise((0, *(QUICK_SIZES if quick else SIZES))):
            shown.doing(f"{size:,} jobs in the table")
            rows.fill(engine, rows.ended(size - before))
            with server.connect("queue") as admin:
                admin.execute("VACUUM ANALYZE")  # autovacuum would do this a minute later
            with engine.connect() as connection:
                some = list(connection.execute(select(jobs.c.id).limit(requests)).scalars())
            latencies += _latencies(api.url, f"{size:,}", some)
            latencies.append((f"{size:,}", "a round", *_shown(_idle_rounds(store))))
            shown.done(f"{size:,} jobs in the table")
        each = _bytes_per_job(server)
        shown.doing("requests per second")
        pids = (api.pid, server.pid)
        rates = [
            (name, str(clients), *_rate(api.url, clients, seconds, ask, pids))
            for name, ask in (("POST /v1/jobs", _post), ("GET /v1/jobs/{id}", _getter(some)))
            for clients in (1, CLIENTS)
        ]
        shown.done(f"requests per second: {rates}")
    engine.dispose()
    store.close()
    notes = [note.format(requests=requests, seconds=seconds) for note in NOTES]
    notes.append(f"PostgreSQL keeps {each:,.0f} bytes for a job, its label and its index entries.")
    return [
        Result(
            title="Latency",
            columns=("jobs in the table", "what", "median, ms", "95th percentile, ms"),
            rows=latencies,
            notes=notes,
        ),
        Result(
            title="Requests per second, the largest table",
            columns=(
                "request",
                "clients",
                "per second",
                "CPU of the API, ms each",
                "CPU of PostgreSQL, ms each",
            ),
            rows=rates,
        ),
    ]


_KEY = SecretStr("of a benchmark")


@dataclass(frozen=True, kw_only=True)
class _Api:
    url: str
    pid: int


@contextmanager
def _api(database_url: str) -> Iterator[_Api]:
    port = free_port()
    server = multiprocessing.get_context("spawn").Process(target=_serve, args=(database_url, port))
    server.start()
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + SECONDS_TO_START
        while not _answers(url):
            if not server.is_alive() or time.monotonic() > deadline:
                raise RuntimeError("the API did not start")
            time.sleep(0.1)
        assert server.pid is not None
        yield _Api(url=url, pid=server.pid)
    finally:
        server.terminate()
        server.join()


def _serve(database_url: str, port: int) -> None:
    import uvicorn

    from service.api.app import create_app

    app = create_app(Settings(api_key=_KEY), Store(database_url), FakeResults())
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", trust_env=False).is_success
    except httpx.HTTPError:
        return False


def _latencies(api: str, size: str, some: list[str]) -> list[tuple[str, ...]]:
    table: list[tuple[str, ...]] = []
    with _client(api) as client:
        for name, path in (("GET /v1/jobs", "/v1/jobs"), ("GET /v1/jobs/{id}", "/v1/jobs/{}")):
            times = [_seconds(lambda: client.get(path.format(id)).raise_for_status()) for id in some]  # noqa: B023
            table.append((size, name, *_shown(times)))
    return table


def _idle_rounds(store: Store) -> list[float]:
    dispatcher = Dispatcher(Settings(), store, MemoryCluster(), FakeResults())
    return [_seconds(dispatcher.round) for _ in range(20)]


def _shown(times: list[float]) -> tuple[str, str]:
    """Returns the median and the 95th percentile, in milliseconds."""
    return f"{1000 * median(times):.1f}", f"{1000 * quantiles(times, n=20)[-1]:.1f}"


def _rate(
    api: str,
    clients: int,
    seconds: float,
    ask: Callable[[httpx.Client, int], httpx.Response],
    pids: tuple[int, ...],
) -> tuple[str, ...]:
    """Returns requests per second, and each process's CPU time a request in ms."""
    before = [cpu.seconds(pid) for pid in pids]
    end = time.perf_counter() + seconds

    def work(_number: int) -> int:
        done = 0
        with _client(api) as client:
            while time.perf_counter() < end:
                ask(client, done).raise_for_status()
                done += 1
        return done

    with ThreadPoolExecutor(clients) as pool:
        done = sum(pool.map(work, range(clients)))
    took = [1000 * (cpu.seconds(pid) - start) / done for pid, start in zip(pids, before, strict=True)]
    return f"{done / seconds:.0f}", *(f"{each:.1f}" for each in took)


def _post(client: httpx.Client, _number: int) -> httpx.Response:
    return client.post("/v1/jobs", json=_SPEC)


def _getter(ids: list[str]) -> Callable[[httpx.Client, int], httpx.Response]:
    return lambda client, number: client.get(f"/v1/jobs/{ids[number % len(ids)]}")


_SPEC = rows.spec().model_dump(mode="json", exclude_unset=True)


def _bytes_per_job(server: Postgres) -> float:
    query = (
        "SELECT (pg_total_relation_size('jobs') + pg_total_relation_size('job_labels'))::float"
        " / (SELECT count(*) FROM jobs)"
    )
    with server.connect("queue") as admin:
        found = admin.execute(query).fetchone()
    assert found is not None
    return float(found[0])


def _client(api: str) -> httpx.Client:
    # No certificates for http: loading them would take longer than many requests.
    headers = {"Authorization": f"Bearer {_KEY.get_secret_value()}"}
    return httpx.Client(base_url=api, headers=headers, timeout=60.0, trust_env=False, verify=False)


def _seconds(do: Callable[[], object]) -> float:
    begun = time.perf_counter()
    do()
    return time.perf_counter() - begun
