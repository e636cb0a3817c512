from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from training.spec import SpecError, override
from training.spec.sweep import RandomPoints, SweepPlan, SweepPoint, ValueRange, expanded

DOCUMENT = {
    "name": "digits",
    "model": {"class_path": "training.models.ConvNet"},
    "data": {"class_path": "training.data.Digits"},
}
LR = "optimizer.init_args.lr"


def points(document: dict[str, Any] | None = None, name: str = "", **plan: Any) -> list[SweepPoint]:
    return expanded(document or DOCUMENT, SweepPlan(**plan), name=name)[0]


def values(*args: Any, **plan: Any) -> list[tuple[Any, ...]]:
    return [tuple(point.values.values()) for point in points(*args, **plan)]


def problems(**plan: Any) -> list[tuple[str, str]]:
    with pytest.raises(SpecError) as error:
        points(**plan)
    return [(problem.key, problem.message) for problem in error.value.problems]


def test_points_are_all_combinations_of_grid_draws_and_seeds() -> None:
    plan: dict[str, Any] = {
        "grid": {LR: [0.1, 0.01], "training.global_batch_size": [32, 64]},
        "repeat": [5, 7],
    }

    assert values(**plan) == [(lr, size, seed) for lr in (0.1, 0.01) for size in (32, 64) for seed in (5, 7)]
    random = {"count": 2, "space": {"priority": {"min": 0, "max": 900}}}
    assert len(values(**plan, random=random)) == 16
    found = points(**plan)
    assert [point.spec.name for point in found] == [f"digits-{number}" for number in range(1, 9)]
    assert [point.number for point in found] == list(range(1, 9))
    assert found[1].spec.optimizer is not None
    assert found[1].spec.optimizer.init_args == {"lr": 0.1}
    assert (found[1].spec.training.seed, found[1].spec.training.global_batch_size) == (7, 32)


def test_points_with_the_same_spec_are_one() -> None:
    assert values(grid={"training.max_epochs": [10, 3, 10]}) == [(10,), (3,)]  # the default is 10
    assert len(points(random={"count": 50, "space": {"training.seed": {"min": 1, "max": 3}}})) == 3


def test_a_number_of_seeds_begins_with_that_of_the_spec() -> None:
    assert values(repeat=3) == [(0,), (1,), (2,)]
    assert values({**DOCUMENT, "training": {"seed": 4}}, repeat=2) == [(4,), (5,)]


def test_a_configuration_of_lightning_has_its_seed_replaced() -> None:
    found = points({**DOCUMENT, "seed_everything": 42, "trainer": {"max_epochs": 1}}, repeat=2)

    assert [point.spec.training.seed for point in found] == [42, 43]


@pytest.mark.parametrize("place", ["2", "-1", "x"])
def test_a_place_that_a_list_does_not_have_is_refused(place: str) -> None:
    with pytest.raises(SpecError, match=rf"metrics\.{place}: .*no place in a list; it has 2 items"):
        override({"metrics": [1, 2]}, [f"metrics.{place}=3"])


def test_a_number_in_a_key_is_an_index_of_a_list() -> None:
    document = {**DOCUMENT, "trainer": {"callbacks": [{"class_path": "EarlyStopping", "init_args": {}}]}}

    (point,) = points(document, grid={"trainer.callbacks.0.init_args.patience": [7]})

    assert point.spec.trainer.model_dump()["callbacks"][0]["init_args"]["patience"] == 7


def test_a_sweep_may_have_its_own_name() -> None:
    assert points(name="lr", repeat=1)[0].spec.name == "lr-1"
    assert points({**DOCUMENT, "name": ""}, repeat=1)[0].spec.name == "ConvNet-1"
    assert len(points(name="x" * 190, repeat=1000)[-1].spec.name) == 195


