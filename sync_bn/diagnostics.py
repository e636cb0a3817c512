"""Diagnostics of what synchronization changes, by layer and step: `with observe(model) as report:`."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from sync_bn._arithmetic import Moments, global_moments
from sync_bn.layer import SyncBatchNorm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXPLODING = 1e4
"""A channel whose root mean square is above this counts as exploding; the largest float16 is 65,504."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """Statistics of one layer in one step: of this rank's batch against those of the global batch.

    μ and variance are those of the global batch, biased; σ² = variance + eps. Noise and drift are root mean
    squares over channels, in units of σ for means and σ² for variances. Noise is NaN on a rank without
    samples, drift in a layer without running statistics.

    layer: its name in the observed model. step: see Report.step.
    """

    layer: str
    step: int
    mean_noise: float
    """Of (rank's mean - μ)/σ: the error of the mean without synchronization."""
    var_noise: float
    """Of (rank's variance - variance)/σ²."""
    mean_drift: float
    """Of (running mean - μ)/σ, before this step's update: the error of the mean in evaluation."""
    var_drift: float
    """Of (running variance - unbiased variance)/σ², before this step's update."""
    dead: int
    """Number of channels with a variance below eps: nearly constant, so not scaled to a variance of 1."""
    exploding: int
    """Number of channels whose root mean square is above `EXPLODING` or not finite."""


MEASURES = ("mean_noise", "var_noise", "mean_drift", "var_drift", "dead", "exploding")
"""The fields of Observation that `Report.heat_map` and `Report.figure` accept."""


class _Record(NamedTuple):
    layer: str
    step: int
    values: Tensor
    """(6,), in the order of MEASURES, on the layer's device"""


class Report:
    """The observations so far. Reading them synchronises with the device; recording them does not.

    step: the number for the next observations, set by the caller. None, the default: the number of calls of
        the layer so far.
    """

    def __init__(self, names: Mapping[SyncBatchNorm, str], every: int) -> None:
        self.step: int | None = None
        self._names = names
        self._every = every
        self._calls = dict.fromkeys(names, 0)
        self._records: list[_Record] = []

    @property
    def layers(self) -> list[str]:
        """The names of the observed layers, in the model's order."""
        return list(self._names.values())

    def observations(self) -> list[Observation]:
        """Returns all observations in the order of recording. Synchronises with the device."""
        return [_observation(record) for record in self._records]

    def heat_map(self, measure: str = "mean_noise") -> tuple[Tensor, list[int]]:
        """Returns a measure as a (layers, steps) float64 tensor on the CPU, and the list of steps.

        NaN: the layer was not called in that step. If it was called several times, the value is the last
        one's. Raises ValueError if `measure` is not in MEASURES.
        """
        if measure not in MEASURES:
            raise ValueError(f"measure={measure!r} is not known; expected one of {', '.join(MEASURES)}.")
        steps = sorted({record.step for record in self._records})
        rows, columns = ({key: i for i, key in enumerate(keys)} for keys in (self.layers, steps))
        values = torch.full((len(rows), len(columns)), torch.nan, dtype=torch.float64)
        for record in self._records:
            values[rows[record.layer], columns[record.step]] = record.values[MEASURES.index(measure)].cpu()
        return values, steps

    def figure(self, measures: Sequence[str] = ("mean_noise", "mean_drift")) -> "Figure":
        """Returns a figure with a heat map by layer and step for each measure, one below the other.

        Raises ValueError if a measure is not in MEASURES. Needs matplotlib.
        """
        from matplotlib.figure import Figure

        height = 1.2 + 0.22 * max(len(self._names), 6)
        figure = Figure(figsize=(9, height * len(measures)), layout="constrained")
        for axes, measure in zip(figure.subplots(len(measures), squeeze=False)[:, 0], measures, strict=True):
            values, steps = self.heat_map(measure)
            colours = axes.pcolormesh(values.numpy(), vmin=0, cmap="magma", edgecolors="none")
            axes.set_yticks([row + 0.5 for row in range(len(self.layers))], self.layers, fontsize=7)
            shown = range(0, len(steps), max(1, len(steps) // 10))
            axes.set_xticks([column + 0.5 for column in shown], [str(steps[column]) for column in shown])
            axes.invert_yaxis()
            axes.set(title=measure.replace("_", " "), xlabel="step")
            figure.colorbar(colours, ax=axes)
        return figure

    def record(self, layer: SyncBatchNorm, moments: Moments, local_sums: Tensor) -> None:
        """Records one training step. The layers call it; see `Observer` in sync_bn.layer."""
        call = self._calls[layer]
        self._calls[layer] += 1
        step = call if self.step is None else self.step
        if step % self._every == 0:
            self._records.append(_Record(self._names[layer], step, _measured(layer, moments, local_sums)))


@contextmanager
def observe(model: nn.Module, *, every: int = 1) -> Iterator[Report]:
    """Observes the `SyncBatchNorm` layers of `model` in training, on this rank, in every `every`-th step.

    A context manager that yields the Report. Any rank may use it alone: it adds no collective, only a few
    operations per channel in observed layers. Noise is this rank's own; drift, dead and exploding channels
    are equal on all ranks. Evaluation and recomputations of checkpointed forwards are not observed. A
    compiled model is compiled once more.

    Raises ValueError if the model has no such layer, if one is already observed, or if `every` is below 1.
    """
    if every < 1:
        raise ValueError(f"every={every}: expected a number of steps ≥ 1.")
    names = {layer: name for name, layer in model.named_modules() if isinstance(layer, SyncBatchNorm)}
    if not names:
        raise ValueError("The model has no SyncBatchNorm layer: convert it first.")
    observed = [name for layer, name in names.items() if layer._observer is not None]
    if observed:
        raise ValueError(f"{observed[0]!r} is being observed already.")
    report = Report(names, every)
    for layer in names:
        layer._observer = report
    try:
        yield report
    finally:
        for layer in names:
            del layer._observer


@torch.no_grad()
def _measured(layer: SyncBatchNorm, moments: Moments, local_sums: Tensor) -> Tensor:
    mean, var, n = moments
    local = global_moments(local_sums)
    # With eps, as in the layer, so that noise and drift are finite for a constant channel.
    invstd = (var + layer.eps).rsqrt()
    nothing = torch.where(local.n > 0, 0.0, torch.nan)
    noise = (
        _root_mean_square((local.mean - mean) * invstd),
        _root_mean_square((local.var - var) * invstd.square()),
    )
    drift = noise[0] * torch.nan, noise[0] * torch.nan
    if layer.running_mean is not None and layer.running_var is not None:
        unbiased_var = var * n / (n - 1).clamp(min=1)
        drift = (
            _root_mean_square((layer.running_mean - mean) * invstd),
            _root_mean_square((layer.running_var - unbiased_var) * invstd.square()),
        )
    dead = (var < layer.eps).sum()
    exploding = (~((mean * mean + var).sqrt() <= EXPLODING)).sum()
    return torch.stack([*(value + nothing for value in noise), *drift, dead, exploding])


def _root_mean_square(values: Tensor) -> Tensor:
    return values.square().mean().sqrt()


def _observation(record: _Record) -> Observation:
    mean_noise, var_noise, mean_drift, var_drift, dead, exploding = record.values.tolist()
    return Observation(
        layer=record.layer,
        step=record.step,
        mean_noise=mean_noise,
        var_noise=var_noise,
        mean_drift=mean_drift,
        var_drift=var_drift,
        dead=int(dead),
        exploding=int(exploding),
    )
