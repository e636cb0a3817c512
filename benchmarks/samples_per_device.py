"""Test error against samples per device, with BatchNorm on each device alone and with SyncBatchNorm.

The same training on scikit-learn's digits, with the same global batches, split over more and more devices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset, TensorDataset

from benchmarks.progress import progress
from benchmarks.result import Options, Result
from benchmarks.sync_bn.pools import pools
from sync_bn import check_ranks, convert_sync_batchnorm
from training.data import Digits
from training.models import ConvNet

GLOBAL_BATCH = 16
LEARNING_RATE, MOMENTUM = 0.1, 0.9
FIGURE = Path(__file__).parent.parent / "docs" / "images" / "samples_per_device.png"
ALONE, SYNCHRONIZED = "BatchNorm", "SyncBatchNorm"
NOTES = (
    "ConvNet(widths=(16, 32)) on scikit-learn's digits (1,257 for training, 360 for the test), in float64. "
    f"SGD, learning rate {LEARNING_RATE} with cosine decay to 0, momentum {MOMENTUM}, {{epochs}} epochs of "
    f"global batches of {GLOBAL_BATCH}. Devices are processes in a gloo group, with DistributedDataParallel.",
    "Test error of the first device's model in evaluation mode, by running statistics; medians of {seeds} "
    "seeds, with minimum and maximum. Initial weights and the order of samples depend only on the seed.",
)


class Case(NamedTuple):
    norm: str
    samples_per_device: int
    seed: int
    epochs: int

    @property
    def devices(self) -> int:
        return GLOBAL_BATCH // self.samples_per_device


def measure(options: Options) -> Result:
    samples, seeds, epochs = ((8, 4), 1, 1) if options.quick else ((16, 8, 4, 2, 1), options.repeats, 4)
    cases = [
        Case(norm, each, seed, epochs)
        for seed in range(seeds)
        for each in samples
        for norm in (ALONE, SYNCHRONIZED)
    ]
    errors: dict[tuple[str, int], list[float]] = {}
    most = max(case.devices for case in cases)
    with pools() as ranks_of, progress("samples per device", len(cases)) as shown:
        for case in cases:
            error = ranks_of(most).run(_test_error, case)[0]
            errors.setdefault((case.norm, case.samples_per_device), []).append(error)
            shown.done(
                f"{case.norm}, {case.samples_per_device} a device, seed {case.seed}: {100 * error:.1f} %"
            )
    by_norm = {norm: {each: errors[norm, each] for each in samples} for norm in (ALONE, SYNCHRONIZED)}
    if not options.quick:
        _draw(by_norm)
    return Result(
        title="Test error against samples per device",
        columns=("samples per device", "devices", *(f"{norm}: test error" for norm in by_norm)),
        rows=[
            (str(each), str(GLOBAL_BATCH // each), *(_percent(by_norm[norm][each]) for norm in by_norm))
            for each in samples
        ],
        notes=[note.format(epochs=epochs, seeds=seeds) for note in NOTES],
        samples={norm: {str(each): values for each, values in of.items()} for norm, of in by_norm.items()},
    )


def _test_error(rank: int, case: Case) -> float:
    """Runs on every rank. Ranks that the case does not use only take part in creating the group."""
    group = dist.new_group(list(range(case.devices)))
    if rank >= case.devices:
        return float("nan")
    check_ranks(timeout_seconds=300)  # many processes on few cores start slowly
    data = Digits()
    data.setup()
    torch.manual_seed(case.seed)
    model: nn.Module = ConvNet(widths=(16, 32)).double()
    if case.norm == SYNCHRONIZED:
        model = convert_sync_batchnorm(model, group)
    parallel = DistributedDataParallel(model, process_group=group)
    optimizer = torch.optim.SGD(parallel.parameters(), LEARNING_RATE, MOMENTUM)
    (x, y), test = _tensors(data.train), _tensors(data.test)
    steps = len(x) // GLOBAL_BATCH
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, case.epochs * steps)
    for epoch in range(case.epochs):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1000 * case.seed + epoch))
        for batch in torch.split(order, GLOBAL_BATCH)[:steps]:
            mine = batch[rank :: case.devices]
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(parallel(x[mine]), y[mine]))
            optimizer.step()
            schedule.step()
    return _error(model.eval(), *test)


def _tensors(part: Dataset[Any]) -> tuple[Tensor, ...]:
    """Returns images in float64, and labels."""
    assert isinstance(part, TensorDataset)
    images, labels = part.tensors
    return images.double(), labels


@torch.no_grad()
def _error(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return float((model(x).argmax(1) != y).double().mean())


def _percent(values: Sequence[float]) -> str:
    middle, least, most = (f"{100 * value:.1f}" for value in (median(values), min(values), max(values)))
    return f"{middle} % ({least} to {most})"


def _draw(by_norm: Mapping[str, Mapping[int, Sequence[float]]], file: Path = FIGURE) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for (norm, errors), colour in zip(by_norm.items(), ("#c0504d", "#1b6ca8"), strict=True):
        at = range(len(errors))
        values = [[100 * value for value in of] for of in errors.values()]
        axes.plot(at, [median(of) for of in values], marker="o", color=colour, label=norm)
        axes.fill_between(
            at, [min(of) for of in values], [max(of) for of in values], color=colour, alpha=0.15
        )
    samples = list(next(iter(by_norm.values())))
    labels = [
        f"{each}\n{GLOBAL_BATCH // each} device{'s' if each < GLOBAL_BATCH else ''}" for each in samples
    ]
    axes.set_xticks(range(len(samples)), labels)
    axes.set(
        xlabel="samples per device",
        ylabel="test error, %",
        title=f"The same batches of {GLOBAL_BATCH}, cut over more devices",
    )
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
