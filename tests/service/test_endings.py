from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from service.endings import before_launch, ending
from service.jobs import Job, State, utc_now
from service.launch import Phase, Status
from tests.service.examples import make_job
from training.failures import write_verdict


def job(state: State = State.RUNNING, *, failures: int = 0, reason: str = "") -> Job:
    return replace(make_job(state=state, granted=1), failures=failures, reason=reason)


def said(type: str, message: str = "m", **more: Any) -> str:
    return f"epoch 1\n{write_verdict({'type': type, 'message': message, 'rank': None, **more})}\n"  # type: ignore[typeddict-item]


def status(phase: Phase) -> Status:
    return Status(phase=phase)


STOPPED = status(Phase.STOPPED)
FAILED = status(Phase.FAILED)


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [
        (said("Stopped", step=120), "paused at step 120"),
        (said("Stopped", step=None), "paused"),
        (said("Stopped"), "paused"),
        ("killed while it saved itself\n", "paused"),
        (said("NodesLost"), "paused"),
    ],
    ids=["saved", "before its first step", "an older driver", "lost", "no machines"],
)
@pytest.mark.parametrize("phase", [Phase.STOPPED, Phase.FAILED])
def test_an_attempt_that_ends_while_it_pauses_leaves_a_paused_job(
    verdict: str, reason: str, phase: Phase
) -> None:
    end = ending(job(State.PAUSING, failures=1), status(phase), verdict, cancelled=False)

    assert (end.state, end.reason, end.failures) == (State.PAUSED, reason, 1)


def test_a_preempted_job_goes_back_to_the_queue_without_using_up_a_retry() -> None:
    preempted = job(State.PREEMPTING, failures=3, reason="makes room for job x")

    for output in (said("Stopped", step=1), "lost\n"):
        end = ending(preempted, STOPPED, output, cancelled=False)
        assert (end.state, end.reason, end.failures) == (State.QUEUED, "makes room for job x", 3)


@pytest.mark.parametrize("state", [State.RUNNING, State.PAUSING, State.PREEMPTING])
@pytest.mark.parametrize("cancelled", [False, True])
def test_an_attempt_that_comes_to_its_end_first_has_succeeded(state: State, cancelled: bool) -> None:
    """Ray calls every attempt that was asked to stop STOPPED, whatever became of it."""
    for phase, output in ((Phase.SUCCEEDED, ""), (Phase.STOPPED, said("Succeeded"))):
        assert ending(job(state), status(phase), output, cancelled=cancelled).state is State.SUCCEEDED


@pytest.mark.parametrize("state", [State.RUNNING, State.PAUSING, State.PREEMPTING])
@pytest.mark.parametrize("phase", [Phase.STOPPED, Phase.FAILED])
def test_an_attempt_that_fails_first_has_failed(state: State, phase: Phase) -> None:
    end = ending(job(state), status(phase), said("ValueError"), cancelled=False)

    assert end.state is State.FAILED


@pytest.mark.parametrize("output", ["", said("Stopped", step=3), said("ValueError"), said("NodesLost")])
def test_a_cancel_is_stronger_than_all_but_success(output: str) -> None:
    for state in (State.STARTING, State.RUNNING, State.PAUSING, State.PREEMPTING):
        assert ending(job(state), STOPPED, output, cancelled=True).state is State.CANCELLED


@pytest.mark.parametrize("output", ["", said("Stopped", step=3)])
def test_a_stop_that_nobody_here_asked_for_is_a_loss(output: str) -> None:
    end = ending(job(), STOPPED, output, cancelled=False)

    assert (end.state, end.failures) == (State.QUEUED, 1)
    assert ending(job(), status(Phase.SUCCEEDED), said("Stopped"), cancelled=False).state is State.QUEUED
    assert end.reason == "attempt 1 was lost; retry 1 of 3 from its checkpoint"


def test_a_gang_without_machines_is_tried_again_like_a_lost_attempt() -> None:
    output = said("NodesLost", "the machines have place for 1 worker")

    end = ending(job(failures=2), FAILED, output, cancelled=False)
    assert (end.state, end.failures) == (State.QUEUED, 3)
    assert end.reason == (
        "attempt 1 was lost (the machines have place for 1 worker); retry 3 of 3 from its checkpoint"
    )

    end = ending(job(failures=3), FAILED, output, cancelled=False)
    assert end.state is State.FAILED
    assert end.error is not None
    assert (end.error["type"], end.error["message"]) == ("NodesLost", "the machines have place for 1 worker")


def test_a_failure_tells_its_step_where_it_is_known() -> None:
    end = ending(
        job(), FAILED, said("Hung", "no step", rank=1, step=40, stacks={"0": "..."}), cancelled=False
    )

    assert end.error == {"type": "Hung", "message": "no step", "rank": 1, "step": 40, "log_tail": "epoch 1"}
    assert end.reason.startswith("Hung on rank 1 at step 40: no step\n")
    end = ending(job(), FAILED, said("ValueError", step=None), cancelled=False)
    assert end.error is not None
    assert "step" not in end.error


@pytest.mark.parametrize(
    "line",
    [
        '{"type": "E", "message": "m"}',
        '{"type": "E", "message": "m", "rank": null, "unknown": [1]}',
        '{"type": "E", "message": "m", "step": 4}',
    ],
)
def test_a_verdict_needs_no_more_than_a_type_and_a_message(line: str) -> None:
    end = ending(job(), FAILED, f"syncbn-verdict {line}\n", cancelled=False)

    assert (end.state, end.error and end.error["type"]) == (State.FAILED, "E")


@pytest.mark.parametrize(
    "line",
    [
        '{"type": "E"}',
        '{"message": "m"}',
        '{"type": 1, "message": "m"}',
        '{"type": "E", "message": "m", "step": "x"}',
        '{"type": "E", "message": "m", "rank": [0]}',
    ],
)
def test_what_only_looks_like_a_verdict_is_no_word_at_all(line: str) -> None:
    assert ending(job(), FAILED, f"syncbn-verdict {line}\n", cancelled=False).state is State.QUEUED


def test_an_attempt_that_was_never_launched_comes_to_what_was_asked() -> None:
    assert before_launch(job(State.PAUSING)).state is State.PAUSED
    assert before_launch(job(State.PREEMPTING, reason="r")).reason == "r"
    cancelled = replace(job(State.PAUSING), cancel_requested_at=utc_now())
    assert before_launch(cancelled).state is State.CANCELLED
