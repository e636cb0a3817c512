"""What the end of a start means for its job: the next state, or a restart in place. Pure.

The ranks' exit records say how the start ended. The row's state says why it was asked to stop, if it was.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from service.jobs.failures import (
    ENDED_OUTSIDE,
    FREE,
    NOT_ENDED,
    START_TIMEOUT,
    FailureClass,
    backoff_seconds,
    class_of,
    has_progressed,
)
from service.jobs.job import BY_ITSELF, BY_SCHEDULER, BY_TIME_LIMIT, Job, State
from training.protocol import LONGEST_TAIL, Exit, ExitRecord, Failure, cause, finished, is_final, stopped_at
from training.spec import shown

BACKS_OFF = "after a wait of"
"""Part of the reason of a job that waits after a failure."""

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


_ENDED_BY = {FailureClass.USER_ERROR: BY_ITSELF, FailureClass.TIME_LIMIT: BY_TIME_LIMIT}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The job's next state, and why.

    failures: retries used so far, including one for this start. failures_in_row: starts lost without
    progress in between, including this one. backoff_seconds: how long the job waits before it may start
    again. ended_by: who ended it; None if it has not ended. weights_sha256: of the model that it delivers;
    None if it delivers none, or a script does.
    """

    state: State
    reason: str = ""
    error: dict[str, Any] | None = None
    failures: int
    last_failure: Failure | None = None
    failures_in_row: int = 0
    backoff_seconds: float = 0.0
    ended_by: str | None = None
    weights_sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Restart:
    """All ranks restart at once on their present placement."""

    reason: str
    failures: int
    failures_in_row: int
    last_failure: Failure
    restarts: tuple[str, ...]


def outcome(
    job: Job, exits: Sequence[ExitRecord], *, cancelled: bool, seconds: float = 0.0
) -> Outcome | Restart:
    """Returns what follows for the job from the end of its latest start.

    exits: the records of all ranks, and those that the scheduler adds. cancelled: a cancel was requested.
    seconds: how long the start ran.
    """
    assert job.workers is not None
    if finished(exits, job.workers):
        return Outcome(
            state=State.SUCCEEDED,
            failures=job.failures,
            last_failure=job.last_failure,
            ended_by=BY_ITSELF,
            weights_sha256=_weights(exits),
        )
    if cancelled:
        return _stopped(job, State.CANCELLED, "cancelled while it ran")
    failure = cause(exits)
    if failure is not None and (why := _final(job, failure)) is not None:
        return _failed(job, failure, why)
    if job.state is State.PAUSING:
        return _stopped(job, State.PAUSED, _paused(failure, stopped_at(exits)), failure)
    if job.state is State.PREEMPTING:
        return _stopped(job, State.QUEUED, job.reason, failure)
    return _lost(job, exits, failure or _ended_by_others(exits), seconds)


def _weights(exits: Sequence[ExitRecord]) -> str | None:
    """Returns the SHA-256 of the weights that rank 0 has delivered; None if its record has none."""
    digest = next((record.weights_sha256 for record in exits if record.rank == 0), None)
    # The record is a file that the user's code could write, and the row has to take what is in it.
    return digest if isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) else None


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


def starting_again(job: Job, headline: str, failures: int, failure: Failure | None) -> str:
    """Returns the reason of a job that restarts in place, after `failures` in all."""
    where = "" if job.runs_script else " from the last checkpoint"
    kind = "" if failure is None else f" ({class_of(failure)})"
    return f"{headline}{kind}; starting again{where} ({failures} of {_retries(job.spec['retries'])} used)"


def _stopped(job: Job, state: State, reason: str, failure: ExitRecord | None = None) -> Outcome:
    """Returns an outcome that uses no retry. A failure is remembered, to recognise it when it repeats."""
    return Outcome(
        state=state,
        reason=reason,
        failures=job.failures,
        last_failure=job.last_failure if failure is None else Failure.of(failure),
        failures_in_row=job.failures_in_row,
        ended_by=job.commanded_by if state.ended else None,
    )


