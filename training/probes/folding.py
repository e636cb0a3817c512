"""Whether a trained BatchNorm can be undone, and whether it can be folded away."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from training.callbacks.job_step import job_step
from training.errors import BuildError
from training.probes.probe import as_input, first_samples, log, plain_copy, undisturbed, validation_data


class Folding(Callback):
    """After the last step, rank 0 checks two statements on a copy of the trained network, in float64.

    `identity/LAYER`: with γ = √(Var + ε) and β = E of its batch, a BatchNorm layer returns its input; the
    largest difference, relative to the largest input (Ioffe & Szegedy 2015, section 3). `folded/difference`:
    in inference each layer is a linear map, so that the layer before it can do its work; the largest
    difference of an output from the network without BatchNorm, relative to the largest output (Algorithm 2).
    `folded/layers`: BatchNorm layers that went; `folded/remaining`: those that do not follow a convolution or
    linear layer directly, and stayed. samples: of the validation data. Raises BuildError before the first
    step if torch.fx cannot trace the model.
    """

    def __init__(self, samples: int = 500) -> None:
        self.samples = samples

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        validation_data(trainer)
        try:
            _fused(plain_copy(pl_module).eval())
        except Exception as error:
            raise BuildError(
                "trainer.callbacks", f"Folding needs a model that torch.fx can trace: {error}"
            ) from None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_rank:
            return
        with undisturbed(pl_module):
            model = plain_copy(pl_module).double()
            x, _ = first_samples(validation_data(trainer), self.samples)
            x = as_input(x, pl_module).double()
            metrics = {**folded(model, x), **undone(model, x)}
        log(trainer, metrics, job_step(trainer))


@torch.no_grad()
def undone(model: nn.Module, x: Tensor) -> Mapping[str, float]:
    """Returns `identity/LAYER` of each BatchNorm layer with γ and β, and sets these. model: a plain copy."""
    differences: dict[str, float] = {}

    def prepare(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        dims = [dim for dim in range(inputs[0].dim()) if dim != 1]
        var, mean = torch.var_mean(inputs[0], dims, correction=0)
        assert isinstance(layer, _BatchNorm)
        layer.weight.copy_((var + layer.eps).sqrt())
        layer.bias.copy_(mean)

    for name, layer in model.train().named_modules():
        if not isinstance(layer, _BatchNorm) or layer.weight is None or layer.bias is None:
            continue

        def compare(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
            differences[f"identity/{name}"] = relative_difference(output, inputs[0])

        layer.register_forward_pre_hook(prepare)
        layer.register_forward_hook(compare)
    model(x)
    return differences


@torch.no_grad()
def folded(model: nn.Module, x: Tensor) -> Mapping[str, float]:
    """Returns `folded/difference`, `folded/layers` and `folded/remaining`; leaves the model in evaluation."""
    before = model.eval()(x)
    without = _fused(model)
    had, has = _count(model), _count(without)
    return {
        "folded/difference": relative_difference(without(x), before),
        "folded/layers": float(had - has),
        "folded/remaining": float(has),
    }


def _fused(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of parts of torch that its module imports
        from torch.fx.experimental.optimization import fuse
    return fuse(model)


def relative_difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def _count(model: nn.Module) -> int:
    return sum(isinstance(layer, _BatchNorm) for layer in model.modules())
