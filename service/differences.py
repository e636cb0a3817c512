"""In what jobs differ: values of their specs by dotted key, and the spread of a value over several. Pure."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from training.metric_names import Mode, best_mode

SEED = "training.seed"
_NOT_TRAINING = ("name", "labels", "source", "priority", "retries", "time_limit")
"""Sections of a spec that change nothing about the training: jobs that differ in them are one group."""
SHOWN_DIGITS = 12
"""Of the SHA-256 of weights where there is no room for all 64."""


class Spread(NamedTuple):
    """The mean and the sample standard deviation of a value over `jobs` jobs.

    mean: None if the value of a job is not finite. deviation: None for one job.
    """

    mean: float | None
    deviation: float | None
    jobs: int

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread:
        finite = [value for value in values if value is not None]
        if len(finite) < len(values):
            return cls(None, None, len(values))
        mean = statistics.fmean(finite)
        squares = math.fsum((value - mean) ** 2 for value in finite)  # statistics.stdev is exact, and slow
        deviation = math.sqrt(squares / (len(finite) - 1)) if len(finite) > 1 else None
        return cls(mean, deviation, len(finite))


def values_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Returns every value of a spec that is neither null nor an empty mapping, by its dotted key.

    >>> values_of({"name": "a", "training": {"seed": 0, "max_steps": None}, "labels": {}})
    {'name': 'a', 'training.seed': 0}
    """
    return dict(_dotted("", spec))


def _dotted(key: str, value: object) -> Iterable[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _dotted(f"{key}.{name}" if key else str(name), inner)
    elif value is not None:
        yield key, value


def differing(jobs: Sequence[Mapping[str, Any]], sections: Sequence[str]) -> list[str]:
    """Returns the dotted keys whose values are not the same in all jobs, in order of the spec, without name.

    jobs: the values of each, as from `values_of`. sections: of the specs, in their order.
    """
    keys = dict.fromkeys(key for values in jobs for key in values if key != "name")
    found = [key for key in keys if len({_text(values.get(key)) for values in jobs}) > 1]
    return sorted(found, key=lambda key: sections.index(key.partition(".")[0]))


def training_of(values: Mapping[str, Any]) -> str:
    """Returns a text that is the same for jobs that differ in nothing of the training but the seed."""
    return _text({key: value for key, value in values.items() if _distinguishes(key)})


def _distinguishes(key: str) -> bool:
    return key != SEED and key.partition(".")[0] not in _NOT_TRAINING


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def weights_of(digests: Sequence[str | None]) -> list[str]:
    """Returns of each job "same weights" or "other weights" than the first that has any; "" of that one.

    digests: the SHA-256 of each job's weights; None of a job that has none.

    >>> weights_of([None, "a", "a", "b", None])
    ['', '', 'same weights', 'other weights', '']
    """
    known = [number for number, digest in enumerate(digests) if digest]
    same = {number: digests[number] == digests[known[0]] for number in known[1:]}
    return [
        f"{'same' if same[number] else 'other'} weights" if number in same else ""
        for number in range(len(digests))
    ]


def mode_of(values: Mapping[str, Any], metric: str) -> Mode | None:
    """Returns which value of a metric is best, as a spec with these values says, or else as its name does."""
    if values.get("training.checkpoint.monitor") == metric:
        return "max" if values.get("training.checkpoint.mode") == "max" else "min"
    return best_mode(metric)


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """Returns the shortest end of each dotted key that no other has.

    >>> short_keys(["optimizer.init_args.lr", "model.init_args.width", "training.seed"])
    {'optimizer.init_args.lr': 'lr', 'model.init_args.width': 'width', 'training.seed': 'seed'}
    """
    keys = list(keys)
    return {key: _shortest(key, [other for other in keys if other != key]) for key in keys}


def _shortest(key: str, others: list[str]) -> str:
    parts = key.split(".")
    for begin in range(len(parts) - 1, 0, -1):
        end = ".".join(parts[begin:])
        if not any(f".{other}".endswith(f".{end}") for other in others):
            return end
    return key
