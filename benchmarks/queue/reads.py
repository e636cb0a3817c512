"""Lists and single jobs, read from tables of several sizes; the memory of an API with followers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from itertools import repeat
from urllib.parse import quote, urlsplit

import psutil
from sqlalchemy import Engine, text

from benchmarks.queue import load
from benchmarks.queue.api import Api
from service.queue import cursors
from service.queue.tables import jobs
from testing import rows

WAITING = 10_000
FOLLOWERS = 300
REQUESTS = 40
_FOLLOWED_SECONDS = 6.0
_STATEMENT = 20_000

Requests = Mapping[str, str]
"""Paths by what is asked for."""


def fill(engine: Engine, first: int, last: int) -> None:
    """Adds ended jobs that differ in what a list can be filtered by, numbered from `first` to `last`."""
    for begin in range(first, last + 1, _STATEMENT):  # each within the deadline of the database
        _fill(engine, begin, min(begin + _STATEMENT - 1, last))


def _fill(engine: Engine, first: int, last: int) -> None:
    is_sqlite = engine.dialect.name == "sqlite"
    numbers = (
        f"(WITH RECURSIVE r(i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM r WHERE i < {last}) "
        "SELECT i FROM r)"
        if is_sqlite
        else f"generate_series({first}, {last})"
    )
    job_id = "printf('j%020x', i)" if is_sqlite else "'j' || lpad(to_hex(i), 20, '0')"
    changed = {
        "id": job_id,
        "name": "'name-' || (i % 1000)",
        "state": "CASE WHEN i % 50 = 0 THEN 'failed' ELSE 'succeeded' END",
        "experiment": "'experiment-' || (i % 100)",
    }
    columns = [f'"{column.name}"' for column in jobs.columns]  # PostgreSQL reserves "user"
    values = ", ".join(changed.get(column.name, f't."{column.name}"') for column in jobs.columns)
    n = "n" if is_sqlite else "n(i)"
    with engine.begin() as connection:
        if is_sqlite:  # which would otherwise write the indices' pages out again and again
            connection.exec_driver_sql("PRAGMA cache_size = -1000000")
        for statement in (
            f"INSERT INTO jobs ({', '.join(columns)}) SELECT {values} FROM {numbers} AS {n}, "
            "(SELECT * FROM jobs WHERE state = 'succeeded' LIMIT 1) AS t",
            f"INSERT INTO job_labels SELECT {job_id}, 'team', 'team-' || (i % 20) FROM {numbers} AS {n}",
            f"INSERT INTO job_labels SELECT {job_id}, 'kind', 'rare' FROM {numbers} AS {n} "
            "WHERE i % 5000 = 0",
        ):
            connection.execute(text(statement))


def prepare(engine: Engine) -> None:
    """Adds a job that has ended, of which `fill` makes others, the running jobs and those that wait."""
    rows.fill(engine, rows.ended(1))
    rows.fill(engine, rows.running(FOLLOWERS))
    rows.fill(engine, rows.waiting(WAITING))


def requests(engine: Engine, size: int) -> Requests:
    """Returns the requests for a table with `size` ended jobs."""
    middle = f"j{size // 2:020x}"
    with engine.connect() as connection:
        later = connection.execute(
            text("SELECT id FROM jobs WHERE state = 'queued' ORDER BY id LIMIT 1 OFFSET 9000")
        ).scalar_one()
    return {
        "newest": "/v1/jobs",
        "from the middle": f"/v1/jobs?cursor={cursors.encode(middle)}",
        "state": "/v1/jobs?state=failed",
        "two states": "/v1/jobs?state=failed&state=succeeded",
        "name": "/v1/jobs?name=name-7",
        "experiment": "/v1/jobs?experiment=experiment-7",
        "a label of one in 20": "/v1/jobs?label=team:team-3",
        "a label of one in 5,000": "/v1/jobs?label=kind:rare",
        "since": f"/v1/jobs?since={quote('2020-01-01T00:00:00+00:00')}",
        "beginning of the id": f"/v1/jobs?id={middle[:19]}",
        "a job": f"/v1/jobs/{middle}",
        "queue": "/v1/queue",
        "queue, from the 9,001st": f"/v1/queue?cursor={cursors.encode_queued(0, later)}",
    }


def medians(api: Api, asked: Requests, count: int) -> dict[str, float]:
    """Returns the median milliseconds of each request, one client sending them one after the other."""
    found = {}
    for name, path in asked.items():
        request = load.get(api.url, api.key, path)
        load.send(api.url, iter([request]), clients=1, seconds=60.0)
        answered = load.send(api.url, repeat(request, count), clients=1, seconds=60.0)
        found[name] = answered.percentile(0.5)
    return found


def memory_with_followers(engine: Engine, api: Api) -> tuple[float, float]:
    """Returns the API's PSS in MiB, first alone, then while each of FOLLOWERS follows a job of its own."""
    process = psutil.Process(api.pid)
    before = process.memory_full_info().pss / 2**20
    with engine.connect() as connection:
        found = connection.execute(text(f"SELECT id FROM jobs WHERE state = 'running' LIMIT {FOLLOWERS}"))
        ids = list(found.scalars())
    return before, asyncio.run(_followed(api, ids, process))


async def _followed(api: Api, ids: list[str], process: psutil.Process) -> float:
    address = urlsplit(api.url)
    opened = [await asyncio.open_connection(address.hostname, address.port) for _ in ids]
    for job_id, (_, writer) in zip(ids, opened, strict=True):
        writer.write(load.get(api.url, api.key, f"/v1/jobs/{job_id}/events"))
    for reader, _ in opened:
        assert b"event: job" in await reader.readuntil(b"event: job")
    await asyncio.sleep(_FOLLOWED_SECONDS)
    pss: float = process.memory_full_info().pss / 2**20
    for _, writer in opened:
        writer.close()
    return pss
