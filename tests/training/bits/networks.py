"""Small networks of many kinds for images of 8 x 8 in three classes, and a module that logs in every way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC

from tests.training.attempts import stop_if_asked

CLASSES = 3


class Samples(Dataset[tuple[Tensor, Tensor]]):
    """Images with a bright, a dark or no square. Their noise is drawn anew each time."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.y = torch.randint(0, CLASSES, (count,), generator=generator)
        self.x = torch.randn(count, 1, 8, 8, generator=generator)
        self.x[:, :, 2:6, 2:6] += (self.y - 1)[:, None, None, None]

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index] + 0.1 * torch.randn(1, 8, 8), self.y[index]


class Images(LightningDataModule):
    def __init__(self, train: int = 32) -> None:
        super().__init__()
        self.train = train

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Samples(self.train, 1), shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Samples(12, 2))

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Samples(5, 3))


class Scans(LightningDataModule):
    """The same images with their bright pixels as classes, of the class that MONAI's transforms give."""

    def train_dataloader(self) -> DataLoader[Any]:
        from monai.data import MetaTensor

        data: Any = [{"image": MetaTensor(x), "label": (x > 1).long()} for x in Samples(20, 1).x]
        return DataLoader(data, shuffle=True)


class Block(nn.Module):
    """A residual block, as in a ResNet."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.second(F.relu(self.bn1(self.first(x))))) + x)


class Dense(nn.Module):
    """Every layer sees the outputs of all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(1 + 3 * n, 3, 3, padding=1) for n in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = torch.cat([x, F.relu(norm(conv(x)))], 1)
        return x


class Twice(nn.Module):
    """One layer, used before and after a normalisation, under an autocast of its own."""

    def __init__(self, *, half: bool = False) -> None:
        super().__init__()
        self.layer, self.norm, self.casts = nn.Linear(64, 64), nn.BatchNorm1d(64), half

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.casts):
            output: Tensor = self.layer(F.relu(self.norm(self.layer(x.flatten(1)))))
        return output.to(x.dtype)


class Rows(nn.Module):
    """Rows of an image as a sequence of 8 numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.LSTM | nn.GRU], **options: Any) -> None:
        super().__init__()
        self.net = kind(8, 6, num_layers=2, batch_first=True, dropout=0.3, **options)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.net(x)[0][:, -1]
        return output


class Transformer(nn.Module):
    """Pixels as tokens of 8 kinds, whose embedding is also that of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(8, 8, padding_idx=0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = (4 + 2 * x[:, 0, 3]).long().clamp(0, 7)
        output: Tensor = self.encoder(self.embedding(tokens) + self.embedding.weight)
        return output.mean(1)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.1, kdim=8, vdim=8)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        rows = x[:, 0].transpose(0, 1)
        output: Tensor = self.norm(rows + self.attention(rows, rows, rows)[0]).mean(0)
        return output


class Recomputed(nn.Module):
    """Its inner layers are computed again in the backward pass."""

    def __init__(self, *, norm: bool = False, reentrant: bool = False) -> None:
        super().__init__()
        norms = [nn.BatchNorm1d(16)] if norm else []
        self.first = nn.Linear(64, 16)
        self.inner = nn.Sequential(nn.Linear(16, 16), *norms, nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 16))
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = checkpoint(self.inner, self.first(x.flatten(1)), use_reentrant=self.reentrant)
        return output


class Moving(nn.Module):
    """Keeps means and a queue in buffers, which it changes in place or replaces."""

    replaced: Tensor
    in_place: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 8)
        self.register_buffer("replaced", torch.zeros(8))
        self.register_buffer("in_place", torch.zeros(8))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.flatten(1))
        if self.training and len(x):
            self.count += 1
            self.replaced = 0.9 * self.replaced + 0.1 * y.detach().float().mean(0)
            self.in_place.mul_(0.9).add_(y.detach().float().amax(0), alpha=0.1)
        weight = 1 + 1 / (self.count + 1)
        return weight * (y - self.replaced) + self.in_place


