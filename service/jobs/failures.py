"""The classes of failures, and how long a job waits before it is started again after one. Pure.

    class            first wait   then                 uses a retry
    user_error       none         10 s, 20 s, … 300 s  yes; one that comes again at the same step ends the job
    out_of_memory    30 s         60 s, … 600 s        yes; only if the next start can have more memory
    node_lost        none         10 s, … 300 s        only without progress since the failure before
    preempted        none         10 s, … 300 s        only without progress since the failure before
    hang             none         10 s, … 300 s        yes
    infrastructure   none         10 s, … 300 s        yes
    time_limit       never started again

A wait is longer with each failure in a row, that is without progress in between, and differs by up to a
quarter from job to job, so that jobs that failed together do not start together.
"""

from __future__ import annotations

import enum
import hashlib

from training.protocol import Exit, ExitRecord, Failure

START_TIMEOUT, NOT_ENDED, ENDED_OUTSIDE = "StartTimeout", "NotEnded", "Preempted"
"""Types of exit records that the scheduler itself writes."""

SECONDS_OF_PROGRESS = 600.0
"""A script, whose steps are not known, has made progress if it ran for this long."""

_FIRST_WAIT, _LONGEST_WAIT, _LONGEST_FOR_MEMORY = 10.0, 300.0, 600.0
_FIRST_FOR_MEMORY = 30.0
_JITTER = 0.25
_OUT_OF_MEMORY = frozenset({"OutOfMemoryError", "MemoryError"})
"""Types of exceptions: torch's for a device, and Python's."""
_CRASHES = frozenset({"SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE", "SIGSYS", "SIGTRAP"})
"""Signals that a program gets for what it did itself."""


class FailureClass(enum.StrEnum):
    """What a failure is due to."""

    USER_ERROR = "user_error"
    """The job's own code: an exception, an exit code, a crash."""
    OUT_OF_MEMORY = "out_of_memory"
    """The memory of a machine or of a device ran out."""
    NODE_LOST = "node_lost"
    """A machine, or the host agent there, is gone."""
    HANG = "hang"
    """A rank made no progress for too long."""
    PREEMPTED = "preempted"
    """Something outside the service ended the ranks, as a cluster does that takes a machine back."""
    INFRASTRUCTURE = "infrastructure"
    """Neither the job's code nor a lost machine: a start that took too long, a connection, a kill."""
    TIME_LIMIT = "time_limit"
    """The job's own limit."""


FREE = frozenset({FailureClass.NODE_LOST, FailureClass.PREEMPTED})
"""Classes that use a retry only if the job has made no progress since the failure before."""

_OF_EXIT = {
    Exit.EXITED: FailureClass.USER_ERROR,
    Exit.OUT_OF_MEMORY: FailureClass.OUT_OF_MEMORY,
    Exit.HUNG: FailureClass.HANG,
    Exit.TIMED_OUT: FailureClass.TIME_LIMIT,
}
_OF_LOSS = {
    START_TIMEOUT: FailureClass.INFRASTRUCTURE,
    NOT_ENDED: FailureClass.INFRASTRUCTURE,
    ENDED_OUTSIDE: FailureClass.PREEMPTED,
}


def class_of(failure: Failure | ExitRecord) -> FailureClass:
    """Returns the class of a failure."""
    kind = Exit(failure.kind)
    if kind is Exit.LOST:
        return _OF_LOSS.get(failure.type, FailureClass.NODE_LOST)
    if kind is Exit.SIGNAL:
        return FailureClass.USER_ERROR if failure.type in _CRASHES else FailureClass.INFRASTRUCTURE
    if kind is Exit.ERROR and failure.type in _OUT_OF_MEMORY:
        return FailureClass.OUT_OF_MEMORY
    if kind is Exit.ERROR:
        return FailureClass.INFRASTRUCTURE if failure.lost_peer else FailureClass.USER_ERROR
    return _OF_EXIT.get(kind, FailureClass.INFRASTRUCTURE)


def has_progressed(failure: ExitRecord, before: Failure | None, seconds: float) -> bool:
    """Returns whether a job has made progress since the failure before. seconds: how long the start ran."""
    if before is None:
        return True
    if not failure.counts_steps:
        return seconds >= SECONDS_OF_PROGRESS
    return failure.step > before.step


def backoff_seconds(job_id: str, kind: FailureClass, number: int) -> float:
    """Returns how long a job waits after its failure of that number in a row, from 1; 0.0: not at all.

    The same job waits equally long for the same number.

    >>> backoff_seconds("j", FailureClass.HANG, 1)
    0.0
    """
    memory = kind is FailureClass.OUT_OF_MEMORY
    first, longest = (_FIRST_FOR_MEMORY, _LONGEST_FOR_MEMORY) if memory else (_FIRST_WAIT, _LONGEST_WAIT)
    doublings = number - (1 if memory else 2)
    if doublings < 0:
        return 0.0
    wait = min(first * 2.0 ** min(doublings, 30), longest)
    return round(wait * (1 - _JITTER + 2 * _JITTER * _fraction(f"{job_id}-{number}")), 1)


def _fraction(text: str) -> float:
    """Returns a number from 0 to 1 that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) / 2**32