def test_draws_are_the_same_for_ever_and_do_not_depend_on_one_another() -> None:
    space: dict[str, list[Any] | ValueRange] = {
        "a": ValueRange(min=1e-4, max=1e-1, log=True),
        "b": ValueRange(min=1, max=8),
        "c": ["x", "y", "z"],
        "d": ValueRange(min=0, max=0.5),
        "e": ValueRange(min=1, max=1024, log=True),
    }

    drawn = list(RandomPoints(count=3, seed=0, space=space).draws())

    assert drawn == [
        {"a": 0.0019392, "b": 6, "c": "x", "d": 0.298557, "e": 280},
        {"a": 0.020018, "b": 6, "c": "z", "d": 0.463533, "e": 21},
        {"a": 0.000110261, "b": 7, "c": "x", "d": 0.155869, "e": 17},
    ]
    alone = list(RandomPoints(count=2, seed=0, space={"b": space["b"]}).draws())
    assert alone == [{"b": each["b"]} for each in drawn[:2]]
    assert list(RandomPoints(count=3, seed=1, space=space).draws()) != drawn


@given(
    low=st.floats(1e-6, 1e6),
    factor=st.floats(1, 1e6),
    share=st.floats(0, 1, exclude_max=True),
    log=st.booleans(),
)
def test_a_draw_lies_in_its_range(low: float, factor: float, share: float, log: bool) -> None:
    drawn = ValueRange(min=low, max=low * factor, log=log).at(share)
    whole = ValueRange(min=math.ceil(low), max=math.ceil(low * factor), log=log).at(share)

    assert low <= drawn <= low * factor
    assert isinstance(whole, int)
    assert math.ceil(low) <= whole <= math.ceil(low * factor)


def test_a_logarithmic_range_is_drawn_evenly_on_its_scale() -> None:
    exact = ValueRange(min=1e-4, max=1.0, log=True)

    assert [exact.at(share) for share in (0, 0.25, 0.5, 0.75)] == [1e-4, 1e-3, 1e-2, 1e-1]
    assert [ValueRange(min=0, max=3).at(share) for share in (0, 0.25, 0.5, 0.99)] == [0, 1, 2, 3]


def test_an_invalid_point_is_named_with_its_key() -> None:
    assert problems(grid={"training.global_batch_size": [1, 8], "resources.workers": [2, 1]}) == [
        (
            "training.global_batch_size",
            "1 samples cannot be shared by 2 workers; give at least 2, or lower resources.workers (point 1: "
            "training.global_batch_size=1, resources.workers=2)",
        )
    ]
    ((key, message),) = problems(grid={"training.max_epoch": [1]}, repeat=3)
    assert (key, message) == ("training.max_epoch", "unknown key; did you mean max_epochs?")
    ((key, message),) = problems(grid={"training.precision": ["64-true", "7-true"]}, repeat=3)
    assert key == "training.precision"
    assert message.endswith("(point 4 and 2 more: training.precision=7-true, training.seed=0)")


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        ({}, "give grid, random or repeat"),
        ({"grid": {"name": ["a"]}}, "the points are named after the sweep"),
        ({"grid": {"tracking.experiment": ["a"]}}, "all runs of a sweep are in one experiment"),
        ({"grid": {"tracking": [{"experiment": "a"}]}}, "all runs of a sweep are in one experiment"),
        ({"grid": {"training.seed": [1]}, "repeat": 2}, "training.seed is given twice"),
        ({"grid": {"training": [{}], "training.seed": [1]}}, "training and training.seed set the same key"),
        ({"grid": {"training..seed": [1]}}, "is not a key"),
        ({"grid": {"training.seed": []}}, "at least 1 item"),
        ({"random": {"count": 1, "space": {"a": {"min": 2, "max": 1}}}}, "min is 2, and max is 1"),
        ({"random": {"count": 1, "space": {"a": {"min": 0, "max": 1, "log": True}}}}, "positive values only"),
        ({"repeat": 2, "max_running": 0}, "greater than or equal to 1"),
    ],
)
def test_a_plan_that_means_nothing_is_refused(plan: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        SweepPlan.model_validate(plan)


def test_too_many_points_are_refused_before_they_are_made() -> None:
    many = {f"model.init_args.{key}": list(range(1000)) for key in "abcdef"}

    ((_, message),) = problems(grid=many, repeat=1000)

    assert message == f"the sweep has {1000**7:,} points; at most 1,000 are possible"
