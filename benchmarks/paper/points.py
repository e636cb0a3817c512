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

    def __str__(self) -> str:
        said = [f"{key.rpartition('.')[2]} {value}" for key, value in self.values.items()]
        return ", ".join([self.recipe, *said, f"seed {self.seed}"])


def points_of(recipe: str, quick: Quick | None = None, settings: Sequence[str] = ()) -> list[Point]:
    """Returns the points of a recipe by its name. settings: further assignments, as of `--set`."""
    content = dict(_mapping(load_yaml((RECIPES / f"{recipe}.yaml").read_text(encoding="utf-8"))))
    sweep = dict(content.pop("sweep"))
    spec = _mapping(override(content, [*(quick.settings if quick else ()), *settings]))
    grid = dict(sweep.get("grid", {})) | dict(quick.grid if quick else {})
    made = []
    for values in itertools.product(*grid.values()):
        at = dict(zip(grid, values, strict=True))
        for seed in range(1 if quick else sweep["repeat"]):
            changes = [f"{key}={json.dumps(value)}" for key, value in at.items()]
            point = _mapping(override(spec, [*changes, f"training.seed={seed}"]))
            made.append(Point(recipe=recipe, values=at, seed=seed, spec=point))
    return made


def _mapping(value: object) -> Mapping[str, Any]:
    assert isinstance(value, Mapping)
    return value
