"""The points of an experiment: a recipe's spec for each combination of its sweep's values and each seed."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.spec import load_yaml, override

RECIPES = Path(__file__).parents[2] / "training" / "recipes" / "paper"
EXPERIMENT = "paper"
"""The experiment in MLflow, as in the recipes."""
SEED = "training.seed"
DIGEST = "paper.point"
"""The tag in MLflow that says which point a run is of."""


@dataclass(frozen=True, kw_only=True)
class Quick:
    """How a recipe becomes small: assignments as of `--set`, and other values of the sweep. One seed."""

    settings: Sequence[str] = ()
    grid: Mapping[str, Sequence[Any]] = ()  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class Point:
    """values: of the sweep's keys. spec: of the job, without labels. digest: of the spec."""

    recipe: str
    values: Mapping[str, Any]
    seed: int
    spec: Mapping[str, Any]

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.spec, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def workers(self) -> int:
        return int(self.spec["resources"]["workers"])

    def __str__(self) -> str:
        said = [f"{key.rpartition('.')[2]} {value}" for key, value in self.values.items()]
        return ", ".join([self.recipe, *said, f"seed {self.seed}"])


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The sweep of one recipe. spec: of a job, before values are set. repeat: number of seeds, from 0."""

    recipe: str
    spec: Mapping[str, Any]
    grid: Mapping[str, Sequence[Any]]
    repeat: int
    max_running: int | None

    def sweep(self) -> dict[str, Any]:
        """Returns the body of `POST /v1/sweeps`."""
        made = {
            "name": self.recipe,
            "spec": self.spec,
            "repeat": self.repeat,
            "max_running": self.max_running,
        }
        return made | ({"grid": self.grid} if self.grid else {})

    def points(self) -> list[Point]:
        """Returns the points in the order of a sweep: seeds change first, then the last key."""
        made = []
        for values in itertools.product(*self.grid.values()):
            at = dict(zip(self.grid, values, strict=True))
            changes = [f"{key}={json.dumps(value)}" for key, value in at.items()]
            for seed in range(self.repeat):
                spec = _mapping(override(self.spec, [*changes, f"{SEED}={seed}"]))
                made.append(Point(recipe=self.recipe, values=at, seed=seed, spec=spec))
        return made


def plan_of(recipe: str, quick: Quick | None = None, settings: Sequence[str] = ()) -> Plan:
    """Returns the sweep of a recipe by its name. settings: further assignments, as of `--set`."""
    content = dict(_mapping(load_yaml((RECIPES / f"{recipe}.yaml").read_text(encoding="utf-8"))))
    sweep = dict(content.pop("sweep"))
    return Plan(
        recipe=recipe,
        spec=_mapping(override(content, [*(quick.settings if quick else ()), *settings])),
        grid=dict(sweep.get("grid", {})) | dict(quick.grid if quick else {}),
        repeat=1 if quick else sweep["repeat"],
        max_running=sweep.get("max_running"),
    )


def _mapping(value: object) -> Mapping[str, Any]:
    assert isinstance(value, Mapping)
    return value