def _conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        nn.GroupNorm(2, 4),
        nn.PReLU(4),
        nn.ConvTranspose2d(4, 4, 4, stride=2, padding=1),
        nn.Dropout2d(0.2),
        nn.LeakyReLU(inplace=True),
        nn.Conv2d(4, 4, 3, groups=2, dilation=2),
        nn.AvgPool2d(2),
    )


def _normed_weights() -> nn.Module:
    return nn.Sequential(
        parametrizations.spectral_norm(nn.Conv2d(1, 4, 3)),
        nn.ReLU(),
        nn.utils.spectral_norm(nn.Conv2d(4, 4, 3)),
        nn.SiLU(),
        parametrizations.weight_norm(nn.Conv2d(4, 4, 3)),
        nn.Flatten(),
        nn.utils.weight_norm(nn.Linear(16, 8)),
        nn.Hardswish(),
        parametrizations.orthogonal(nn.Linear(8, 8)),
    )


def _mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.GELU(), nn.Dropout(0.3), nn.Linear(16, 8)
    )


def _lines() -> nn.Module:
    return nn.Sequential(
        Rows(), nn.Conv1d(8, 6, 3), nn.ReLU(), nn.ConvTranspose1d(6, 4, 3), nn.BatchNorm1d(4), nn.Flatten()
    )


def _volumes() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(2, (2, 4)),
        nn.Conv3d(1, 4, 3, padding=1),
        nn.BatchNorm3d(4),
        nn.ReLU(),
        nn.ConvTranspose3d(4, 2, 2),
        nn.AlphaDropout(0.1),
        nn.RReLU(),
        nn.Flatten(),
    )


def _resnet() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), Block(4), Block(4))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet": _resnet,
    "dense": Dense,
    "mlp": _mlp,
    "conv": _conv,
    "lines": _lines,
    "volumes": _volumes,
    "lstm": lambda: nn.Sequential(Rows(), Recurrent(nn.LSTM, bidirectional=True, proj_size=4)),
    "gru": lambda: nn.Sequential(Rows(), nn.BatchNorm1d(8), Recurrent(nn.GRU)),
    "transformer": Transformer,
    "attention": Attention,
    "normed weights": _normed_weights,
    "moving buffers": Moving,
    "unfrozen": _mlp,
    "hooked": _mlp,
    "counted": _mlp,
    "twice": Twice,
    "twice, own autocast": lambda: Twice(half=True),
    "recomputed": Recomputed,
    "recomputed norm": lambda: Recomputed(norm=True),
    "recomputed, reentrant": lambda: Recomputed(reentrant=True),
}

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, 0.05, momentum=0.9, nesterov=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, 0.01),
    "adam": lambda parameters: torch.optim.Adam(parameters, 0.01, amsgrad=True),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, 0.005, momentum=0.5),
    "lbfgs": lambda parameters: torch.optim.LBFGS(parameters, 0.1, max_iter=3, line_search_fn="strong_wolfe"),
}


