"""Pages that are written from recorded metrics: their numbers, verdicts and figures are those of the runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.paper import page
from benchmarks.paper.batch_noise import BATCH_NOISE
from benchmarks.paper.experiment import Experiment
from benchmarks.paper.figure_1 import FIGURE_1
from benchmarks.paper.identity import IDENTITY
from benchmarks.paper.inference import INFERENCE
from benchmarks.paper.initialisation import INITIALISATION
from benchmarks.paper.learning_rates import BASE, LEARNING_RATES, X5
from benchmarks.paper.list import EXPERIMENTS
from benchmarks.paper.points import Point
from benchmarks.paper.runs import Curve, Spread
from tests.benchmarks.paper.recorded import norm_of, recorded

STEPS = (10, 20, 30)


def rising(point: Point, name: str) -> Curve:
    """With BN all figures are what the paper expects; a seed adds a little."""
    better = 0.2 * norm_of(point) + 0.01 * point.seed
    if name.startswith(("input/percentile", "input/hidden", "gradient/")):
        return [(step, (0.1 if norm_of(point) else 1.0) * step) for step in STEPS]
    if name.startswith(("folded/difference", "identity/")):
        return [(30, 1e-15)]
    if name.startswith(("folded/", "statistics/")):
        return [(30, 0.0)]
    late = 0.0 if norm_of(point) else 0.1
    return [(step, 0.5 + better + step / 1000 - late * (step < STEPS[-1])) for step in STEPS]


def text(experiment: Experiment, *args: object) -> str:
    runs = recorded(experiment, *args)  # type: ignore[arg-type]
    return page.text(experiment, runs, page=page.ROOT / "docs/x/y.md", images=page.ROOT / "docs/images")


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=lambda each: each.name)
def test_a_page_says_what_the_paper_claims_what_was_seen_and_how(
    experiment: Experiment, tmp_path: Path
) -> None:
    runs = recorded(experiment, rising)

    written, *figures = page.write(experiment, runs, tmp_path / "page.md", tmp_path / "images")

    said = written.read_text()
    assert said.startswith(f"# {experiment.title}\n\n{experiment.paper}")
    assert len(re.findall(r"^- \*\*(Holds|Does not hold here)\*\*: ", said, re.M)) == len(
        experiment.claims(runs)
    )
    assert all(f"`training/recipes/paper/{recipe}.yaml`" in said for recipe in experiment.recipes)
    assert f"`python -m benchmarks.paper {experiment.name}`" in said
    assert "CPU of a test, cores 2" in said
    assert "nan" not in said
    for figure in figures:
        assert figure.read_bytes().startswith(b"\x89PNG")
        assert f"(images/{figure.name})" in said


def test_a_verdict_follows_the_runs() -> None:
    def falling(point: Point, name: str) -> Curve:
        return [(step, 1 - value) for step, value in rising(point, name)]

    assert "Does not hold" not in text(FIGURE_1, rising)
    assert text(FIGURE_1, falling).count("**Does not hold here**") == 3
    assert text(IDENTITY, lambda *_: [(1, 1e-3)]).count("**Does not hold here**") == 2


def test_numbers_of_figure_1_are_medians_with_their_range_over_the_seeds() -> None:
    said = text(FIGURE_1, rising)

    assert "| with BN | 74.0 % (73.0 % to 75.0 %) |" in said
    assert "| without BN | 54.0 % (53.0 % to 55.0 %) |" in said
    assert "Steps to 51.3 %, 95% of the last test accuracy without BN: 10 (10 to 10) with BN, 30" in said
    assert "3 of 3 runs reached it, after 10 (10 to 10) steps" in said
    assert "Number of jobs: 6; each took 10 to 12 s, all together 1.1 minutes" in said


def test_a_run_that_diverged_counts_as_a_guess_and_is_counted() -> None:
    def infinite(point: Point) -> bool:
        return not norm_of(point) and point.values["model.init_args.weight_scale"] == 100.0

    said = text(INITIALISATION, rising, infinite)

    assert "| 100 | 74.0 % (73.0 % to 75.0 %) | 10.0 % (10.0 % to 10.0 %) | 3 |" in said
    assert "from the scales 0.01, 0.1, 0.3, 1, 3, 10, 100 with BN, and from none of the scales" in said


def test_learning_rates_stand_beside_the_papers() -> None:
    def curve(point: Point, _name: str) -> Curve:
        rate = point.values.get("optimizer.init_args.lr", X5)
        if not norm_of(point):
            return [] if rate != BASE else [(100, 0.5), (200, 0.6)]
        return [(10 if rate == X5 else 50, 0.61), (200, 0.65 if rate == X5 else 0.7)]

    def infinite(point: Point) -> bool:
        return not curve(point, "")

    said = text(LEARNING_RATES, curve, infinite)

    assert (
        "| Baseline | 200 (200 to 200), in 3 of 3 runs | 60.0 % (60.0 % to 60.0 %) | 0 of 3 | 31.0 M |"
        in said
    )
    assert "| Baseline-x5 | never | - | 3 of 3 | - | - |" in said
    assert "| BN-x5 | 10 (10 to 10), in 3 of 3 runs |" in said
    assert "3 of 3 runs became infinite; best accuracy none" in said
    assert "Does not hold" not in said


def test_batches_that_statistics_need_are_counted_from_the_end() -> None:
    def curve(_point: Point, name: str) -> Curve:
        error = {"statistics/running/1": 0.9, "statistics/running/10": 0.3, "statistics/mean/1": 0.9}
        return [(30, error.get(name, 0.1))]

    said = text(INFERENCE, curve)

    assert "mean from 10 on, running averages not reached, precise_bn from 1 on" in said
    assert "| 1 | 90.0 % (90.0 % to 90.0 %) | 90.0 %" in said


def test_a_spread_of_one_value_has_no_range_and_of_none_is_not_a_number() -> None:
    assert Spread(values=[1.0]).text("{:.1f}".format) == "1.0"
    assert Spread(values=[]).text("{:.1f}".format) == "nan"
    assert Spread(values=[3.0, 1.0, 2.0]).text("{:.0f}".format) == "2 (1 to 3)"


def test_batch_noise_compares_groups_with_the_synchronized_curve_and_says_where_noise_regularises() -> None:
    errors = {2: 0.5, 4: 0.3, 8: 0.2, 16: 0.15, 32: 0.18, 64: 0.2}
    worse = {"sorted": 0.1, "balanced": -0.01}

    def curve(point: Point, name: str) -> Curve:
        if name.startswith("noise/"):
            return [(step, 1.0 / int(name.rpartition("/")[2])) for step in STEPS]
        norm, together = point.spec["norm"], point.values.get("norm.group", 1)
        samples = norm.get("samples") or 64 * together // point.workers
        if norm["kind"] not in {"ghost_batch_norm", "batch_norm"} and together == 1:
            return [(30, 0.8)]
        order = point.values.get("data.init_args.arrangement", "random")
        return [(30, 1 - errors[samples] - worse.get(order, 0.0))]

    said = text(BATCH_NOISE, curve)

    assert "Does not hold" not in said
    assert "It was 50.0 % (50.0 % to 50.0 %), 2.5 times 20.0 %." in said
    assert "With 8 on a device 20.0 % (20.0 % to 20.0 %), 32 on a device 20.0 %" in said
    assert "The lowest was 15.0 % (15.0 % to 15.0 %), with 16 samples" in said
    assert "| ghost_batch_norm | 8 | 8 | sorted by class | 30.0 % (30.0 % to 30.0 %) | 0.12 (0.12 to" in said
    assert "| sync_batch_norm | 8 | 64 | shuffled | 20.0 %" in said
    assert "| sync_batch_norm in groups of workers | 8 | 16 | shuffled | 15.0 %" in said
    assert "job on 1, 2 or 8 workers" in said


def test_batch_noise_says_when_few_samples_are_not_worse() -> None:
    said = text(BATCH_NOISE, lambda _point, name: [(30, 0.9)] if name == "test_accuracy" else [])

    assert "**Does not hold here**: With 2 samples on a device, BatchNorm's test error" in said
    assert "**Holds**: The curve of synchronized BatchNorm is flat." in said
