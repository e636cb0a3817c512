"""Every reason that the scheduler gives has a class."""

from __future__ import annotations

import pytest

from service.backends.cluster import Node
from service.jobs.job import State
from service.queue.store import Store
from service.scheduling.scheduler import Wait, schedule
from tests.service.examples import make_spec

NODES = [Node(id="a", address="a", cpus=4, gpus=0, memory=2**34)]

GIVEN = {
    "not scheduled yet": "new",
    "resumed; not scheduled yet": "new",
    "waits for MLflow: MLflow is not reachable: http://…": "mlflow",
    "waits: its last attempt has not ended yet": "last_attempt",
    "waits: 2 of at most 2 jobs of sweep s1 run": "sweep",
    "waits: 1 of at most 2 jobs of sweep s1 run, and others are first": "sweep",
    "sweep s1 is paused": "sweep",
    "waits: Ray is not reachable: 127.0.0.1:1": "unavailable",
    "attempt 1 was lost: rank 0 was lost; retry 1 of 3 from its checkpoint": "retry",
    "starts after a wait of 20 s": "retry",
    "resizes from 1 to 2 workers": "resize",
    "something that nobody has written yet": "other",
}


@pytest.mark.parametrize(("reason", "name"), GIVEN.items())
def test_a_reason_has_its_class(store: Store, reason: str, name: str) -> None:
    job = store.create_job(make_spec())[0]
    store.note(job, reason)

    waiting = store.counts().waiting

    assert {key: number for key, number in waiting.items() if number} == {name: 1}


def test_the_schedulers_own_reasons_have_classes(sqlite_store: Store) -> None:
    def queued(**resources: object) -> None:
        sqlite_store.create_job(make_spec(resources={"gpus_per_worker": 0, **resources}))

    queued(workers=3)
    queued(workers=2)
    queued(workers=16)
    queued(workers=1, gpus_per_worker=1)
    queued(workers=1, node_labels={"zone": "b"})
    jobs = sqlite_store.queue()
    assert sqlite_store.move(jobs[0], State.STARTING, attempt=1, workers=3)
    decisions = schedule(jobs[1:], sqlite_store.active(), NODES, now=0.0)
    by_id = {job.id: job for job in jobs}
    sqlite_store.note_all((by_id[each.job_id], each.reason) for each in decisions if isinstance(each, Wait))

    waiting = sqlite_store.counts().waiting

    assert {key: number for key, number in waiting.items() if number} == {"no_room": 1, "never_fits": 3}
