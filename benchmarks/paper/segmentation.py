"""Segmentation of volumes with 1 to 2 of them on a device."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from benchmarks.paper.drawing import band, finish, percent
from benchmarks.paper.experiment import Claim, Drawing, Experiment, Runs
from benchmarks.paper.points import Quick
from benchmarks.paper.runs import Run, Spread, chosen, spread, value_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WORKERS = 2
"""Of the recipe."""
WORSE = 2.0
"""A threshold of ours: how many times as much error is worse."""
LOCAL, SYNC = "batch_norm", "sync_batch_norm"
OF_A_SAMPLE = ("group_norm", "instance_norm")


def dice(run: Run) -> float:
    """The Dice of the test; 0 of a network whose loss became infinite."""
    return 0.0 if run.diverged else run.last("test_dice")


def by_device(runs: Runs, kind: str) -> dict[int, Spread]:
    """Returns the Dice of a kind by the volumes on a device, ascending."""
    of = chosen(runs, kind=kind)
    batches = sorted({value_of(run, "global_batch_size") for run in of})
    return {size // WORKERS: spread(chosen(of, global_batch_size=size), dice) for size in batches}


def draw(runs: Runs, figure: Figure) -> None:
    axes = figure.add_subplot()
    for kind in (LOCAL, SYNC, *OF_A_SAMPLE):
        band(axes, [*by_device(runs, kind).items()], label=kind, marker="o")
    axes.set_xticks(sizes := [*by_device(runs, SYNC)], [str(size) for size in sizes])
    finish(axes, xlabel="volumes on a device", ylabel="Dice of the test")


def table(runs: Runs) -> tuple[list[str], list[list[str]]]:
    kinds = {kind: by_device(runs, kind) for kind in (LOCAL, SYNC, *OF_A_SAMPLE)}
    sizes = [*kinds[SYNC]]
    rows = [[kind, *(found[size].text(percent) for size in sizes)] for kind, found in kinds.items()]
    return ["normalisation", *(f"Dice, volumes on a device: {size}" for size in sizes)], rows


def claims(runs: Runs) -> list[Claim]:
    local, sync = by_device(runs, LOCAL), by_device(runs, SYNC)
    samples = {kind: by_device(runs, kind) for kind in OF_A_SAMPLE}
    few = min(sync)
    errors = [1 - each[few].middle for each in (local, sync)]
    times = errors[0] / errors[1] if errors[1] else math.inf
    best = max(samples, key=lambda kind: samples[kind][few].middle)
    return [
        Claim(
            statement="With so few volumes on a device, BatchNorm is better with synchronization.",
            holds=all(found.middle > local[size].middle for size, found in sync.items()),
            evidence="; ".join(
                f"{size} on a device: {found.text(percent)}, and {local[size].text(percent)} without"
                for size, found in sync.items()
            )
            + ".",
        ),
        Claim(
            statement=f"With {few} on a device, its error is at least {WORSE:g} times that of synchronized "
            "BatchNorm.",
            holds=times >= WORSE,
            evidence=f"The error is what a Dice lacks to 100 %: {percent(errors[0])} against "
            f"{percent(errors[1])}, {times:.1f} times as much.",
        ),
        Claim(
            statement="With so small a global batch, kinds that normalise each volume by itself are better "
            "than both.",
            holds=samples[best][few].middle > max(sync[few].middle, local[few].middle),
            evidence=f"With {few} on a device {best} had {samples[best][few].text(percent)}, {SYNC} "
            f"{sync[few].text(percent)}.",
        ),
    ]


SEGMENTATION = Experiment(
    name="segmentation",
    title="Segmentation of volumes: one or two on a device",
    paper="Wu & He (2018), abstract: BatchNorm's “error increases rapidly when the batch size becomes "
    "smaller”, which limits its use for “detection, segmentation, and video, which require small batches "
    "constrained by memory consumption”. Networks for volumes take instance normalisation (nnU-Net, Isensee "
    "et al. 2021) or synchronize.",
    recipes=("segmentation",),
    metrics=("test_dice",),
    quick={
        "segmentation": Quick(
            settings=(
                "training.max_steps=40",
                "data.init_args.size=16",
                "data.init_args.train=16",
                "data.init_args.test=16",
            ),
            grid={"training.global_batch_size": [2]},
        )
    },
    claims=claims,
    table=table,
    drawings={
        "dice": Drawing(
            caption="Dice of the test against the volumes on a device. Lines are medians over the seeds, "
            "bands the range.",
            draw=draw,
            size=(7.0, 4.2),
        )
    },
    notes=(
        "MONAI's 3-D U-Net and Dice loss, and its synthetic volumes: overlapping spheres of other grey "
        "values in noise (`training.data.SyntheticVolumes`). They are more alike than scans of patients.",
        "Dice is over all voxels of the test together: torchmetrics' F1 of a binary classification. A "
        "network whose loss became infinite counts with 0.",
        "All see the same number of steps, so twice as many volumes with 2 on a device.",
        "All kinds have one learning rate, for which nothing was searched; another may suit a kind better.",
        "In the test, BatchNorm uses running averages; without synchronization, those of worker 0.",
    ),
)
