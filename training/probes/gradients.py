"""How far the gradient changes along the direction of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from training.errors import BuildError
from training.model.supervised import Supervised
from training.probes.probe import Probe


class GradientChange(Probe):
    """Logs `gradient/change`, `gradient/smoothness` and `gradient/loss_range` along the gradient g.

    The weights move by -s·lr·g for each s of `scales`, with the optimizer's learning rate lr. change: the
    largest ‖g' - g‖ / ‖g‖, the "gradient predictiveness"; smoothness: the largest ‖g' - g‖ / ‖s·lr·g‖, an
    estimate of the smoothness constant; loss_range: the largest loss minus the smallest one (Santurkar et al.
    2018, section 3.1 and figure 4). A value that is not finite is left out. Needs an nn.Module with a loss of
    the spec, and raises BuildError for a LightningModule.
    """

    def __init__(
        self, scales: Sequence[float] = (0.5, 1.0, 2.0, 4.0), every: int = 100, samples: int = 500
    ) -> None:
        super().__init__(every, samples)
        self.scales = tuple(scales)

    def check(self, module: LightningModule) -> None:
        if not isinstance(module, Supervised):
            raise BuildError("trainer.callbacks", "GradientChange needs an nn.Module and the spec's loss")

    def measure(
        self, trainer: Trainer, module: LightningModule, model: nn.Module, x: Tensor, y: Tensor
    ) -> Mapping[str, float]:
        assert isinstance(module, Supervised)
        rate = float(trainer.optimizers[0].param_groups[0]["lr"])
        parameters = [each for each in model.parameters() if each.requires_grad]
        start = [each.detach().clone() for each in parameters]

        def loss_and_gradient() -> tuple[float, Tensor]:
            loss = module.loss(model(x), y)
            parts = torch.autograd.grad(loss, parameters)
            return float(loss.detach()), torch.cat([part.flatten() for part in parts]).double()

        loss, gradient = loss_and_gradient()
        direction = torch.split(gradient, [each.numel() for each in parameters])
        losses, changes = [loss], []
        for scale in self.scales:
            with torch.no_grad():
                for parameter, begin, part in zip(parameters, start, direction, strict=True):
                    parameter.copy_(begin - scale * rate * part.view_as(begin).to(begin.dtype))
            moved_loss, moved = loss_and_gradient()
            losses.append(moved_loss)
            changes.append(float((moved - gradient).norm()))
        length = float(gradient.norm())
        metrics = {"gradient/loss_range": max(losses) - min(losses)}
        if length:
            distances = [scale * rate * length for scale in self.scales]
            metrics["gradient/change"] = max(changes) / length
            metrics["gradient/smoothness"] = max(
                change / distance for change, distance in zip(changes, distances, strict=True)
            )
        return {name: value for name, value in metrics.items() if abs(value) < float("inf")}
