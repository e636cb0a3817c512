from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from service.jobs.failures import class_of
from service.jobs.job import Job, State, utc_now
from service.jobs.outcomes import (
    LONGEST_REASON,
    Outcome,
    Restart,
    before_launch,
    not_ended,
    outcome,
    start_timeout,
)
from tests.service.examples import make_job
from tests.service.world import error, killed
from training.protocol import Exit, ExitRecord, Failure


def job(state: State = State.RUNNING, *, workers: int = 2, retries: int = 3, **more: Any) -> Job:
    job = make_job(workers, state=state, granted=workers)
    return replace(job, start=1, spec={**job.spec, "retries": retries}, **more)


def exits(*records: ExitRecord, others: Exit = Exit.ENDED, workers: int = 2) -> list[ExitRecord]:
    """These, and of all other ranks one that ended so."""
    known = {record.rank: record for record in records}
    return [known.get(rank, ExitRecord(rank=rank, kind=others)) for rank in range(workers)]


def restarted(job: Job, records: list[ExitRecord]) -> Restart:
    result = outcome(job, records, cancelled=False)
    assert isinstance(result, Restart)
    return result


def come_to(job: Job, records: list[ExitRecord], *, cancelled: bool = False) -> Outcome:
    result = outcome(job, records, cancelled=cancelled)
    assert isinstance(result, Outcome)
    return result


DIGEST = "0123456789abcdef" * 4
NO_DIGESTS: list[Any] = [DIGEST * 2, DIGEST.upper(), "", {"sha256": DIGEST}]
FINISHED = exits(others=Exit.FINISHED)
SAVED = [ExitRecord(rank=rank, kind=Exit.STOPPED, step=120) for rank in (0, 1)]
LOST = exits(ExitRecord(rank=1, kind=Exit.LOST, message="its machine is gone", step=4))
KILLED = exits(killed(1, step=5))
FINAL = exits(error(1, type="BuildError", message="model: no"))
ACTIVE = [State.STARTING, State.RUNNING, State.PAUSING, State.PREEMPTING]


# Success


@pytest.mark.parametrize("state", ACTIVE)
@pytest.mark.parametrize("cancelled", [False, True])
def test_a_job_has_succeeded_when_every_rank_came_to_its_end(state: State, cancelled: bool) -> None:
    assert come_to(job(state), FINISHED, cancelled=cancelled).state is State.SUCCEEDED


def test_a_rank_that_fails_after_the_others_have_finished_keeps_the_job_from_succeeding() -> None:
    again = restarted(job(), exits(killed(1), others=Exit.FINISHED))

    assert again.failures == 1


# What was asked for


@pytest.mark.parametrize("records", [SAVED, LOST, KILLED, FINAL, exits(), []])
@pytest.mark.parametrize("state", ACTIVE)
def test_a_cancel_is_stronger_than_all_but_success(state: State, records: list[ExitRecord]) -> None:
    end = come_to(job(state, failures=1), records, cancelled=True)

    assert (end.state, end.reason, end.failures) == (State.CANCELLED, "cancelled while it ran", 1)


@pytest.mark.parametrize("state", ACTIVE)
def test_what_would_come_again_is_final_whatever_was_asked_for(state: State) -> None:
    assert come_to(job(state), FINAL).state is State.FAILED


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        (SAVED, "paused at step 120"),
        (exits(), "paused"),
        ([], "paused"),
        (
            KILLED,
            "paused; rank 1 was killed by SIGKILL at step 5; continues from its last checkpoint",
        ),
        (
            LOST,
            "paused; rank 1 was lost at step 4: its machine is gone; continues from its last checkpoint",
        ),
    ],
    ids=["saved", "ended before a step", "never launched", "killed", "lost"],
)
def test_an_attempt_that_ends_while_it_pauses_leaves_a_paused_job(
    records: list[ExitRecord], reason: str
) -> None:
    end = come_to(job(State.PAUSING, failures=1), records)

    assert (end.state, end.reason, end.failures) == (State.PAUSED, reason, 1)


@pytest.mark.parametrize("records", [SAVED, KILLED, LOST])
def test_a_preempted_job_goes_back_to_the_queue_without_using_up_a_retry(records: list[ExitRecord]) -> None:
    preempted = job(State.PREEMPTING, failures=3, reason="makes room for job x")

    end = come_to(preempted, records)

    assert (end.state, end.reason, end.failures) == (State.QUEUED, "makes room for job x", 3)