class Task(LightningModule):
    """Trains a network of `NETWORKS` as a classifier, and logs in every way."""

    def __init__(
        self, network: str, optimizer: str = "sgd", *, weighted: bool = False, scheduled: bool = True
    ) -> None:
        super().__init__()
        self.network, self.scheduled, self.steps = network, scheduled, 0
        torch.manual_seed(1)
        self.net = nn.Sequential(NETWORKS[network](), nn.Flatten())
        with torch.no_grad():
            width = self.net.eval()(torch.randn(2, 1, 8, 8)).shape[1]
        self.net.train()
        self.head, self.optimizer = nn.Linear(width, CLASSES), optimizer
        self.weights = torch.tensor([1.0, 2.0, 0.5]) if weighted else None
        self.train_auroc, self.val_auroc = (MulticlassAUROC(CLASSES) for _ in range(2))
        self.train_mean, self.accuracy = MeanMetric(), MulticlassAccuracy(CLASSES)

    def _loss(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        x, y = batch
        output = self.head(self.net(x))
        if self.weights is None:
            return F.cross_entropy(output, y), output.detach().float().softmax(1), y
        targets = torch.where(x[:, 0, 0, 0] > 1, 2, y)
        ignored = torch.where(x[:, 0, 0, 1] > 0.5, -7, targets)
        return F.cross_entropy(output, ignored, self.weights.to(output), ignore_index=-7), output, y

    def training_step(self, batch: Any, index: int) -> Tensor:
        stop_if_asked(self.trainer.global_step + 1)
        loss, output, y = self._loss(batch)
        if self.weights is None:
            self.train_auroc.update(output, y)
            self.train_mean.update(output[:, 0])
            self.log("train_auroc", self.train_auroc, on_step=False, on_epoch=True)
            self.log("train_mean", self.train_mean, on_step=False, on_epoch=True)
        self._log_all(loss, batch, on_step=True)
        self.steps += 1
        if self.network == "counted":
            loss = loss * (1 + 1 / self.steps)
        if index % 3 == 2:
            self.log("seldom", loss.detach() + 1)
        return loss

    def _log_all(self, loss: Tensor, batch: Any, *, on_step: bool, stage: str = "") -> None:
        x, _ = batch
        self.log(f"{stage}mean", loss, on_step=on_step, on_epoch=True)
        self.log(f"{stage}sum", x.sum(), on_step=on_step, on_epoch=True, reduce_fx="sum")
        for reduction in (torch.min, torch.max):
            extreme = reduction(x) if len(x) else x.new_tensor(0.0)
            name = f"{stage}{reduction.__name__}"
            self.log(name, extreme, on_step=on_step, on_epoch=True, reduce_fx=reduction)

    def on_train_start(self) -> None:
        if self.network == "unfrozen":
            frozen: Any = self.net[0]
            frozen[1].requires_grad_(self.current_epoch > 0)

    def on_train_epoch_start(self) -> None:
        self.on_train_start()
        if self.network == "hooked":
            with torch.no_grad():
                self.head.weight += 0.1 * torch.randn_like(self.head.weight)

    def on_train_epoch_end(self) -> None:
        if self.network == "counted":
            self.log("steps", float(self.steps))

    def on_after_backward(self) -> None:
        if self.network == "hooked":
            assert self.head.weight.grad is not None
            self.log("gradient_so_far", self.head.weight.grad.norm())

    def on_before_optimizer_step(self, _optimizer: Any) -> None:
        if norms := [each.grad.norm() for each in self.parameters() if each.grad is not None]:
            self.log("gradient", torch.stack(norms).norm())

    def validation_step(self, batch: Any, _index: int) -> None:
        loss, output, y = self._loss(batch)
        self._log_all(loss, batch, on_step=False, stage="val_")
        self.log("val_loss", loss)
        self.log("val_brightest", batch[0].amax() if len(batch[0]) else 0.0, reduce_fx="max", on_step=True)
        if self.weights is None:
            self.val_auroc.update(output, y)
            self.log("val_auroc", self.val_auroc)

    def test_step(self, batch: Any, _index: int) -> None:  # noqa: PT019 (no test)
        loss, output, y = self._loss(batch)
        self.log_dict({"test_loss": loss, "test_size": output.pow(2).mean()})
        self.accuracy.update(output, y)
        self.log("test_accuracy", self.accuracy)

    def configure_optimizers(self) -> Any:
        optimizer = OPTIMIZERS[self.optimizer](self.parameters())
        if not self.scheduled:
            return optimizer
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Segmenter(LightningModule):
    """MONAI's UNet with its loss."""

    def __init__(self) -> None:
        super().__init__()
        from monai.losses import DiceCELoss
        from monai.networks.nets import UNet

        torch.manual_seed(1)
        self.net = UNet(
            2, 1, 2, channels=(4, 8, 8), strides=(2, 2), num_res_units=1, norm="batch", dropout=0.1
        )
        self.loss = DiceCELoss(to_onehot_y=True, softmax=True)

    def training_step(self, batch: Any, _index: int) -> Tensor:
        loss: Tensor = self.loss(self.net(batch["image"]), batch["label"])
        self.log("dice", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), 0.01)
