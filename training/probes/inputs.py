"""The distributions of what goes into a network's activations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from training.errors import BuildError
from training.probes.probe import Probe, users_model

_ACTIVATIONS = "torch.nn.modules.activation"


class InputPercentiles(Probe):
    """Logs `input/percentile_P` of one unit: the percentiles P of its activation's input over the samples.

    For convolutions, over their positions too (Ioffe & Szegedy 2015, section 4.1 and figure 1 b, c). layer:
    the name of the activation's module in the user's model. unit: the index of the feature. Raises BuildError
    if there is no such layer or unit.
    """

    def __init__(
        self,
        layer: str,
        unit: int = 0,
        percentiles: Sequence[float] = (15, 50, 85),
        every: int = 100,
        samples: int = 500,
    ) -> None:
        super().__init__(every, samples)
        self.layer, self.unit, self.percentiles = layer, unit, tuple(percentiles)

    def check(self, module: LightningModule) -> None:
        check_layer(users_model(module), self.layer)

    def measure(
        self,
        trainer: Trainer,  # noqa: ARG002
        module: LightningModule,  # noqa: ARG002
        model: nn.Module,
        x: Tensor,
        y: Tensor,  # noqa: ARG002
    ) -> Mapping[str, float]:
        inputs = inputs_of(model, x, [self.layer])[self.layer]
        if not 0 <= self.unit < inputs.shape[1]:
            raise BuildError(
                "trainer.callbacks",
                f"InputPercentiles: {self.layer} has the units 0 to {inputs.shape[1] - 1}, not {self.unit}",
            )
        values = inputs[:, self.unit].double()
        parts = torch.tensor(self.percentiles, dtype=torch.float64, device=values.device) / 100
        found = torch.quantile(values, parts).tolist()
        return {f"input/percentile_{p:g}": value for p, value in zip(self.percentiles, found, strict=True)}


class InputMoments(Probe):
    """Logs of each activation's input `input/LAYER/mean`, `/std` and `/moved`, over samples and units.

    moved: how far the distribution has moved since the last measurement, as the root mean square over the
    units of the change of a unit's mean, in its standard deviations then. "Internal covariate shift" names
    such changes (Ioffe & Szegedy 2015, section 2).
    """

    def __init__(self, every: int = 100, samples: int = 500) -> None:
        super().__init__(every, samples)
        self._before: dict[str, tuple[Tensor, Tensor]] = {}

    def measure(
        self,
        trainer: Trainer,  # noqa: ARG002
        module: LightningModule,  # noqa: ARG002
        model: nn.Module,
        x: Tensor,
        y: Tensor,  # noqa: ARG002
    ) -> Mapping[str, float]:
        metrics: dict[str, float] = {}
        for layer, inputs in inputs_of(model, x, activations_of(model)).items():
            values = inputs.double()
            std, mean = torch.std_mean(values, 0, correction=0)
            metrics[f"input/{layer}/mean"] = values.mean().item()
            metrics[f"input/{layer}/std"] = values.std(correction=0).item()
            if layer in self._before:
                mean_before, std_before = self._before[layer]
                moved = (mean - mean_before) / std_before.clamp(min=1e-12)
                metrics[f"input/{layer}/moved"] = moved.square().mean().sqrt().item()
            self._before[layer] = (mean, std)
        return metrics


def activations_of(model: nn.Module) -> list[str]:
    """Returns the names of the modules that are activations of torch, in the model's order."""
    return [name for name, layer in model.named_modules() if type(layer).__module__ == _ACTIVATIONS]


def check_layer(model: nn.Module, name: str) -> None:
    """Raises BuildError if the model has no layer of this name."""
    if name not in dict(model.named_modules()):
        known = ", ".join(activations_of(model)) or "no activation that is a module"
        raise BuildError("trainer.callbacks", f"the model has no layer {name!r}; it has {known}")


@torch.no_grad()
def inputs_of(model: nn.Module, x: Tensor, layers: Iterable[str]) -> dict[str, Tensor]:
    """Returns the input of each layer as (values, units): for convolutions each position is a value."""
    modules, found = dict(model.named_modules()), dict[str, Tensor]()
    with ExitStack() as hooks:
        for name in layers:

            def keep(_layer: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                found[name] = inputs[0].detach().movedim(1, -1).flatten(0, -2)

            hooks.callback(modules[name].register_forward_pre_hook(keep).remove)
        model(x)
    return found