def test_a_failure_during_a_pause_is_known_when_it_comes_again() -> None:
    records = exits(error(0, step=3))
    paused = come_to(job(State.PAUSING), records)

    resumed = job(last_failure=paused.last_failure)

    assert come_to(resumed, records).state is State.FAILED


def test_an_attempt_that_was_never_launched_comes_to_what_was_asked() -> None:
    assert before_launch(job(State.PAUSING)).state is State.PAUSED
    assert before_launch(job(State.PREEMPTING, reason="r")).reason == "r"
    cancelled = replace(job(State.PAUSING), cancel_requested_at=utc_now())
    assert before_launch(cancelled).state is State.CANCELLED


# Starting again


@pytest.mark.parametrize(
    "record",
    [
        killed(1, step=5),
        error(1, step=5),
        ExitRecord(rank=1, kind=Exit.EXITED, code=3, step=5),
        ExitRecord(rank=1, kind=Exit.HUNG, message="rank 1 has made no progress", blamed_rank=1, step=5),
        error(1, type="RuntimeError", message="gloo/transport: closed", lost_peer=True, step=5),
    ],
    ids=lambda record: record.kind,
)
def test_a_rank_that_fails_is_worth_another_start_where_it_is(record: ExitRecord) -> None:
    before = job(failures=1, restarts=("rank 0 was killed by SIGKILL at step 2",))

    again = restarted(before, exits(record))

    assert again == Restart(
        reason=f"{record.headline} ({class_of(record)}); starting again from the last checkpoint "
        "(2 of 3 retries used)",
        failures=2,
        failures_in_row=1,
        last_failure=Failure.of(record),
        restarts=(*before.restarts, record.headline),
    )


def test_the_rank_that_began_is_named_not_those_that_followed() -> None:
    peer = error(0, type="RuntimeError", message="gloo/transport: closed", lost_peer=True, when=1.0)

    again = restarted(job(), exits(peer, killed(1, step=5, when=2.0)))

    assert again.restarts == ("rank 1 was killed by SIGKILL at step 5",)


def test_the_same_exception_twice_at_a_step_is_final() -> None:
    first = restarted(job(), exits(error(1, step=5)))
    before = job(failures=1, last_failure=first.last_failure, restarts=first.restarts, failures_in_row=1)

    assert come_to(before, exits(error(1, step=5))).state is State.FAILED
    assert restarted(before, exits(error(1, step=6))).failures == 2
    assert come_to(before, exits(error(1, type="KeyError", step=5))).failures == 2
    end = come_to(before, exits(error(1, step=5, log_tail="the last line")))
    assert end.failures == 1
    assert end.reason == (
        "rank 1 failed at step 5: ValueError: boom\n"
        "It failed twice at step 5, the second time after a restart from the last checkpoint: no retry. "
        "1 of 3 retries was used.\n\n"
        "last lines of the log of rank 1:\nthe last line"
    )


def test_a_signal_twice_at_a_step_is_not_final() -> None:
    before = job(failures=1, failures_in_row=1, last_failure=Failure.of(KILLED[1]))

    assert come_to(before, KILLED).failures == 2


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_retries_are_used_up(retries: int) -> None:
    end = come_to(job(retries=retries, failures=retries), exits(killed(1, step=5, log_tail="said\n")))

    used = {0: "", 1: "1 of 1 retry was used.\n", 3: "3 of 3 retries were used.\n"}[retries]
    assert (end.state, end.failures) == (State.FAILED, retries)
    assert end.reason == (
        f"rank 1 was killed by SIGKILL at step 5\n{used}\nlast lines of the log of rank 1:\nsaid\n"
    )


# Starting elsewhere


def test_a_lost_machine_takes_the_job_back_to_the_queue_and_uses_no_retry() -> None:
    end = come_to(job(failures=1, attempt=2), LOST)

    assert (end.state, end.failures, end.backoff_seconds) == (State.QUEUED, 1, 0)
    assert end.reason == (
        "attempt 2 was lost: rank 1 was lost at step 4: its machine is gone (node_lost); starts again from "
        "its checkpoint; this uses no retry"
    )


def test_a_second_loss_without_progress_uses_a_retry_and_waits() -> None:
    again = job(attempt=2, failures_in_row=1, last_failure=Failure.of(LOST[1]))

    end = come_to(again, LOST)

    assert (end.state, end.failures, end.failures_in_row) == (State.QUEUED, 1, 2)
    assert 7.5 <= end.backoff_seconds <= 12.5
    assert f"; retry 1 of 3 from its checkpoint, after a wait of {end.backoff_seconds:.0f} s" in end.reason
    later = exits(ExitRecord(rank=1, kind=Exit.LOST, step=5))
    assert come_to(again, later).failures == 0
    assert come_to(job(retries=0), LOST).state is State.FAILED


