"""The classes of failures, and the waits after them."""

from __future__ import annotations

import pytest

from service.jobs.failures import FailureClass, backoff_seconds, class_of, has_progressed
from service.jobs.outcomes import not_ended, start_timeout
from training.protocol import Exit, ExitRecord, Failure


def record(kind: Exit, type: str = "", **more: object) -> ExitRecord:
    return ExitRecord(rank=0, kind=kind, type=type, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (record(Exit.ERROR, "ValueError"), "user_error"),
        (record(Exit.EXITED, code=3), "user_error"),
        (record(Exit.SIGNAL, "SIGSEGV"), "user_error"),
        (record(Exit.SIGNAL, "SIGKILL"), "infrastructure"),
        (record(Exit.ERROR, "RuntimeError", lost_peer=True), "infrastructure"),
        (start_timeout(300, ""), "infrastructure"),
        (not_ended(60), "infrastructure"),
        (record(Exit.OUT_OF_MEMORY, "SIGKILL"), "out_of_memory"),
        (record(Exit.ERROR, "OutOfMemoryError"), "out_of_memory"),
        (record(Exit.ERROR, "MemoryError"), "out_of_memory"),
        (record(Exit.LOST), "node_lost"),
        (record(Exit.LOST, "Preempted"), "preempted"),
        (record(Exit.HUNG), "hang"),
        (record(Exit.TIMED_OUT), "time_limit"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.kind,
)
def test_each_failure_has_a_class_which_its_row_still_knows(failure: ExitRecord, kind: str) -> None:
    assert class_of(failure) == kind
    assert class_of(Failure(**Failure.of(failure).to_json())) == kind


@pytest.mark.parametrize("kind", FailureClass)
def test_waits_grow_up_to_a_bound_and_are_the_same_whenever_they_are_computed(kind: FailureClass) -> None:
    waits = [backoff_seconds("j1", kind, number) for number in range(1, 40)]

    assert waits == [backoff_seconds("j1", kind, number) for number in range(1, 40)]
    memory = kind is FailureClass.OUT_OF_MEMORY
    assert (waits[0] > 20) == memory
    assert (waits[0] == 0) != memory
    assert waits[1] > waits[0]
    assert max(waits) <= (750 if memory else 375)
    assert min(waits[10:]) >= (450 if memory else 225)


def test_jobs_that_failed_together_do_not_start_together() -> None:
    waits = {backoff_seconds(f"j{number}", FailureClass.HANG, 4) for number in range(50)}

    assert len(waits) > 30
    assert 30 <= min(waits) < max(waits) <= 50


@pytest.mark.parametrize(
    ("step", "before", "seconds", "progressed"), [(4, None, 0, True), (4, 3, 0, True), (4, 4, 9_999, False)]
)
def test_progress_is_a_later_step(step: int, before: int | None, seconds: float, progressed: bool) -> None:
    last = None if before is None else Failure.of(record(Exit.LOST, step=before))

    assert has_progressed(record(Exit.LOST, step=step), last, seconds) == progressed


def test_a_script_has_made_progress_if_it_ran_for_long() -> None:
    failure = record(Exit.EXITED, code=1, counts_steps=False)

    assert has_progressed(failure, Failure.of(failure), 600)
    assert not has_progressed(failure, Failure.of(failure), 599)
