"""What the end of an attempt's start means for its job. Pure.

How it ended is what the exit records of its ranks say; why it was asked to stop is the row's state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from service.jobs.job import Job, State
from training.protocol import LONGEST_TAIL, Exit, ExitRecord, Failure, cause, finished, is_final, stopped_at

START_TIMEOUT, NOT_ENDED = "StartTimeout", "NotEnded"
"""Types of records that the scheduler makes itself."""

LONGEST_REASON = 9_000
LONGEST_SAID = 6_000
"""Characters of a reason, and of what in it the failure itself says; the rest of it is the log's."""
LONGEST_MESSAGE = 8_000
LONGEST_HEADLINE = 300

_KINDS = {
    Exit.OUT_OF_MEMORY: "OutOfMemory",
    Exit.EXITED: "Exited",
    Exit.HUNG: "Hung",
}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Where the job goes from here, and why. `failures`: starts lost, this one included if it was."""

    state: State
    reason: str = ""
    error: dict[str, Any] | None = None
    failures: int
    last_failure: Failure | None = None


@dataclass(frozen=True, kw_only=True)
class Restart:
    """All ranks are started again where they are."""

    reason: str
    failures: int
    last_failure: Failure
    restarts: tuple[str, ...]


def outcome(job: Job, exits: Sequence[ExitRecord], *, cancelled: bool) -> Outcome | Restart:
    """`exits`: of all ranks, and what the scheduler adds. `cancelled`: somebody has asked for that by now."""
    assert job.workers is not None
    if finished(exits, job.workers):
        return Outcome(state=State.SUCCEEDED, failures=job.failures, last_failure=job.last_failure)
    if cancelled:
        return _stops(job, State.CANCELLED, "cancelled while it ran")
    failure = cause(exits)
    if failure is not None and (why := is_final(failure, job.last_failure)) is not None:
        return _failed(job, failure, why)
    if job.state is State.PAUSING:
        return _stops(job, State.PAUSED, _paused(failure, stopped_at(exits)), failure)
    if job.state is State.PREEMPTING:
        return _stops(job, State.QUEUED, job.reason, failure)
    return _lost(job, exits, failure or _ended_by_others(exits))


def before_launch(job: Job) -> Outcome:
    """The same for a start that is to stop and of which no rank has been launched."""
    if job.cancel_requested_at is not None:
        return _stops(job, State.CANCELLED, "cancelled before it started")
    if job.state is State.PAUSING:
        return _stops(job, State.PAUSED, "paused")
    return _stops(job, State.QUEUED, job.reason)


def start_timeout(seconds: float, message: str) -> ExitRecord:
    """What is to be added to the records of a start that did not come to train in time."""
    waited = f": {message}" if message else ""
    return ExitRecord(
        rank=None,
        kind=Exit.LOST,
        type=START_TIMEOUT,
        message=f"the attempt did not start within {seconds:g} s{waited}",
    )


def not_ended(seconds: float) -> ExitRecord:
    """What is to be added to the records of a start that goes on, or may go on, though it was ended."""
    message = f"its ranks were told to end, and their hosts have not said for {seconds:g} s that they have"
    return ExitRecord(rank=None, kind=Exit.LOST, type=NOT_ENDED, message=message)


def starting_again(headline: str, failures: int, retries: int) -> str:
    return f"{headline}; starting again from the last checkpoint ({failures} of {_retries(retries)} used)"


def _stops(job: Job, state: State, reason: str, failure: ExitRecord | None = None) -> Outcome:
    """No retry is used up; a failure on the way is remembered, so that it is known when it comes again."""
    last = job.last_failure if failure is None else Failure.of(failure)
    return Outcome(state=state, reason=reason, failures=job.failures, last_failure=last)


def _paused(failure: ExitRecord | None, step: int | None) -> str:
    if failure is not None:
        return f"paused; {_headline(failure)}; goes on from its last checkpoint"
    return f"paused at step {step}" if step else "paused"


def _ended_by_others(exits: Sequence[ExitRecord]) -> ExitRecord:
    """Ranks that were stopped or ended though nobody here had asked for it."""
    step = stopped_at(exits)
    where = f" at step {step}" if step else ""
    return ExitRecord(rank=None, kind=Exit.LOST, message=f"it was ended from outside{where}", step=step or 0)


def _lost(job: Job, exits: Sequence[ExitRecord], failure: ExitRecord) -> Outcome | Restart:
    retries: int = job.spec["retries"]
    lost = job.failures + 1
    if any(record.type == NOT_ENDED for record in exits):
        # What may still be at work must not be followed by another that does the same work.
        return _failed(job, failure, f"It is not tried again: {_not_ended_message(exits)}.")
    if job.failures >= retries:
        return _failed(job, failure, "")
    headline, last = _headline(failure), Failure.of(failure)
    if any(record.kind is Exit.LOST for record in (*exits, failure)):
        # Its placement is not whole any more, or never was.
        reason = f"attempt {job.attempt} was lost: {headline}; retry {lost} of {retries} from its checkpoint"
        return Outcome(state=State.QUEUED, reason=reason, failures=lost, last_failure=last)
    return Restart(
        reason=starting_again(headline, lost, retries),
        failures=lost,
        last_failure=last,
        restarts=(*job.restarts, headline),
    )


def _not_ended_message(exits: Sequence[ExitRecord]) -> str:
    return next(record.message for record in exits if record.type == NOT_ENDED)


def _used(failures: int, retries: int) -> str:
    """
    >>> _used(0, 3), _used(1, 3), _used(3, 3)
    ('', '1 of 3 retries was used.', '3 of 3 retries were used.')
    """
    if not failures:
        return ""
    return f"{failures} of {_retries(retries)} {'was' if failures == 1 else 'were'} used."


def _retries(number: int) -> str:
    return f"{number} {'retry' if number == 1 else 'retries'}"


def _failed(job: Job, failure: ExitRecord, why_not_again: str) -> Outcome:
    why = [why_not_again, _used(job.failures, job.spec["retries"])]
    return Outcome(
        state=State.FAILED,
        reason=_reason(failure, " ".join(filter(None, why))),
        error=_error(failure),
        failures=job.failures,
        last_failure=Failure.of(failure),
    )


def _reason(failure: ExitRecord, why_not_again: str) -> str:
    """What happened, why that is the end, and the last lines of the log, of a bounded length."""
    rank = failure.rank
    whole = "the whole is in the logs" + ("" if rank is None else f" of rank {rank}")
    said = _said(failure)
    if len(said) > LONGEST_SAID:
        said = f"{said[:LONGEST_SAID]}\n… ({whole})"
    reason = f"{said}\n{why_not_again}" if why_not_again else said
    if tail := failure.log_tail:
        head = f"\n\nlast lines of the log{'' if rank is None else f' of rank {rank}'}:\n"
        room = LONGEST_REASON - len(reason) - len(head)
        if len(tail) > room:
            mark = f"… ({whole})\n"
            tail = mark + tail[len(tail) - (room - len(mark)) :]
        reason += head + tail
    return reason


def _said(failure: ExitRecord) -> str:
    """The headline with all lines of the message: those of a hang are the stacks of the ranks."""
    _, _, more = failure.message.partition("\n")
    headline = failure.headline if failure.rank is not None else _headline(failure)
    return f"{headline}\n{more}".rstrip() if more else headline


def _headline(failure: ExitRecord) -> str:
    """A line of bounded length; what no rank has said is a sentence of its own."""
    line = failure.message.partition("\n")[0] if failure.rank is None else failure.headline
    return line if len(line) <= LONGEST_HEADLINE else line[: LONGEST_HEADLINE - 1] + "…"


def _error(failure: ExitRecord) -> dict[str, Any]:
    kind = failure.kind
    known: dict[str, Any] = {
        "type": _KINDS.get(kind) or failure.type or "Lost",
        "message": (failure.message or failure.headline)[:LONGEST_MESSAGE],
        "rank": failure.blamed_rank if kind is Exit.HUNG else failure.rank,
    }
    if failure.step:
        known["step"] = failure.step
    if failure.code is not None:
        known["code"] = failure.code
    if kind in {Exit.SIGNAL, Exit.OUT_OF_MEMORY}:
        known["signal"] = failure.type
    return {**known, "log_tail": failure.log_tail[-LONGEST_TAIL:]}