def test_where_a_machine_was_lost_nothing_is_started_again_whatever_else_has_failed() -> None:
    records = [error(0, step=4), ExitRecord(rank=1, kind=Exit.LOST, message="its machine is gone", step=4)]

    assert come_to(job(), records).state is State.QUEUED


def test_a_start_that_takes_too_long_is_tried_elsewhere() -> None:
    late = start_timeout(300, "waits for room")

    end = come_to(job(State.STARTING), [*exits(), late])

    assert (end.state, end.failures) == (State.QUEUED, 1)
    assert end.reason == (
        "attempt 1 was lost: the attempt did not start within 300 s: waits for room (infrastructure); "
        "retry 1 of 3 from its checkpoint"
    )
    failed = come_to(job(State.STARTING, failures=3), [late])
    assert (failed.state, failed.reason.partition("\n")[0]) == (State.FAILED, late.message)
    assert failed.error is not None
    assert failed.error["type"] == "StartTimeout"


@pytest.mark.parametrize("records", [SAVED, exits(), [], exits(ExitRecord(rank=0, kind=Exit.FINISHED))])
def test_a_stop_that_nobody_here_asked_for_is_a_loss(records: list[ExitRecord]) -> None:
    end = come_to(job(), records)

    assert (end.state, end.failures) == (State.QUEUED, 0)
    assert "it was ended from outside" in end.reason
    assert "(preempted); starts again" in end.reason


@pytest.mark.parametrize("first", [[], [error(0, step=4)], [start_timeout(300, "")]])
def test_what_could_not_be_ended_is_not_followed_by_another(first: list[ExitRecord]) -> None:
    records = [*first, not_ended(60)]

    end = come_to(job(), records)

    assert end.state is State.FAILED
    assert "It is not retried: its ranks were told to end" in end.reason
    assert come_to(job(State.PAUSING), records).state is State.PAUSED
    assert come_to(job(State.PREEMPTING), records).state is State.QUEUED


# What is said of a failure


@pytest.mark.parametrize(
    ("record", "known"),
    [
        (
            error(1, step=4),
            {"kind": "user_error", "type": "ValueError", "message": "boom", "rank": 1, "step": 4},
        ),
        (error(1), {"kind": "user_error", "type": "ValueError", "message": "boom", "rank": 1}),
        (
            killed(1, step=4),
            {
                "kind": "infrastructure",
                "type": "SIGKILL",
                "message": "rank 1 was killed by SIGKILL at step 4",
                "rank": 1,
                "step": 4,
                "signal": "SIGKILL",
            },
        ),
        (
            ExitRecord(rank=1, kind=Exit.OUT_OF_MEMORY, type="SIGKILL", message="memory ran out"),
            {
                "kind": "out_of_memory",
                "type": "OutOfMemory",
                "message": "memory ran out",
                "rank": 1,
                "signal": "SIGKILL",
            },
        ),
        (
            ExitRecord(rank=1, kind=Exit.EXITED, code=0, message="sys.exit was called"),
            {"kind": "user_error", "type": "Exited", "message": "sys.exit was called", "rank": 1, "code": 0},
        ),
        (
            ExitRecord(rank=1, kind=Exit.HUNG, message="rank 0 stands", blamed_rank=0, step=4),
            {"kind": "hang", "type": "Hung", "message": "rank 0 stands", "rank": 0, "step": 4},
        ),
        (
            ExitRecord(rank=1, kind=Exit.LOST, message="gone"),
            {"kind": "node_lost", "type": "Lost", "message": "gone", "rank": 1},
        ),
        (
            start_timeout(300, ""),
            {
                "kind": "infrastructure",
                "type": "StartTimeout",
                "message": "the attempt did not start within 300 s",
                "rank": None,
            },
        ),
    ],
    ids=lambda value: str(value.kind) if isinstance(value, ExitRecord) else "",
)
def test_an_error_names_type_message_rank_and_what_else_is_known(
    record: ExitRecord, known: dict[str, Any]
) -> None:
    end = come_to(job(retries=0), [replace(record, log_tail="last")])

    assert end.error == {**known, "log_tail": "last"}


