from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.jobs.job import ACTIVE, ENDED, TRANSITIONS, Run, State, is_id, new_id, new_job
from tests.service.examples import make_job, make_spec

NOW = datetime(2026, 1, 1, tzinfo=UTC)
moments = st.datetimes(min_value=datetime(2000, 1, 1), max_value=datetime(3000, 1, 1), timezones=st.just(UTC))


def test_every_state_has_its_row_in_the_table() -> None:
    assert set(TRANSITIONS) == set(State)


def test_every_state_can_be_reached_and_every_job_can_end() -> None:
    reached = {State.QUEUED}
    while (grown := reached.union(*(TRANSITIONS[state] for state in reached))) != reached:
        reached = grown

    assert reached == set(State)
    assert all(State.CANCELLED in TRANSITIONS[state] for state in State if not state.ended)


def test_a_state_is_waiting_active_or_ended_and_only_one_of_these() -> None:
    assert {State.QUEUED, State.PAUSED} | ACTIVE | ENDED == set(State)
    assert {State.SUCCEEDED, State.FAILED, State.CANCELLED} == ENDED
    assert not ACTIVE & ENDED


@given(moments, moments)
def test_ids_sort_as_their_jobs_were_created(first: datetime, second: datetime) -> None:
    if first != second:
        assert (new_id(first) < new_id(second)) == (first < second)


@given(moments)
def test_an_id_is_short_and_needs_no_quoting_anywhere(moment: datetime) -> None:
    id = new_id(moment)

    assert len(id) == 21
    assert id == id.lower() == quote(id, safe="")
    assert is_id(id)


def test_ids_of_one_moment_differ() -> None:
    assert len({new_id(NOW) for _ in range(1000)}) == 1000


@pytest.mark.parametrize("text", ["", "j", "x" * 21, "j" + "u" * 20, "j" + "0" * 19 + "\0", "J" + "0" * 20])
def test_what_is_no_id_is_told_apart(text: str) -> None:
    assert not is_id(text)


def test_a_new_job_waits_with_its_whole_spec_and_a_reason() -> None:
    spec = make_spec(name="mine", priority=7, labels={"team": "vision"})

    job = new_job(spec, created_at=NOW)

    assert (job.name, job.priority, job.labels) == ("mine", 7, {"team": "vision"})
    assert (job.state, job.attempt, job.failures, job.workers) == (State.QUEUED, 0, 0, None)
    assert (job.start, job.restarts, job.last_failure, job.progress) == (0, (), None, None)
    assert job.spec["training"]["max_epochs"] == 10
    assert job.reason
    assert job.created_at - NOW == timedelta()


def test_a_job_knows_its_run_once_it_has_one() -> None:
    job = make_job()

    assert job.run is None
    assert replace(job, experiment_id="1", run_id="r").run == Run(experiment_id="1", run_id="r")


def test_workers_come_in_whole_groups_of_normalisation() -> None:
    assert make_job({"min": 2, "max": 8}, group=2).worker_step == 2
    assert make_job({"min": 2, "max": 8}, group="world").worker_step == 1
