"""Durable submissions per second: ours, bare inserts into the same table, and Ray's own Jobs API."""

from __future__ import annotations

import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count, repeat
from pathlib import Path
from typing import Any

from benchmarks.peers.bare_ray import BareRay
from benchmarks.queue import load
from benchmarks.queue.api import Api
from benchmarks.queue.load import Load
from service.jobs.job import new_id, new_job, utc_now
from testing import rows
from testing.postgres import Postgres

CLIENTS = 16
SPEC = rows.spec().model_dump(mode="json", exclude_unset=True)
_INSERT = (
    "INSERT INTO jobs (id, name, state, reason, priority, spec, created_at, attempt, failures) "
    "VALUES (?, ?, 'queued', '', 0, ?, ?, 0, 0)"
)


Insert = Callable[[Sequence[Any]], object]
"""Inserts a row, and returns once it is committed."""


def ours(apis: Sequence[Api], seconds: float) -> Load:
    """Submits recipes/digits.yaml by the REST API, to each of these API processes as often."""
    targets = [(api.url, _submissions(api)) for api in apis]
    return load.send_to_several(targets, clients=CLIENTS, seconds=seconds)


def _submissions(api: Api) -> Iterator[bytes]:
    """Yields requests that differ in the idempotency key, and in the spec's name, seed and label."""
    run, first = secrets.token_hex(8), 10_000_000
    numbered = {
        **SPEC,
        "name": f"digits-{first}",
        "training": {**SPEC["training"], "seed": first},
        "labels": {"number": str(first)},
    }
    request = load.post(api.url, api.key, "/v1/jobs", numbered, f"{run}-{first}")
    between = request.split(str(first).encode())  # which is as long as every later number
    return (str(number).encode().join(between) for number in count(first))


def rays(ray: BareRay, seconds: float) -> Load:
    """Submits jobs that wait for CPUs that Ray does not have, so that none of them starts a process."""
    job = {"entrypoint": "true", "entrypoint_num_cpus": 1000}
    request = load.post(ray.url, ray.token, "/api/jobs/", job)
    return load.send(ray.url, repeat(request), clients=CLIENTS, seconds=seconds)


def sqlite_inserts(path: Path, seconds: float) -> Load:
    """Inserts a row a commit, each client over its own connection, by sqlite3 alone."""

    def connect() -> Insert:
        connection = sqlite3.connect(path, timeout=30, isolation_level=None)  # commits each statement
        connection.execute("PRAGMA synchronous = FULL")
        return partial(connection.execute, _INSERT)

    return _inserts(connect, seconds)


def postgresql_inserts(server: Postgres, database: str, seconds: float) -> Load:
    """Inserts a row a commit, each client over its own connection, by psycopg alone."""
    statement = _INSERT.replace("?", "%s").encode()
    return _inserts(lambda: partial(server.connect(database).execute, statement), seconds)


def _inserts(connect: Callable[[], Insert], seconds: float) -> Load:
    job = new_job(rows.spec(), created_at=utc_now())
    spec = json.dumps(job.spec)
    latencies: list[float] = []
    barrier = threading.Barrier(CLIENTS)

    def client(_number: int) -> float:
        insert = connect()
        barrier.wait()
        begun = time.perf_counter()
        while (sent_at := time.perf_counter()) < begun + seconds:
            now = utc_now()
            insert([new_id(now), job.name, spec, now.isoformat()])
            latencies.append(time.perf_counter() - sent_at)
        return time.perf_counter() - begun

    with ThreadPoolExecutor(CLIENTS) as pool:
        took = max(pool.map(client, range(CLIENTS)))
    return Load(seconds=took, latencies=latencies)


def measures(found: Load) -> Mapping[str, float]:
    """Returns the milliseconds a submission, all clients together, and what one client waits."""
    return {
        RATE: 1000 / found.per_second,
        MEDIAN: found.percentile(0.5),
        WORST: found.percentile(0.99),
    }


RATE, MEDIAN, WORST = "a submission, ms", "its answer, median, ms", "its answer, 99th percentile, ms"