def test_a_message_of_several_lines_is_shown_whole() -> None:
    end = come_to(job(retries=0), exits(error(1, message="first\nsecond", step=4)))

    assert end.reason == "rank 1 failed at step 4: ValueError: first\nsecond"


@pytest.mark.parametrize("message", ["boom", "x" * 20_000, "stack\n" * 5_000])
@pytest.mark.parametrize("tail", ["", "x" * 30_000, "line\n" * 30])
@pytest.mark.parametrize("kind", [Exit.HUNG, Exit.ERROR, Exit.LOST])
def test_all_that_is_said_is_bounded_and_says_where_the_whole_is(kind: Exit, message: str, tail: str) -> None:
    record = ExitRecord(rank=1, kind=kind, type="E", message=message, log_tail=tail)

    end = come_to(job(retries=0), [record])

    assert end.error is not None
    assert len(end.reason) <= LONGEST_REASON
    assert all(len(str(value)) <= 8_000 for value in end.error.values())
    cut = len(message) > 1_000 or len(tail) > 1_000
    assert ("… (the full text is in the logs of rank 1)" in end.reason) == cut
    assert not tail or end.reason.endswith(tail[-100:])
    again = outcome(job(), [record], cancelled=False)
    assert len(again.reason) < 500
    assert not isinstance(again, Restart) or len(again.restarts[0]) <= 300


# Memory, waits, and who ended it


OOM = ExitRecord(rank=1, kind=Exit.OUT_OF_MEMORY, type="SIGKILL", step=5)


def test_a_job_whose_memory_ran_out_waits_and_is_placed_anew() -> None:
    end = come_to(job(), exits(OOM))

    assert (end.state, end.failures) == (State.QUEUED, 1)
    assert 22.5 <= end.backoff_seconds <= 37.5
    assert "(out_of_memory); retry 1 of 3 from its checkpoint, after a wait of" in end.reason


@pytest.mark.parametrize("record", [OOM, error(1, type="OutOfMemoryError", step=5)])
def test_memory_that_runs_out_twice_at_a_step_is_final_unless_more_workers_may_come(
    record: ExitRecord,
) -> None:
    again = job(failures=1, failures_in_row=1, last_failure=Failure.of(record))

    end = come_to(again, exits(record))

    assert (end.state, end.failures) == (State.FAILED, 1)
    assert "Its memory ran out twice at step 5, the second time on a new placement" in end.reason
    elastic = {**again.spec, "resources": {"workers": {"min": 1, "max": 4}}}
    assert come_to(replace(again, spec=elastic), exits(record)).state is State.QUEUED
    assert come_to(again, exits(replace(record, step=6))).state is State.QUEUED


@pytest.mark.parametrize(
    ("records", "by"),
    [
        (FINISHED, "job"),
        (FINAL, "job"),
        (exits(ExitRecord(rank=1, kind=Exit.TIMED_OUT)), "time limit"),
        (KILLED, "scheduler"),
    ],
    ids=["finished", "failed", "timed out", "given up"],
)
def test_an_end_says_who_ended_the_job(records: list[ExitRecord], by: str) -> None:
    assert come_to(job(retries=0), records).ended_by == by


@pytest.mark.parametrize(
    ("records", "digest"),
    [
        (exits(ExitRecord(rank=0, kind=Exit.FINISHED, weights_sha256=DIGEST), others=Exit.FINISHED), DIGEST),
        (FINISHED, None),
        (exits(ExitRecord(rank=1, kind=Exit.FINISHED, weights_sha256=DIGEST), others=Exit.FINISHED), None),
        (exits(ExitRecord(rank=0, kind=Exit.FINISHED, weights_sha256=DIGEST), killed(1)), None),
        *(
            (exits(ExitRecord(rank=0, kind=Exit.FINISHED, weights_sha256=wrong), others=Exit.FINISHED), None)
            for wrong in NO_DIGESTS
        ),
    ],
    ids=["of rank 0", "none", "of rank 1", "rank 1 failed", "too long", "capitals", "empty", "a mapping"],
)
def test_a_job_that_succeeded_has_the_weights_that_rank_0_delivered(
    records: list[ExitRecord], digest: str | None
) -> None:
    assert come_to(job(retries=0), records).weights_sha256 == digest


def test_a_cancelled_job_was_ended_by_who_cancelled_it() -> None:
    asked = job(last_command={"command": "cancel", "by": "ada"})

    assert come_to(asked, SAVED, cancelled=True).ended_by == "ada"
    assert come_to(replace(asked, state=State.PAUSING), SAVED).ended_by is None
