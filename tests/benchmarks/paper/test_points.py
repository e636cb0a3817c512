from __future__ import annotations

import pytest

from benchmarks.paper.__main__ import IMAGES, PAGES, folders
from benchmarks.paper.experiment import Experiment
from benchmarks.paper.list import EXPERIMENTS
from benchmarks.paper.points import EXPERIMENT, plan_of
from training.spec import parse_spec
from training.spec.sweep import SweepPlan, expanded


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=lambda each: each.name)
def test_full_and_quick_points_are_different_specs_that_are_valid(experiment: Experiment) -> None:
    full, quick = experiment.points(quick=False), experiment.points(quick=True)

    digests = [point.digest for point in (*full, *quick)]
    assert len(set(digests)) == len(digests)
    assert len(quick) < len(full)
    for point in (*full, *quick):
        spec = parse_spec(dict(point.spec))
        assert spec.tracking.experiment == EXPERIMENT
        assert spec.resources.max_workers == point.workers
    most = max(parse_spec(dict(point.spec)).training.max_steps or 0 for point in quick)
    assert most <= 120


def test_a_point_has_its_values_and_its_seed_in_its_spec() -> None:
    points = plan_of("figure_1", settings=["data.init_args.root=mnist"]).points()

    assert [(point.values["model.init_args.norm"], point.seed) for point in points] == [
        (norm, seed) for norm in (True, False) for seed in (0, 1, 2)
    ]
    assert [point.spec["training"]["seed"] for point in points] == [0, 1, 2, 0, 1, 2]
    assert points[-1].spec["model"]["init_args"]["norm"] is False
    assert points[0].spec["data"]["init_args"]["root"] == "mnist"
    assert "sweep" not in points[0].spec
    assert str(points[-1]) == "figure_1, norm False, seed 2"


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=lambda each: each.name)
def test_points_have_the_order_of_the_services_sweep(experiment: Experiment) -> None:
    for plan in experiment.plans(quick=False):
        body = plan.sweep()
        asked = {key: value for key, value in body.items() if key not in {"name", "spec"}}
        expected, _ = expanded(body["spec"], SweepPlan.model_validate(asked))

        assert [parse_spec(dict(point.spec)).model_dump(exclude={"name"}) for point in plan.points()] == [
            point.spec.model_dump(exclude={"name"}) for point in expected
        ]


def test_a_quick_run_does_not_replace_the_page_of_the_full_one() -> None:
    assert folders(quick=False, output=None) == (PAGES, IMAGES)
    assert not {PAGES, IMAGES} & set(folders(quick=True, output=None))
