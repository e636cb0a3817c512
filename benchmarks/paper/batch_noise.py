"""Batch noise as regularisation, and why synchronization matters: error by the samples of a group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.paper.drawing import band, finish, percent
from benchmarks.paper.experiment import Claim, Drawing, Experiment, Runs
from benchmarks.paper.initialisation import CHANCE, accuracy
from benchmarks.paper.points import Quick
from benchmarks.paper.runs import Run, Spread, spread, value_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCH, WORKERS = 64, 2
"""Of the recipes: samples of a global batch, and the number of workers where no other is said."""
GHOST, LOCAL, SYNC = "ghost_batch_norm", "batch_norm", "sync_batch_norm"
GROUPED = "sync_batch_norm in groups of workers"
ARRANGEMENTS = {"random": "shuffled", "sorted": "sorted by class", "balanced": "class-balanced"}
WITHOUT_A_BATCH = ("batch_renorm", "group_norm", "evonorm_s0", "filter_response_norm")
FEW, WORSE, FLAT = 2, 2.0, 0.01
"""Thresholds of ours: few samples, how many times worse is worse, and the range of error that is flat."""


def error(run: Run) -> float:
    return 1 - accuracy(run)


def kind(run: Run) -> str:
    return GROUPED if value_of(run, "group") else str(_norm(run).get("kind") or value_of(run, "kind"))


def group(run: Run) -> int:
    """Returns how many samples are on a device, or on a group of devices that synchronize; of ghost
    BatchNorm, how many are normalised together.
    """
    return int(_norm(run).get("samples") or BATCH * (value_of(run, "group") or 1) // run.workers)


def arrangement(run: Run) -> str:
    return value_of(run, "arrangement") or "random"


def _norm(run: Run) -> Mapping[str, Any]:
    return value_of(run, "norm") or {}


def by_group(
    runs: Runs, which: str, arranged: str = "random", figure: Callable[[Run], float] = error
) -> dict[int, Spread]:
    """Returns a figure of a kind, the test error, by the samples on a device, ascending."""
    of = [run for run in runs if kind(run) == which and arrangement(run) == arranged]
    sizes = sorted({group(run) for run in of})
    return {size: spread([run for run in of if group(run) == size], figure) for size in sizes}


def noise(runs: Runs, measure: str, arranged: str) -> dict[int, Spread]:
    """Returns the noise of the statistics by the samples of a group, in networks with sync_batch_norm.

    Of each training it is the median over the measurements.
    """
    begin, of = f"noise/{arranged}/{measure}/", [run for run in runs if kind(run) == SYNC]
    names = {name for run in of for name in run.curves if name.startswith(begin)}
    found = {int(name.removeprefix(begin)): spread(of, partial(Run.middle, metric=name)) for name in names}
    return dict(sorted(found.items()))


def draw(runs: Runs, figure: Figure) -> None:
    errors, noises = figure.subplots(1, 2)
    for index, (arranged, said) in enumerate(ARRANGEMENTS.items()):
        colour = f"C{index}"
        label = f"ghost_batch_norm, {said}"
        band(errors, [*by_group(runs, GHOST, arranged).items()], label=label, color=colour, marker="o")
        band(noises, [*noise(runs, "mean", arranged).items()], label=said, color=colour, marker="o")
    local, sync = by_group(runs, LOCAL), by_group(runs, SYNC)
    grouped = by_group(runs, GROUPED)
    for each, marker, label in ((local, "x", LOCAL), (grouped, "+", GROUPED)):
        middles = [found.middle for found in each.values()]
        errors.plot([*each], middles, f"C0{marker}", markersize=10, label=label, zorder=5)
    band(errors, [*sync.items()], label=SYNC, color="k", marker="s")
    for index, which in enumerate(WITHOUT_A_BATCH, len(ARRANGEMENTS)):
        for found in by_group(runs, which).values():
            errors.axhline(found.middle, color=f"C{index}", linestyle="--", linewidth=1, label=which)
    for axes in (errors, noises):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes := [2**power for power in range(1, 7)], [str(size) for size in sizes])
    finish(
        errors,
        legend=False,
        xlabel="samples on a device, or on a group of devices",
        ylabel="test error",
        ylim=(0, None),
    )
    errors.legend(frameon=False, fontsize=7)
    finish(noises, xlabel="samples in a group", ylabel="noise of the mean, in σ", ylim=(0, None))


def table(runs: Runs) -> tuple[list[str], list[list[str]]]:
    columns = ["normalisation", "samples on a device", "samples normalised together", "order in the batch"]
    rows = []
    for which in (GHOST, LOCAL, GROUPED, SYNC, *WITHOUT_A_BATCH):
        for arranged, said in ARRANGEMENTS.items():
            seconds = by_group(runs, which, arranged, lambda run: run.seconds)
            for size, found in by_group(runs, which, arranged).items():
                together = {SYNC: BATCH, "batch_renorm": BATCH}.get(which, "-")
                together = size if which in {GHOST, LOCAL, GROUPED} else together
                here = _on_a_device(runs) if which == GROUPED else size
                noises = [_noise(runs, each, arranged, together) for each in ("mean", "var")]
                rows.append(
                    [
                        which,
                        str(here),
                        str(together),
                        said,
                        found.text(percent),
                        *noises,
                        f"{seconds[size].middle:.0f} s",
                    ]
                )
    return [*columns, "test error", "noise of the mean, in σ", "of the variance, in σ²", "a job took"], rows


def _on_a_device(runs: Runs) -> int:
    """Returns the samples on a device where devices synchronize in groups."""
    return next(BATCH // run.workers for run in runs if kind(run) == GROUPED)


def _noise(runs: Runs, measure: str, arranged: str, size: object) -> str:
    found = noise(runs, measure, arranged)
    return found[size].text("{:.2f}".format) if isinstance(size, int) and size in found else "-"


def claims(runs: Runs) -> list[Claim]:
    return [
        *_of_groups(*(by_group(runs, which) for which in (GHOST, LOCAL, GROUPED, SYNC))),
        *_of_orders(runs),
    ]


def _of_groups(
    ghost: Mapping[int, Spread],
    local: Mapping[int, Spread],
    grouped: Mapping[int, Spread],
    sync: Mapping[int, Spread],
) -> Iterator[Claim]:
    few, same = min(ghost), sync[BATCH // WORKERS].middle
    best = min(ghost, key=lambda size: ghost[size].middle)
    flat = _range([found.middle for found in sync.values()])
    same_size = [(size, found) for each in (local, grouped) for size, found in each.items() if size in ghost]
    apart = max(abs(found.middle - ghost[size].middle) for size, found in same_size)
    yield Claim(
        statement=f"With {few} samples on a device, BatchNorm's test error is at least twice that of "
        "synchronized BatchNorm.",
        holds=ghost[few].middle >= WORSE * same,
        evidence=f"It was {ghost[few].text(percent)}, {ghost[few].middle / same:.1f} times {percent(same)}.",
    )
    yield Claim(
        statement="The curve of synchronized BatchNorm is flat.",
        holds=flat <= FLAT,
        evidence="With "
        + ", ".join(f"{size} on a device {found.text(percent)}" for size, found in sync.items())
        + ".",
    )
    yield Claim(
        statement="Only the number of samples normalised together counts: batch_norm with as many on a "
        "device, and sync_batch_norm with as many on a group of devices, do what ghost_batch_norm does.",
        holds=apart <= FLAT,
        evidence=f"Where both were trained, their errors differed by at most {percent(apart)}.",
    )
    yield Claim(
        statement="Some noise regularises: ghost BatchNorm's lowest error is below the synchronized one.",
        holds=ghost[best].middle < same,
        evidence=f"The lowest was {ghost[best].text(percent)}, with {best} samples; synchronized "
        f"{sync[BATCH // WORKERS].text(percent)}.",
    )


def _of_orders(runs: Runs) -> Iterator[Claim]:
    """Of the orders that were trained: a quick run has not all of them."""
    shuffled = by_group(runs, GHOST)
    by_class, balanced = (by_group(runs, GHOST, each) for each in ("sorted", "balanced"))
    if by_class:
        yield Claim(
            statement="Batches that are sorted by class make BatchNorm worse without synchronization.",
            holds=all(found.middle > shuffled[size].middle for size, found in by_class.items()),
            evidence=_beside(by_class, shuffled),
        )
    if balanced:
        yield Claim(
            statement="Class-balanced groups make it better.",
            holds=all(found.middle < shuffled[size].middle for size, found in balanced.items()),
            evidence=_beside(balanced, shuffled),
        )
    orders = {said: by_group(runs, SYNC, each) for each, said in ARRANGEMENTS.items()}
    found = {said: each[BATCH // WORKERS] for said, each in orders.items() if BATCH // WORKERS in each}
    if len(found) > 1:
        yield Claim(
            statement="The order of the samples in a batch does not matter to synchronized BatchNorm.",
            holds=_range([each.middle for each in found.values()]) <= FLAT,
            evidence=", ".join(f"{said} {each.text(percent)}" for said, each in found.items()).capitalize()
            + ".",
        )


def _beside(found: Mapping[int, Spread], shuffled: Mapping[int, Spread]) -> str:
    parts = [
        f"with {size} samples {percent(each.middle)}, shuffled {percent(shuffled[size].middle)}"
        for size, each in found.items()
    ]
    return "; ".join(parts).capitalize() + "."


def _range(values: Sequence[float]) -> float:
    return max(values) - min(values)


SMALLER = ("training.max_steps=40", "data.init_args.limit=1500", "lr_scheduler.init_args.total_iters=40")
BATCH_NOISE = Experiment(
    name="batch_noise",
    title="Batch noise as regularisation, and why synchronization matters",
    paper="Ioffe & Szegedy (2015), section 3.4: “a training example is seen in conjunction with other "
    "examples in the mini-batch”, so that what the network says about it varies, and “we found this effect "
    "to be advantageous to the generalization of the network”. With few samples on a device the noise harms: "
    "Wu & He (2018) report for ResNet-50 on ImageNet that group normalisation “has 10.6% lower error than "
    "its BN counterpart when using a batch size of 2”, on each of 8 devices. BatchNorm normalises by what is "
    "on a device, synchronized BatchNorm by the global batch.",
    recipes=("batch_noise", "batch_noise_workers", "batch_noise_groups", "batch_noise_order"),
    metrics=("test_accuracy", "noise/"),
    quick={
        "batch_noise": Quick(
            settings=SMALLER,
            grid={"norm": [{"kind": GHOST, "samples": FEW}, {"kind": GHOST, "samples": 32}]},
        ),
        "batch_noise_workers": Quick(settings=SMALLER, grid={"resources.workers": [1, WORKERS]}),
        "batch_noise_groups": Quick(settings=(*SMALLER, "resources.workers=2"), grid={"norm.group": [2]}),
        "batch_noise_order": Quick(
            settings=SMALLER,
            grid={
                "norm": [{"kind": GHOST, "samples": FEW}],
                "data.init_args.arrangement": ["sorted"],
            },
        ),
    },
    claims=claims,
    table=table,
    drawings={
        "error": Drawing(
            caption="Left: test error against the samples on a device, at one global batch; lines are "
            "medians over the seeds, bands the range, and dashed lines do not depend on the samples on a "
            "device. Right: how far the mean of a group of samples is from that of the batch.",
            draw=draw,
            size=(11.0, 4.6),
        )
    },
    notes=(
        f"All have the same global batches of {BATCH} samples. ghost_batch_norm with k samples computes what "
        f"batch_norm computes with k samples on a device, here on {WORKERS} workers; batch_norm itself is "
        "trained on several numbers of workers, as a check, and sync_batch_norm on workers that synchronize "
        "in groups. In the test they use running averages over their own groups, those of worker 0, "
        "so that their error has the noise of training and that of inference. "
        "BatchNorm with 1 sample on a device, of another training: "
        "`benchmarks/results/samples_per_device.md`.",
        "The three orders have the same batches: only which samples of a batch share a device differs. "
        "`training.data.ArrangedBatches` makes them.",
        "Noise is measured by `training.probes.BatchNoise` in networks with sync_batch_norm, on the first "
        "test images: root mean squares over channels and groups, the median over layers and steps.",
        "All kinds have one learning rate, for which nothing was searched; another may suit a kind better.",
        "batch_renorm has the statistics of all workers, and a warm-up shorter than its paper's.",
        f"Thresholds are ours: {WORSE:g} times as much error, and {percent(FLAT)} as the range of what is "
        f"flat or equal. A network whose loss became infinite counts as a guess, {percent(1 - CHANCE)}.",
    ),
)
