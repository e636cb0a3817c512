"""Databases of older versions, brought up to date."""

from __future__ import annotations

import json
from pathlib import Path

import alembic.command
import alembic.config
from sqlalchemy import Connection, Engine, text

from service.jobs.job import State, new_id, utc_now
from service.queue import database
from service.queue.store import Store
from tests.service.examples import make_spec
from tests.service.queue.test_store import start

OLD_STATES = {
    "queued": ("queued", "waits"),
    "starting": ("queued", "the service was updated: goes on from its last checkpoint"),
    "running": ("queued", "the service was updated: goes on from its last checkpoint"),
    "preempting": ("queued", "the service was updated: goes on from its last checkpoint"),
    "pausing": ("paused", "paused while the service was updated; goes on from its last checkpoint"),
    "paused": ("paused", "waits"),
    "succeeded": ("succeeded", "waits"),
    "failed": ("failed", "waits"),
    "cancelled": ("cancelled", "waits"),
}


def test_jobs_of_an_older_version_are_kept_and_go_on(empty_database_url: str) -> None:
    store, engine = Store(empty_database_url), database.make_engine(empty_database_url)
    migrate_to(engine, "0003")
    with engine.begin() as connection:
        old = {state: old_job(connection, state) for state in OLD_STATES}
        connection.execute(
            text("INSERT INTO job_labels (job_id, key, value) VALUES (:job_id, 'team', 'a')"),
            {"job_id": old["queued"]},
        )
        asked = old_job(connection, "running", cancel_requested_at="2026-01-01 00:00:00.000000+00:00")

    store.migrate()

    after = {state: store.get(job_id) for state, job_id in old.items()}
    assert {state: (job.state, job.reason) for state, job in after.items()} == OLD_STATES
    for state in ("starting", "running", "preempting", "pausing"):
        assert (after[state].workers, after[state].attempt) == (None, 2)
        assert (after[state].failures, after[state].finished_at) == (1, None)
    # How an attempt of an older version is told from one of this: its log is in the tracking server.
    assert {job.start for job in after.values()} == {0}
    assert [job.id for job in store.list_jobs(labels=[("team", "a")])[0]] == [old["queued"]]
    assert (after["queued"].progress, after["queued"].sweep_id) == (None, None)
    assert after["queued"].restarts == ()
    assert store.get(asked).state is State.CANCELLED
    assert store.get(asked).finished_at is not None
    assert start(store, after["running"]).attempt == 3
    migrate_to(engine, "0003", down=True)
    store.migrate()
    assert store.get(asked).state is State.CANCELLED
    store.close()
    engine.dispose()


def migrate_to(engine: Engine, revision: str, *, down: bool = False) -> None:
    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(database.__file__).parent / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        (alembic.command.downgrade if down else alembic.command.upgrade)(config, revision)


def old_job(connection: Connection, state: str, **more: str) -> str:
    """A row as version 0003 had it: in its second attempt, one lost."""
    row = {
        "id": new_id(utc_now()),
        "name": "old",
        "state": state,
        "reason": "waits",
        "priority": 0,
        "spec": json.dumps(make_spec().model_dump(mode="json")),
        "created_at": "2026-01-01 00:00:00.000000+00:00",
        "attempt": 2,
        "failures": 1,
        "workers": 2,
        **more,
    }
    names = ", ".join(row)
    connection.execute(text(f"INSERT INTO jobs ({names}) VALUES (:{', :'.join(row)})"), row)
    return str(row["id"])
