"""What the end of a start means for its job: the next state, or a restart in place. Pure.

The ranks' exit records say how the start ended. The row's state says why it was asked to stop, if it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from service.jobs.job import Job, State
from training.protocol import LONGEST_TAIL, Exit, ExitRecord, Failure, cause, finished, is_final, stopped_at
from training.spec import shown

START_TIMEOUT, NOT_ENDED = "StartTimeout", "NotEnded"
"""Types of exit records that the scheduler itself writes."""

LONGEST_REASON = 9_000
"""Maximum length of a reason, in characters."""
LONGEST_DESCRIPTION = 6_000
"""Maximum length of the failure's own text in the reason; the log's last lines get the rest."""
LONGEST_MESSAGE = 8_000
LONGEST_HEADLINE = 300

_KINDS = {
    Exit.OUT_OF_MEMORY: "OutOfMemory",
    Exit.EXITED: "Exited",
    Exit.HUNG: "Hung",
    Exit.TIMED_OUT: "TimeLimit",
}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The job's next state, and why.

    failures: starts lost so far, including this one if it was lost.
    """

    state: State
    reason: str = ""
    error: dict[str, Any] | None = None
    failures: int
    last_failure: Failure | None = None


@dataclass(frozen=True, kw_only=True)
class Restart:
    """All ranks restart on their present placement."""

    reason: str
    failures: int
    last_failure: Failure
    restarts: tuple[str, ...]


def outcome(job: Job, exits: Sequence[ExitRecord], *, cancelled: bool) -> Outcome | Restart:
    """Returns what follows for the job from the end of its latest start.

    exits: the records of all ranks, and those that the scheduler adds. cancelled: a cancel was requested.
    """
    assert job.workers is not None
    if finished(exits, job.workers):
        return Outcome(state=State.SUCCEEDED, failures=job.failures, last_failure=job.last_failure)
    if cancelled:
        return _stopped(job, State.CANCELLED, "cancelled while it ran")
    failure = cause(exits)
    if failure is not None and (why := is_final(failure, job.last_failure)) is not None:
        return _failed(job, failure, why)
    if job.state is State.PAUSING:
        return _stopped(job, State.PAUSED, _paused(failure, stopped_at(exits)), failure)
    if job.state is State.PREEMPTING:
        return _stopped(job, State.QUEUED, job.reason, failure)
    return _lost(job, exits, failure or _ended_by_others(exits))


def before_launch(job: Job) -> Outcome:
    """Returns the outcome of a start that has to stop before any of its ranks was launched."""
    if job.cancel_requested_at is not None:
        return _stopped(job, State.CANCELLED, "cancelled before it started")
    if job.state is State.PAUSING:
        return _stopped(job, State.PAUSED, "paused")
    return _stopped(job, State.QUEUED, job.reason)


def waited_too_long(job: Job, now: float) -> str:
    """Returns why a queued job that has never started is cancelled; "" if its time limit has not passed.

    now: by the queue's clock, which runs while a scheduler is at work.
    """
    limit = job.time_limit.queue
    if limit is None or job.attempt or job.waits_until is None or now < job.waits_until:
        return ""
    return f"cancelled: it waited for {shown(limit)}, its time limit in the queue (time_limit.queue)"


def start_timeout(seconds: float, message: str) -> ExitRecord:
    """Returns the record to add for a start that did not begin training within `seconds`."""
    waited = f": {message}" if message else ""
    return ExitRecord(
        rank=None,
        kind=Exit.LOST,
        type=START_TIMEOUT,
        message=f"the attempt did not start within {seconds:g} s{waited}",
    )


def not_ended(seconds: float) -> ExitRecord:
    """Returns the record to add for a start that was told to end and may still be running."""
    message = f"its ranks were told to end, but their hosts have not confirmed it for {seconds:g} s"
    return ExitRecord(rank=None, kind=Exit.LOST, type=NOT_ENDED, message=message)


