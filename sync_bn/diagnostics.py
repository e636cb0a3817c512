"""What synchronizing changes, by layer and step: `with observe(model) as report:`."""

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
"""A root mean square above this counts as exploding: float16 ends at 65,504."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One layer in one step, of this rank's batch and of the batch of all ranks; μ, σ² are the latter's.

    σ² is the variance + eps, by which the layer divides.

    Noise and drift are root mean squares over channels. They are NaN where there is nothing to compare: noise
    on a rank without samples, drift in a layer without running statistics.
    """

    layer: str
    step: int
    mean_noise: float
    """of (rank's mean - μ)/σ: what BatchNorm without synchronization would have been off by"""
    var_noise: float
    """of (rank's variance - variance)/σ²"""
    mean_drift: float
    """of (running mean - μ)/σ, before this step's update: what evaluation would have been off by"""
    var_drift: float
    """of (running variance - unbiased variance)/σ²"""
    dead: int
    """channels with a variance below eps: as good as constant, normalising does not bring them to 1"""
    exploding: int
    """channels whose root mean square is above `EXPLODING` or not finite"""


MEASURES = ("mean_noise", "var_noise", "mean_drift", "var_drift", "dead", "exploding")


class _Kept(NamedTuple):
    layer: str
    step: int
    values: Tensor
    """(6,), in the order of MEASURES, on the layer's device"""


class Report:
    """What was observed so far. Reading it waits for the device; observing does not.

    step: the number that the next observations get. None counts the calls of each layer from 0.
    """

    def __init__(self, names: Mapping[SyncBatchNorm, str], every: int) -> None:
        self.step: int | None = None
        self._names = names
        self._every = every
        self._calls = dict.fromkeys(names, 0)
        self._kept: list[_Kept] = []

    @property
    def layers(self) -> list[str]:
        """The names of the observed layers, in the model's order."""
        return list(self._names.values())

    def observations(self) -> list[Observation]:
        """In the order in which they were made."""
        return [_observation(kept) for kept in self._kept]

    def heat_map(self, measure: str = "mean_noise") -> tuple[Tensor, list[int]]:
        """(layers, steps) float64, and the steps; NaN where a layer was not called in a step.

        Of several calls in one step it has the last. Raises ValueError for an unknown measure.
        """
        if measure not in MEASURES:
            raise ValueError(f"measure={measure!r} is not known; expected one of {', '.join(MEASURES)}.")
        steps = sorted({kept.step for kept in self._kept})
        rows, columns = ({key: i for i, key in enumerate(keys)} for keys in (self.layers, steps))
        values = torch.full((len(rows), len(columns)), torch.nan, dtype=torch.float64)
        for kept in self._kept:
            values[rows[kept.layer], columns[kept.step]] = kept.values[MEASURES.index(measure)].cpu()
        return values, steps

    def figure(self, measures: Sequence[str] = ("mean_noise", "mean_drift")) -> "Figure":
        """A heat map by layer and step for each measure, one below the other. Needs matplotlib."""
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
        """Called by the layers."""
        call = self._calls[layer]
        self._calls[layer] += 1
        step = call if self.step is None else self.step
        if step % self._every == 0:
            self._kept.append(_Kept(self._names[layer], step, _measured(layer, moments, local_sums)))


@contextmanager
def observe(model: nn.Module, *, every: int = 1) -> Iterator[Report]:
    """Observes the `SyncBatchNorm` layers of `model` in training, on this rank, in every `every`-th step.

    It takes no collective, and nothing of a layer that is not observed; observed layers compute a few numbers
    for each channel more. Each rank sees its own noise; drift, dead and exploding channels are the same on
    all. Nothing is seen in evaluation and in recomputations of checkpointed forwards. A compiled model is
    compiled once more for it.

    Raises ValueError if the model has no such layer, if one is being observed already, or if `every` is less
    than 1.
    """
    if every < 1:
        raise ValueError(f"every={every}: expected a number of steps from 1 on.")
    names = {layer: name for name, layer in model.named_modules() if isinstance(layer, SyncBatchNorm)}
    if not names:
        raise ValueError("There is no SyncBatchNorm in the model: convert it first.")
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
    # With eps, as in the layer: a constant channel has noise and drift too.
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


def _observation(kept: _Kept) -> Observation:
    mean_noise, var_noise, mean_drift, var_drift, dead, exploding = kept.values.tolist()
    return Observation(
        layer=kept.layer,
        step=kept.step,
        mean_noise=mean_noise,
        var_noise=var_noise,
        mean_drift=mean_drift,
        var_drift=var_drift,
        dead=int(dead),
        exploding=int(exploding),
    )
