"""Modules with manual optimization: GANs for the images of `networks`."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import BinaryAUROC

from tests.training.attempts import stop_if_asked

BATCHES = 4
"""Of an epoch, in the specs of `runs.spec_of`."""


class Gan(LightningModule):
    """Its discriminator steps twice in a batch, its generator once in two batches.

    draws: whether noise is drawn in the step, and there is Dropout. Otherwise the data are the noise.
    """

    def __init__(self, *, draws: bool = True) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.draws = draws
        torch.manual_seed(1)
        self.generator = nn.Sequential(
            nn.Linear(8, 64, bias=False),
            nn.BatchNorm1d(64),
            nn.ReLU(),
            nn.Unflatten(1, (4, 4, 4)),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(4, 1, 3, padding=1),
        )
        self.discriminator = nn.Sequential(
            nn.utils.spectral_norm(nn.Conv2d(1, 4, 4, stride=2, padding=1, bias=False)),
            nn.BatchNorm2d(4),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Dropout(0.2 if draws else 0.0),
            nn.Flatten(),
            nn.Linear(64, 1),
        )
        self.auroc = BinaryAUROC()

    def _loss(self, x: Tensor, noise: Tensor) -> Tensor:
        real, fake = self.discriminator(x), self.discriminator(self.generator(noise).detach())
        if self.training:
            labels = torch.cat([torch.ones(len(x)), torch.zeros(len(x))]).long()
            self.auroc.update(torch.cat([real, fake])[:, 0].detach().float(), labels)
        return F.softplus(-real).mean() + F.softplus(fake).mean()

    def training_step(self, batch: Any, index: int) -> None:
        stop_if_asked(BATCHES * self.current_epoch + index + 1)
        x = batch[0]
        noise = torch.randn(len(x), 8).to(x) if self.draws else x[:, 0, 0]
        optimizers: Any = self.optimizers()
        generator, discriminator = optimizers
        losses = []
        self.toggle_optimizer(discriminator)
        for _ in range(2):
            loss = self._loss(x, noise)
            discriminator.zero_grad()
            self.manual_backward(loss)
            self.clip_gradients(discriminator, gradient_clip_val=0.3, gradient_clip_algorithm="norm")
            discriminator.step()
            losses.append(loss.detach())
        self.untoggle_optimizer(discriminator)
        with generator.toggle_model():
            loss = F.softplus(-self.discriminator(self.generator(noise))).mean()
            self.manual_backward(loss / 4, retain_graph=True)
            self.manual_backward(loss / 4)
            if index % 2:
                generator.step()
                self.generator.zero_grad()
        # At the end: in the first batch Lightning drops what a step has logged before a hook logs.
        self.log("generator", loss)
        self.log_dict({f"discriminator_{n}": loss for n, loss in enumerate(losses)}, on_epoch=True)
        self.log("auroc", self.auroc, on_step=False, on_epoch=True)
        schedules: Any = self.lr_schedulers()
        schedules[1 - index % 2].step()

    def on_before_optimizer_step(self, _optimizer: Any) -> None:
        norms = [each.grad.norm() for each in self.parameters() if each.grad is not None]
        self.log("gradient", torch.stack(norms).norm())

    def validation_step(self, batch: Any, _index: int) -> None:
        self.log("val_loss", self._loss(batch[0], batch[0][:, 0, 0]))

    def configure_optimizers(self) -> Any:
        optimizers = [
            torch.optim.Adam(self.generator.parameters(), 0.01, betas=(0.5, 0.9)),
            torch.optim.SGD(self.discriminator.parameters(), 0.05, momentum=0.5),
        ]
        return optimizers, [torch.optim.lr_scheduler.ExponentialLR(each, 0.9) for each in optimizers]


class Penalised(Gan):
    """A WGAN with a gradient penalty on a discriminator without BatchNorm; flags and gradients by hand."""

    def __init__(self) -> None:
        super().__init__(draws=False)
        self.discriminator[1] = nn.GroupNorm(2, 4)

    def training_step(self, batch: Any, index: int) -> None:
        stop_if_asked(BATCHES * self.current_epoch + index + 1)
        x = batch[0]
        optimizers: Any = self.optimizers()
        generator, discriminator = optimizers
        fake = self.generator(x[:, 0, 0])
        mixed = (x + fake.detach()).requires_grad_()
        (slope,) = torch.autograd.grad(self.discriminator(mixed).sum(), mixed, create_graph=True)
        wrong = self.discriminator(fake.detach()).mean() - self.discriminator(x).mean()
        penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
        self.discriminator.zero_grad()
        self.manual_backward(wrong, retain_graph=True)
        self.manual_backward(10 * penalty)
        discriminator.step()
        self.discriminator.requires_grad_(False)
        generator.zero_grad()
        self.manual_backward(-self.discriminator(fake).mean())
        generator.step()
        self.discriminator.requires_grad_(True)
        self.log("wrong", wrong)
