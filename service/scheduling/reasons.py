"""The reasons why a job waits, as text for users. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from service.scheduling import capacity
from service.scheduling.capacity import UNITS, Amount, Demand, Machines


def never(demand: Demand, cluster: Machines) -> str:
    """Returns why the gang does not fit even into the empty cluster."""
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
    """Returns why the gang does not fit although the cluster has enough in total."""
    fit = capacity.room(cluster, demand.each)
    return f"the machines have room for {fit}" if fit else "no machine is large enough for one"


def not_yet(demand: Demand, machines: Machines) -> str:
    """Returns why the gang does not fit into what is free now."""
    return f"needs {_gang(demand, _short(demand, machines))}; {_free(demand, machines)}"


def _free(demand: Demand, machines: Machines) -> str:
    short = _short(demand, machines)
    free = capacity.total(machine.free for machine in machines)
    text = " and ".join(_amount(_of(free, name), name) for name in short) + " free"
    needed = demand.each * demand.least
    if all(_of(free, name) >= _of(needed, name) for name in short):
        text += f", with room for {count(capacity.room(machines, demand.each), 'worker')}"
    return text


def _short(demand: Demand, machines: Machines) -> list[str]:
    """Returns which of "gpu" and "cpu" are too few; both if only the combination does not fit."""
    asked = [name for name in ("gpu", "cpu") if _of(demand.each, name)]
    short = [name for name in asked if not demand.granted(capacity.room(machines, _only(demand.each, name)))]
    return short or asked


def _gang(demand: Demand, names: Sequence[str]) -> str:
    each = " and ".join(_amount(_of(demand.each, name), name) for name in names)
    at_least = "at least " if demand.most > demand.least else ""
    return f"{at_least}{count(demand.least, 'worker')} of {each}"


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


def count(number: int, noun: str) -> str:
    """Returns the number with its noun, in the plural unless it is 1."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