def starting_again(job: Job, headline: str, failures: int) -> str:
    """Returns the reason of a job that restarts in place, after `failures` in all."""
    where = "" if job.runs_script else " from the last checkpoint"
    return f"{headline}; starting again{where} ({failures} of {_retries(job.spec['retries'])} used)"


def _stopped(job: Job, state: State, reason: str, failure: ExitRecord | None = None) -> Outcome:
    """Returns an outcome that uses no retry. A failure is remembered, to recognise it when it repeats."""
    last = job.last_failure if failure is None else Failure.of(failure)
    return Outcome(state=state, reason=reason, failures=job.failures, last_failure=last)


def _paused(failure: ExitRecord | None, step: int | None) -> str:
    if failure is not None:
        goes_on = "; continues from its last checkpoint" if failure.counts_steps else ""
        return f"paused; {_headline(failure)}{goes_on}"
    return f"paused at step {step}" if step else "paused"


def _ended_by_others(exits: Sequence[ExitRecord]) -> ExitRecord:
    """Returns the failure of ranks that were stopped or ended although the service had not asked for it."""
    step = stopped_at(exits)
    where = f" at step {step}" if step else ""
    return ExitRecord(rank=None, kind=Exit.LOST, message=f"it was ended from outside{where}", step=step or 0)


def _lost(job: Job, exits: Sequence[ExitRecord], failure: ExitRecord) -> Outcome | Restart:
    retries: int = job.spec["retries"]
    lost = job.failures + 1
    if any(record.type == NOT_ENDED for record in exits):
        # The ranks may still be running: a retry would do the same work at the same time.
        return _failed(job, failure, f"It is not retried: {_not_ended_message(exits)}.")
    if job.failures >= retries:
        return _failed(job, failure, "")
    headline, last = _headline(failure), Failure.of(failure)
    if any(record.kind is Exit.LOST for record in (*exits, failure)):
        # Its placement is incomplete by now, or always was.
        where = "" if job.runs_script else " from its checkpoint"
        reason = f"attempt {job.attempt} was lost: {headline}; retry {lost} of {retries}{where}"
        return Outcome(state=State.QUEUED, reason=reason, failures=lost, last_failure=last)
    return Restart(
        reason=starting_again(job, headline, lost),
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


def _failed(job: Job, failure: ExitRecord, why_not_retried: str) -> Outcome:
    why = [why_not_retried, _used(job.failures, job.spec["retries"])]
    return Outcome(
        state=State.FAILED,
        reason=_reason(failure, " ".join(filter(None, why))),
        error=_error(failure),
        failures=job.failures,
        last_failure=Failure.of(failure),
    )


def _reason(failure: ExitRecord, why_not_retried: str) -> str:
    """Returns what happened, why the job is not retried, and the last lines of the log; bounded in length."""
    rank = failure.rank
    full_text = "the full text is in the logs" + ("" if rank is None else f" of rank {rank}")
    description = _description(failure)
    if len(description) > LONGEST_DESCRIPTION:
        description = f"{description[:LONGEST_DESCRIPTION]}\n… ({full_text})"
    reason = f"{description}\n{why_not_retried}" if why_not_retried else description
    if tail := failure.log_tail:
        head = f"\n\nlast lines of the log{'' if rank is None else f' of rank {rank}'}:\n"
        room = LONGEST_REASON - len(reason) - len(head)
        if len(tail) > room:
            mark = f"… ({full_text})\n"
            tail = mark + tail[len(tail) - (room - len(mark)) :]
        reason += head + tail
    return reason


def _description(failure: ExitRecord) -> str:
    """Returns the headline and all lines of the message; for a hang these are the ranks' stacks."""
    _, _, more = failure.message.partition("\n")
    headline = failure.headline if failure.rank is not None else _headline(failure)
    return f"{headline}\n{more}".rstrip() if more else headline


def _headline(failure: ExitRecord) -> str:
    """Returns one line of bounded length. A message that comes from no rank is a sentence by itself."""
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
