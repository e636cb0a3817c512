"""The reasons why a job waits, as text for users. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from service.scheduling import capacity
from service.scheduling.capacity import UNITS, Amount, Demand, Labels, Machine, Machines
from training.spec import shown_memory


def never(demand: Demand, cluster: Machines) -> str:
    """Returns why the gang does not fit even into the empty cluster."""
    if not cluster:
        return "no machine in the cluster yet"
    labels = demand.worker.labels
    matching = _matching(labels, cluster)
    if not matching:
        return f"needs machines with {_labels(labels)}; {_nearest(labels, cluster)}"
    short = _short(demand, matching)
    needed, there = demand.each * demand.least, capacity.total(machine.total for machine in matching)
    missing = [name for name in short if _of(needed, name) > _of(there, name)]
    if missing:
        name = missing[0]
        fewer = "fewer workers" if demand.least > 1 else "less"
        whole = f"the machines with {_labels(labels)} have" if labels else "the whole cluster has"
        return (
            f"needs {_amount(_of(needed, name), name)} ({_gang(demand, [name])}); "
            f"{whole} {_number(_of(there, name), name) if _of(there, name) else 'none'}: "
            f"ask for {fewer}, or add machines"
        )
    return f"needs {_gang(demand, short)}; {_split_up(demand, matching)}: ask for less, or add machines"


def _matching(labels: Labels, machines: Machines) -> Machines:
    return tuple(machine for machine in machines if labels <= machine.labels)


def _labels(labels: Labels) -> str:
    return " and ".join(f"the label {name}={value}" for name, value in sorted(labels))


def _nearest(labels: Labels, cluster: Machines) -> str:
    """Returns which values machines have for the labels that none has."""
    for name, value in sorted(labels):
        if not _matching(frozenset({(name, value)}), cluster):
            values = sorted({had for machine in cluster for label, had in machine.labels if label == name})
            if values:
                return f"in this cluster {name} is {' or '.join(values)}"
            return f"no machine has a label {name}; labels are given with `ray start --labels {name}=…`"
    return "no machine has all of them"


def _split_up(demand: Demand, machines: Sequence[Machine]) -> str:
    """Returns why the gang does not fit although the machines have enough in total."""
    fit = capacity.room(machines, demand.worker)
    return f"the machines have room for {fit}" if fit else "no machine is large enough for one"


def not_yet(demand: Demand, machines: Machines) -> str:
    """Returns why the gang does not fit into what is free now."""
    labels = demand.worker.labels
    matching = _matching(labels, machines)
    where = f" on machines with {_labels(labels)}" if labels else ""
    return f"needs {_gang(demand, _short(demand, matching))}; {_free(demand, matching)}{where}"


def _free(demand: Demand, machines: Machines) -> str:
    short = _short(demand, machines)
    free = capacity.total(machine.free for machine in machines)
    text = " and ".join(_amount(_of(free, name), name) for name in short) + " free"
    needed = demand.each * demand.least
    if all(_of(free, name) >= _of(needed, name) for name in short):
        text += f", with room for {count(capacity.room(machines, demand.worker), 'worker')}"
    return text


def _short(demand: Demand, machines: Machines) -> list[str]:
    """Returns which of "gpu", "cpu" and "memory" are too little; all if only the combination does not fit."""
    asked = [name for name in ("gpu", "cpu", "memory") if _of(demand.each, name)]
    short = [name for name in asked if not demand.granted(_room_for(demand, name, machines))]
    return short or asked


def _room_for(demand: Demand, name: str, machines: Machines) -> int:
    amount = Amount(**{_FIELDS[name]: _of(demand.each, name)})
    return capacity.room(machines, replace(demand.worker, amount=amount))


def _gang(demand: Demand, names: Sequence[str]) -> str:
    each = " and ".join(_amount(_of(demand.each, name), name) for name in names)
    at_least = "at least " if demand.most > demand.least else ""
    return f"{at_least}{count(demand.least, 'worker')} of {each}"


_FIELDS = {"gpu": "gpus", "cpu": "cpus", "memory": "memory"}


def _of(amount: Amount, name: str) -> int:
    value: int = getattr(amount, _FIELDS[name])
    return value


def _amount(units: int, name: str) -> str:
    if name == "memory":
        return f"{_number(units, name)} of memory"
    return f"{_number(units, name)} {name.upper()}{'' if units == UNITS else 's'}"


def _number(units: int, name: str) -> str:
    """
    >>> _number(40_000, "cpu"), _number(3_333, "gpu"), _number(3 * 2**29, "memory")
    ('4', '0.3333', '1.5 GiB')
    """
    if name == "memory":
        return shown_memory(units)
    whole, rest = divmod(units, UNITS)
    return f"{whole}.{rest:04}".rstrip("0") if rest else str(whole)


def count(number: int, noun: str) -> str:
    """Returns the number with its noun, in the plural unless it is 1."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
