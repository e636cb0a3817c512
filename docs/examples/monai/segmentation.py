"""Finds spheres in noisy volumes with MONAI's 3-D U-Net: two volumes a step, on any number of workers."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from monai.losses import DiceLoss
from monai.metrics import DiceMetric
from monai.networks.nets import UNet
from monai.transforms import AsDiscrete
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


class Spheres(Dataset[dict[str, Tensor]]):
    """Volumes of size³ voxels with a bright sphere somewhere, and its mask; the same for the same seed."""

    def __init__(self, number: int, size: int, seed: int) -> None:
        self.number, self.size, self.seed = number, size, seed

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(self.seed * 10_000 + index)
        middle = torch.rand(3, generator=draw) * self.size
        radius = self.size * (0.2 + 0.2 * torch.rand((), generator=draw))
        axes = torch.arange(self.size, dtype=torch.float32)
        place = torch.stack(torch.meshgrid(axes, axes, axes, indexing="ij"), -1)
        mask = ((place - middle).norm(dim=-1) < radius).float()[None]
        return {"image": mask + 0.5 * torch.randn(mask.shape, generator=draw), "label": mask}


class Volumes(LightningDataModule):
    def __init__(self, size: int = 16) -> None:
        super().__init__()
        self.size = size

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Spheres(32, self.size, seed=0), batch_size=2, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Spheres(8, self.size, seed=1), batch_size=2)


class Segmentation(LightningModule):
    def __init__(self, channels: tuple[int, ...] = (8, 16), lr: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = UNet(
            spatial_dims=3,
            in_channels=1,
            out_channels=1,
            channels=channels,
            strides=(2,) * (len(channels) - 1),
            norm="batch",
        )
        self.loss, self.dice = DiceLoss(sigmoid=True, batch=False), DiceMetric(include_background=True)
        self.predict = AsDiscrete(threshold=0.5)
        self.lr = lr

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        loss: Tensor = self.loss(self.net(batch["image"]), batch["label"])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:
        output = self.net(batch["image"])
        self.log("val_loss", self.loss(output, batch["label"]))
        scores = self.dice(self.predict(output.sigmoid()), batch["label"])
        self.log("val_dice", scores.mean())
        self.dice.reset()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)
