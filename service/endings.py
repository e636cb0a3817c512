"""What the end of an attempt means for its job. Pure.

How it ended is Ray's word and the attempt's own, its verdict; why it was asked to stop is the row's state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from service.jobs import Job, State
from service.launch import Phase, Status
from training.failures import read_verdict

TAIL_LINES = 30

# What an attempt may say of itself besides that an exception ended it.
SUCCEEDED = "Succeeded"  # it had been asked to stop and came to its end all the same
STOPPED = "Stopped"  # it has saved itself, at `step`
NODES_LOST = "NodesLost"  # its gang does not fit into the machines any more


@dataclass(frozen=True, kw_only=True)
class Ending:
    """Where the job goes from here, and why."""

    state: State
    reason: str = ""
    error: dict[str, Any] | None = None
    failures: int
    """Attempts lost, this one included if it was."""


def ending(job: Job, status: Status, output: str, *, cancelled: bool) -> Ending:
    """`output` is all that the attempt printed. `cancelled`: somebody has asked for that by now."""
    verdict = _verdict(output)
    kind = verdict.get("type")
    if kind == SUCCEEDED or (status.phase is Phase.SUCCEEDED and kind != STOPPED):
        return Ending(state=State.SUCCEEDED, failures=job.failures)
    if cancelled:
        return Ending(state=State.CANCELLED, reason="cancelled while it ran", failures=job.failures)
    if kind not in {None, STOPPED, NODES_LOST}:
        return _failed(job, verdict, output)
    if job.state is State.PAUSING:
        return Ending(state=State.PAUSED, reason=_paused(verdict), failures=job.failures)
    if job.state is State.PREEMPTING:
        return Ending(state=State.QUEUED, reason=job.reason, failures=job.failures)
    return _lost(job, status, verdict, output)


def before_launch(job: Job) -> Ending:
    """The same for an attempt that is to stop and that the cluster does not know."""
    if job.cancel_requested_at is not None:
        return Ending(state=State.CANCELLED, reason="cancelled before it started", failures=job.failures)
    if job.state is State.PAUSING:
        return Ending(state=State.PAUSED, reason=_paused({}), failures=job.failures)
    return Ending(state=State.QUEUED, reason=job.reason, failures=job.failures)


def _paused(verdict: Mapping[str, Any]) -> str:
    step = verdict.get("step")
    return "paused" if step is None else f"paused at step {step}"


def _lost(job: Job, status: Status, verdict: Mapping[str, Any], output: str) -> Ending:
    retries = job.spec["retries"]
    if job.failures < retries:
        why = f" ({verdict['message']})" if verdict.get("type") == NODES_LOST else ""
        lost = job.failures + 1
        reason = f"attempt {job.attempt} was lost{why}; retry {lost} of {retries} from its checkpoint"
        return Ending(state=State.QUEUED, reason=reason, failures=lost)
    return _failed(job, verdict if verdict.get("type") == NODES_LOST else _no_word(status), output)


def _no_word(status: Status) -> dict[str, Any]:
    said = status.message.partition("\n")[0][:200]
    message = f"the attempt's driver ended without a word and no retries are left. {said}".rstrip()
    return {"type": "AttemptLost", "message": message}


def _failed(job: Job, verdict: Mapping[str, Any], output: str) -> Ending:
    tail = _tail(output)
    error = {key: verdict.get(key) for key in ("type", "message", "rank")}
    if (step := verdict.get("step")) is not None:
        error["step"] = step
    where = "" if error["rank"] is None else f" on rank {error['rank']}"
    where += "" if step is None else f" at step {step}"
    reason = f"{error['type']}{where}: {error['message']}\n\nlast lines of the log:\n{tail}"
    return Ending(state=State.FAILED, reason=reason, error={**error, "log_tail": tail}, failures=job.failures)


def _verdict(output: str) -> dict[str, Any]:
    """Empty also for what only looks like one: a log may be torn, and users' code prints what it likes.

    Of its keys `type` and `message` have to be there; others may or may not.
    """
    try:
        verdict: Any = read_verdict(output)
    except ValueError:
        return {}
    if not isinstance(verdict, dict):
        return {}
    known: dict[str, Any] = dict(verdict)
    words = isinstance(known.get("type"), str) and isinstance(known.get("message"), str)
    numbers = all(isinstance(known.get(key), int | None) for key in ("rank", "step"))
    return known if words and numbers else {}


def _tail(output: str) -> str:
    """The last lines before the verdict; what comes after it are Ray's farewells."""
    said, _, _ = f"\n{output}".partition("\nsyncbn-verdict ")
    return "\n".join(said.strip("\n").rstrip().splitlines()[-TAIL_LINES:])
