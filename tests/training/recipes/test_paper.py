"""The recipes of the paper's experiments are specs, and so is every point of their sweeps."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from training.model.instantiate import construct, typed_arguments
from training.spec import load_yaml, override, parse_spec

RECIPES = sorted((Path(__file__).parents[3] / "training" / "recipes" / "paper").glob("*.yaml"))


def test_every_experiment_has_a_recipe() -> None:
    assert {path.stem for path in RECIPES} >= {"figure_1", "learning_rates", "shift", "identity", "inference"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_each_point_of_the_sweep_is_a_spec_whose_model_and_callbacks_can_be_built(path: Path) -> None:
    content: Any = load_yaml(path.read_text())
    sweep: Mapping[str, Any] = content.pop("sweep")
    grid: Mapping[str, Any] = sweep.get("grid", {})

    assert sweep.keys() <= {"grid", "repeat", "max_running"}
    for values in itertools.product(*grid.values()):
        changes = [f"{key}={json.dumps(value)}" for key, value in zip(grid, values, strict=True)]
        spec = parse_spec(override(content, changes))
        needed = spec.resources.max_workers * spec.resources.cpus_per_worker * sweep["max_running"]
        assert needed <= 2, "it has to run on two CPUs"
        construct(spec.trained()[0], "model")
    for key, part in spec.trainer.components().items():
        made = {"callbacks": [{"class_path": part.class_path, "init_args": part.init_args}]}
        from lightning.pytorch import Trainer

        assert len(typed_arguments(Trainer, made, key)["callbacks"]) == 1
