"""Networks and data of labs in float32: MONAI's, a metric collection, a GAN, a time series, a detector.

MONAI is imported by what uses it alone: it takes seconds, and may be missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import BinaryF1Score

VOLUMES, SIZE = 7, 16  # 4 batches of 2, the last of which has 1: the second of two workers has none
NETWORKS = ("SegResNet", "UNet")


def volumes(count: int, seed: int) -> list[dict[str, Tensor]]:
    """Noisy volumes without a channel, and where a ball is in them."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.meshgrid(*[torch.arange(SIZE)] * 3, indexing="ij")
    found = []
    for _ in range(count):
        centre = torch.randint(4, 12, (3, 1, 1, 1), generator=generator)
        ball = ((torch.stack(axes) - centre).square().sum(0) < 16).float()
        found.append({"image": ball + 0.3 * torch.randn(ball.shape, generator=generator), "label": ball})
    return found


class Volumes(LightningDataModule):
    """Of MONAI's own classes: data set, transforms, some of them random, loader and collate function."""

    def _loader(self, count: int, seed: int, *, train: bool) -> DataLoader[Any]:
        from monai.data import DataLoader as MonaiLoader
        from monai.data import Dataset as MonaiDataset
        from monai.data import list_data_collate
        from monai.transforms import (
            EnsureChannelFirstd,
            RandFlipd,
            RandGaussianNoised,
            RandRotate90d,
            ScaleIntensityd,
            ToTensord,
        )

        keys = ("image", "label")
        random = [
            RandFlipd(keys, prob=0.5, spatial_axis=0),
            RandRotate90d(keys, prob=0.5),
            RandGaussianNoised("image", prob=0.5),
        ]
        transforms = [
            EnsureChannelFirstd(keys, channel_dim="no_channel"),
            ScaleIntensityd("image"),
            *(random if train else []),
            ToTensord(keys),
        ]
        data = MonaiDataset(volumes(count, seed), transforms)
        loader: DataLoader[Any] = MonaiLoader(data, batch_size=2, shuffle=train, collate_fn=list_data_collate)
        return loader

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(VOLUMES, 1, train=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(3, 2, train=False)


class Segmentation(LightningModule):
    """A network of MONAI's with its own loss, on its own tensors. network: one of `NETWORKS`."""

    def __init__(self, network: str) -> None:
        super().__init__()
        from monai.losses import DiceCELoss
        from monai.networks.nets import SegResNet, UNet

        torch.manual_seed(1)
        self.net: nn.Module
        if network == "SegResNet":  # activations are in place unless asked for otherwise
            self.net = SegResNet(init_filters=8, norm="batch", blocks_down=(1, 2), blocks_up=(1,))
        else:
            self.net = UNet(3, 1, 2, channels=(4, 8, 8), strides=(2, 2), num_res_units=1, norm="batch")
        self.loss = DiceCELoss(to_onehot_y=True, softmax=True)

    def _loss(self, batch: dict[str, Any]) -> Any:
        from monai.data import MetaTensor

        assert isinstance(batch["image"], MetaTensor)
        return self.loss(self.net(batch["image"]), batch["label"])

    def training_step(self, batch: dict[str, Any], _index: int) -> Any:
        return self._loss(batch)

    def validation_step(self, batch: dict[str, Any], _index: int) -> None:
        self.log("val_loss", self._loss(batch), batch_size=len(batch["image"]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


class Digits(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Images of a bright or a dark square, which of them it is, and noise that is drawn anew each time."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.y = torch.randint(0, 2, (count,), generator=generator)
        self.x = torch.randn(count, 1, 8, 8, generator=generator)
        self.x[:, :, 2:6, 2:6] += self.y[:, None, None, None]

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.x[index], self.y[index], torch.randn(4)


class Images(LightningDataModule):
    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Digits(30, 1), batch_size=8, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Digits(9, 2), batch_size=8)


class Classifier(LightningModule):
    """Logs a collection of torchmetrics' metrics, in training of each step and in validation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(True), nn.Flatten(), nn.Linear(288, 1)
        )
        metrics = MetricCollection({"f1": BinaryF1Score(), "score": MeanMetric()})
        self.train_metrics, self.val_metrics = metrics.clone("train_"), metrics.clone("val_")

    def _loss(self, batch: Any, metrics: MetricCollection) -> Tensor:
        x, y, _ = batch
        output = self.net(x)[:, 0]
        # Probabilities: torchmetrics takes scores for logits if any of an update is not in [0, 1].
        metrics["f1"].update(output.detach().sigmoid(), y)
        metrics["score"].update(output.detach().sigmoid())
        return F.binary_cross_entropy_with_logits(output, y.to(output.dtype))

    def training_step(self, batch: Any, _index: int) -> Tensor:
        loss = self._loss(batch, self.train_metrics)
        self.log_dict(self.train_metrics, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, _index: int) -> None:
        self.log("val_loss", self._loss(batch, self.val_metrics), batch_size=len(batch[1]))
        self.log_dict(self.val_metrics)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class Gan(LightningModule):
    """Two networks and two optimizers, stepped by hand. Its noise is that of the data: see `Digits`."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(1)
        self.generator = nn.Sequential(
            nn.ConvTranspose2d(4, 8, 4, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(True),
            nn.ConvTranspose2d(8, 1, 4, stride=2, padding=1),
            nn.Tanh(),
        )
        self.critic = nn.Sequential(
            nn.Conv2d(1, 8, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.LeakyReLU(0.2, True),
            nn.Flatten(),
            nn.Linear(128, 1),
        )

    def training_step(self, batch: Any, _index: int) -> None:
        x, _, noise = batch
        optimizers: Any = self.optimizers()
        for optimizer, loss in zip(optimizers, (self._generator_loss, self._critic_loss), strict=True):
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            value = loss(x, noise[:, :, None, None])
            self.manual_backward(value)
            optimizer.step()
            self.untoggle_optimizer(optimizer)
            self.log(loss.__name__.strip("_"), value)

    def validation_step(self, batch: Any, _index: int) -> None:
        x, _, noise = batch
        self.log("val_loss", self._critic_loss(x, noise[:, :, None, None]), batch_size=len(x))

    def _generator_loss(self, _x: Tensor, noise: Tensor) -> Tensor:
        return F.softplus(-self.critic(self.generator(noise))).mean()

    def _critic_loss(self, x: Tensor, noise: Tensor) -> Tensor:
        fake = self.critic(self.generator(noise).detach())
        return F.softplus(-self.critic(x)).mean() + F.softplus(fake).mean()

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.5)
            for network in (self.generator, self.critic)
        ]


def _time_first(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.stack([x for x, _ in samples], dim=1), torch.stack([y for _, y in samples])


class Series(LightningDataModule):
    """Noisy sine waves with time as first dimension, and how they go on."""

    def _loader(self, count: int, seed: int, *, train: bool) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(seed)
        phase = 6 * torch.rand(count, 1, generator=generator)
        wave = torch.sin(phase + torch.arange(13) / 2) + 0.1 * torch.randn(count, 13, generator=generator)
        data: Any = [(row[:12, None], row[12:]) for row in wave]
        return DataLoader(data, batch_size=6, shuffle=train, collate_fn=_time_first)

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(22, 1, train=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(9, 2, train=False)


class Forecast(LightningModule):
    """An LSTM on normalised features of a few points each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.features = nn.Sequential(nn.Conv1d(1, 8, 3, bias=False), nn.BatchNorm1d(8), nn.ReLU(True))
        self.lstm = nn.LSTM(8, 12, num_layers=2)
        self.head = nn.Linear(12, 1)

    def _loss(self, batch: Any) -> Tensor:
        x, y = batch
        features = self.features(x.permute(1, 2, 0))  # (time, N, 1) to (N, 1, time)
        return F.mse_loss(self.head(self.lstm(features.permute(2, 0, 1))[0][-1]), y)

    def training_step(self, batch: Any, _index: int) -> Tensor:
        return self._loss(batch)

    def validation_step(self, batch: Any, _index: int) -> None:
        self.log("val_loss", self._loss(batch), batch_size=len(batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


CANVAS = 16


class Scenes(LightningDataModule):
    """Images of different sizes with one or two boxes each: lists, as torchvision's detectors take them."""

    def _loader(self, count: int, seed: int, *, train: bool) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(seed)
        data: Any = []
        for number in range(count):
            height, width = torch.randint(10, CANVAS + 1, (2,), generator=generator).tolist()
            image = 0.1 * torch.randn(3, height, width, generator=generator)
            boxes = torch.zeros(1 + number % 2, 4)
            for box in boxes:
                left, top = torch.randint(0, 5, (2,), generator=generator).tolist()
                image[:, top : top + 4, left : left + 4] += 1
                box[:] = torch.tensor([left, top, left + 4, top + 4])
            data.append((image, {"boxes": boxes, "labels": torch.ones(len(boxes), dtype=torch.long)}))
        return DataLoader(data, batch_size=2, shuffle=train, collate_fn=_as_lists)

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(7, 1, train=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(3, 2, train=False)


def _as_lists(samples: list[Any]) -> tuple[Any, ...]:
    return tuple(zip(*samples, strict=True))


class Detector(LightningModule):
    """A list of images and of targets in, a dict of losses out.

    Each image is padded to the size of all, as torchvision's `size_divisible` does for images of about one
    size: a size that followed from the other images of a batch would be another on another worker. The
    losses of an image are means over its cells, so that the loss of a batch is a mean over its images.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
        )
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        batch = torch.stack(
            [F.pad(image, (0, CANVAS - image.shape[2], 0, CANVAS - image.shape[1])) for image in images]
        )
        objects, boxes = [], []
        for cells, target in zip(self.head(self.backbone(batch)), targets, strict=True):
            x, y = (target["boxes"][:, :2] + 2).div(4).long().T
            wanted = torch.zeros_like(cells[0])
            wanted[y, x] = 1
            objects.append(F.binary_cross_entropy_with_logits(cells[0], wanted))
            boxes.append(F.smooth_l1_loss(cells[1:, y, x].T, target["boxes"] / CANVAS))
        return {"objects": torch.stack(objects).mean(), "boxes": torch.stack(boxes).mean()}

    def training_step(self, batch: Any, _index: int) -> Any:
        losses = self(*batch)
        self.log_dict(losses, batch_size=len(batch[0]))
        return sum(losses.values())

    def validation_step(self, batch: Any, _index: int) -> None:
        self.log("val_loss", sum(self(*batch).values()), batch_size=len(batch[0]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.5)


CASES: dict[str, tuple[Callable[..., LightningModule], dict[str, Any], type[LightningDataModule], int]] = {
    **{network: (Segmentation, {"network": network}, Volumes, 2) for network in NETWORKS},
    "metric collection": (Classifier, {}, Images, 8),
    "GAN": (Gan, {}, Images, 8),
    "time series": (Forecast, {}, Series, 6),
    "detection": (Detector, {}, Scenes, 2),
}
