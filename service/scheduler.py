"""Who starts now, with how many workers, and what the others wait for. Pure.

Gangs: a job starts with all of its workers or not at all. Order is strict (priority, then age): a job that
does not fit yet holds up those behind it, or a stream of small jobs would starve it. One that could not
fit even if the cluster were empty holds up nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from service import capacity
from service.capacity import UNITS, Amount, Demand, Machines
from service.jobs import Job, new_job
from service.launch import Node
from training.spec import Spec


@dataclass(frozen=True, kw_only=True)
class Start:
    """Launch this job with so many workers."""

    job_id: str
    workers: int


@dataclass(frozen=True, kw_only=True)
class Wait:
    """This job waits; `never`: until machines are added, it cannot start at all."""

    job_id: str
    reason: str
    never: bool = False


def schedule(queue: Sequence[Job], active: Sequence[Job], nodes: Sequence[Node]) -> list[Start | Wait]:
    """A decision for every job of the queue, in scheduling order. The same input gives the same answer.

    `active` are the jobs that hold their workers already, `nodes` the machines with all they have.
    """
    cluster, machines = capacity.empty(nodes), capacity.occupied(nodes, active)
    decisions: list[Start | Wait] = []
    ahead = 0
    for job in sorted(queue, key=lambda job: (-job.priority, job.id)):
        demand = Demand.of(job)
        decision, machines = _decide(job, demand, machines, cluster, ahead)
        ahead += isinstance(decision, Wait) and not decision.never
        decisions.append(decision)
    return decisions


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What would become of a job that is submitted now. `workers`: granted at once, or asked for at least."""

    fits_now: bool
    fits_ever: bool
    workers: int
    reason: str


def outlook(
    spec: Spec, queue: Sequence[Job], active: Sequence[Job], nodes: Sequence[Node], *, now: datetime
) -> Outlook:
    """`schedule`'s answer for a job that does not exist yet."""
    job = new_job(spec, created_at=now)
    (decision,) = (d for d in schedule([*queue, job], active, nodes) if d.job_id == job.id)
    if isinstance(decision, Start):
        return Outlook(fits_now=True, fits_ever=True, workers=decision.workers, reason="")
    least = spec.resources.min_workers
    return Outlook(fits_now=False, fits_ever=not decision.never, workers=least, reason=decision.reason)


def _decide(
    job: Job, demand: Demand, machines: Machines, cluster: Machines, ahead: int
) -> tuple[Start | Wait, Machines]:
    if not demand.granted(capacity.room(cluster, demand.each)):
        return Wait(job_id=job.id, reason=_never(demand, cluster), never=True), machines
    workers = demand.granted(capacity.room(machines, demand.each))
    if not workers:
        return Wait(job_id=job.id, reason=_not_yet(demand, machines, ahead)), machines
    if ahead:
        return Wait(job_id=job.id, reason=f"waits behind {_count(ahead, 'job')}"), machines
    machines, _ = capacity.place(machines, demand.each, workers)
    return Start(job_id=job.id, workers=workers), machines


# The reasons, in words


def _never(demand: Demand, cluster: Machines) -> str:
    if not cluster:
        return "no machine in the cluster yet"
    short = _short(demand, cluster)
    needed, there = demand.each * demand.least, capacity.total(machine.total for machine in cluster)
    missing = [name for name in short if _of(needed, name) > _of(there, name)]
    if missing:
        name = missing[0]
        fewer = "fewer workers" if demand.least > 1 else "less"
        return (
            f"needs {_amount(_of(needed, name), name)} ({_gang(demand, [name])}); "
            f"the whole cluster has {_number(_of(there, name)) if _of(there, name) else 'none'}: "
            f"ask for {fewer}, or add machines"
        )
    return f"needs {_gang(demand, short)}; {_split_up(demand, cluster)}: ask for less, or add machines"


def _split_up(demand: Demand, cluster: Machines) -> str:
    """Enough in sum, but not where it is needed."""
    fit = capacity.room(cluster, demand.each)
    return f"the machines have place for {fit}" if fit else "no machine is large enough for one"


def _not_yet(demand: Demand, machines: Machines, ahead: int) -> str:
    parts = [f"needs {_gang(demand, _short(demand, machines))}", _free(demand, machines)]
    if ahead:
        parts.append(f"{_count(ahead, 'job')} ahead")
    return "; ".join(parts)


def _free(demand: Demand, machines: Machines) -> str:
    short = _short(demand, machines)
    free = capacity.total(machine.free for machine in machines)
    text = " and ".join(_amount(_of(free, name), name) for name in short) + " free"
    needed = demand.each * demand.least
    if all(_of(free, name) >= _of(needed, name) for name in short):
        text += f", with place for {_count(capacity.room(machines, demand.each), 'worker')}"
    return text


def _short(demand: Demand, machines: Machines) -> list[str]:
    """What there is too little of; where only both together are too much, both."""
    asked = [name for name in ("gpu", "cpu") if _of(demand.each, name)]
    short = [name for name in asked if not demand.granted(capacity.room(machines, _only(demand.each, name)))]
    return short or asked


def _gang(demand: Demand, names: Sequence[str]) -> str:
    each = " and ".join(_amount(_of(demand.each, name), name) for name in names)
    at_least = "at least " if demand.most > demand.least else ""
    return f"{at_least}{_count(demand.least, 'worker')} of {each}"


def _of(amount: Amount, name: str) -> int:
    return amount.gpus if name == "gpu" else amount.cpus


def _only(amount: Amount, name: str) -> Amount:
    return replace(amount, cpus=0) if name == "gpu" else replace(amount, gpus=0)


def _amount(units: int, name: str) -> str:
    return f"{_number(units)} {name.upper()}{'' if units == UNITS else 's'}"


def _number(units: int) -> str:
    """
    >>> _number(40_000), _number(3_333)
    ('4', '0.3333')
    """
    whole, rest = divmod(units, UNITS)
    return f"{whole}.{rest:04}".rstrip("0") if rest else str(whole)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