def _final(job: Job, failure: ExitRecord) -> str | None:
    """Returns why a restart would only repeat a failure, as `is_final` does."""
    if class_of(failure) is not FailureClass.OUT_OF_MEMORY or failure.repeats:
        return is_final(failure, job.last_failure)
    # What can change: another placement, what else runs on its machines, and more workers, of which each has
    # a smaller share.
    may_get_more = job.elastic and (job.workers or 0) < job.most_workers
    if job.last_failure != Failure.of(failure) or not failure.counts_steps or may_get_more:
        return None
    where = f"at step {failure.step}" if failure.step else "before the first step"
    return (
        f"Its memory ran out twice {where}, the second time on a new placement: no retry. It needs a smaller "
        "training.global_batch_size, more workers, or workers with more memory (resources.memory_per_worker)."
    )


def _paused(failure: ExitRecord | None, step: int | None) -> str:
    if failure is not None:
        goes_on = "; continues from its last checkpoint" if failure.counts_steps else ""
        return f"paused; {_headline(failure)}{goes_on}"
    return f"paused at step {step}" if step else "paused"


def _ended_by_others(exits: Sequence[ExitRecord]) -> ExitRecord:
    """Returns the failure of ranks that were stopped or ended although the service had not asked for it."""
    step = stopped_at(exits)
    where = f" at step {step}" if step else ""
    message = f"it was ended from outside{where}"
    return ExitRecord(
        rank=None,
        kind=Exit.LOST,
        type=ENDED_OUTSIDE,
        message=message,
        step=step or 0,
        counts_steps=all(record.counts_steps for record in exits),
    )


def _lost(job: Job, exits: Sequence[ExitRecord], failure: ExitRecord, seconds: float) -> Outcome | Restart:
    retries: int = job.spec["retries"]
    kind = class_of(failure)
    if any(record.type == NOT_ENDED for record in exits):
        # The ranks may still be running: a retry would do the same work at the same time.
        return _failed(job, failure, f"It is not retried: {_not_ended_message(exits)}.")
    in_row = 1 if has_progressed(failure, job.last_failure, seconds) else job.failures_in_row + 1
    # Whose spec forbids retries is not started again for whatever reason.
    free = retries > 0 and kind in FREE and in_row == 1
    if job.failures >= retries and not free:
        return _failed(job, failure, "")
    used = job.failures + (not free)
    headline, last = _headline(failure), Failure.of(failure)
    wait = backoff_seconds(job.id, kind, in_row)
    # With a lost host its placement is incomplete by now, or always was. While it waits others may use it.
    if wait or any(record.kind is Exit.LOST for record in (*exits, failure)):
        return Outcome(
            state=State.QUEUED,
            reason=_requeued(job, headline, kind, used, free=free, wait=wait),
            failures=used,
            last_failure=last,
            failures_in_row=in_row,
            backoff_seconds=wait,
        )
    return Restart(
        reason=starting_again(job, headline, used, last),
        failures=used,
        failures_in_row=in_row,
        last_failure=last,
        restarts=(*job.restarts, headline),
    )


def _requeued(job: Job, headline: str, kind: FailureClass, used: int, *, free: bool, wait: float) -> str:
    """Returns the reason of a job that goes back to the queue after a failure."""
    where = "" if job.runs_script else " from its checkpoint"
    retry = (
        f"starts again{where}; this uses no retry"
        if free
        else f"retry {used} of {job.spec['retries']}{where}"
    )
    waits = f", {waits_before_start(wait)}" if wait else ""
    return f"attempt {job.attempt} was lost: {headline} ({kind}); {retry}{waits}"


def waits_before_start(seconds: float) -> str:
    """Returns what is said of a job that waits after a failure."""
    return f"{BACKS_OFF} {seconds:.0f} s"


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
        failures_in_row=job.failures_in_row + 1,
        ended_by=_ENDED_BY.get(class_of(failure), BY_SCHEDULER),
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
        "kind": str(class_of(failure)),
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
