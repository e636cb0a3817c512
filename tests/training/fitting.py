"""One rank of a Lightning training run without Ray, assembled like in `training.rank`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import current_process
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from sync_bn.lightning import SyncBatchNormPlugin
from training.callbacks.global_loss import GlobalLoss
from training.callbacks.logger import RunLogger
from training.callbacks.norm_report import norm_report
from training.callbacks.progress import ProgressReporter
from training.callbacks.share_counts import ShareCounts
from training.callbacks.stop_vote import StopVote
from training.errors import NonFiniteLoss
from training.loading.batches import share_loader
from training.loading.user_loader import UserLoader
from training.model.sample_noise import SampleNoise
from training.model.supervised import Supervised, as_lightning_module
from training.protocol import Progress
from training.rank.share_strategy import ShareStrategy
from training.spec import Spec, parse_spec
from training.tracking.mlflow_run import DiscardedRun
from training.tracking.tracker import Fanout, History, JsonLines, NullTracker, Tracker

FEATURES, LENGTH, CLASSES = 3, 4, 3


class JoinedEnvironment(LightningEnvironment):
    """Uses the existing process group; Lightning sees each rank as a separate node."""

    @property
    def creates_processes_externally(self) -> bool:
        return True

    def node_rank(self) -> int:
        return dist.get_rank()

    def local_rank(self) -> int:
        return 0


class Recorder(NullTracker):
    def __init__(self) -> None:
        self.found: History = {}
        self.last: Progress | None = None

    def log(self, step: int, epoch: int, metrics: Any) -> None:  # noqa: ARG002
        for name, value in metrics.items():
            self.found.setdefault(name, []).append((step, value))

    def progress(self, progress: Progress) -> None:
        self.last = progress


@dataclass(frozen=True, kw_only=True)
class Fitted:
    history: History
    state: dict[str, Tensor]
    progress: Progress | None
    error: str | None


def make_spec(*, lr: float = 0.1, observe_every: int | None = None, **training: Any) -> Spec:
    """Returns a spec with global batches of 7 in float64."""
    return parse_spec(
        {
            "model": {"class_path": "tests.training.fitting.Small"},
            "data": {"class_path": "tests.training.fitting.samples"},
            "norm": {"observe_every": observe_every},
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": lr, "momentum": 0.9}},
            "training": {"global_batch_size": 7, "precision": "64-true", "max_epochs": 3} | training,
        }
    )


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        # No bias: BatchNorm cancels it, so its gradient is only rounding, which Adam would amplify.
        self.conv = nn.Conv1d(FEATURES, 4, 2, bias=False)
        self.bn = nn.BatchNorm1d(4)
        self.between: nn.Module = nn.Identity()
        self.bn2 = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.bn2(self.between(self.bn(self.conv(x)).relu())).mean(2))
        return output


class Plain(nn.Module):
    """A model without layers that mix samples."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(FEATURES * LENGTH, 5), nn.Tanh())
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.layers((x - 100) / 2))
        return output


class OwnLightning(LightningModule):
    """A user's own LightningModule with a regression loss."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Small()

    def training_step(self, batch: tuple[Tensor, Tensor], _index: int) -> Tensor:
        x, y = batch
        return nn.functional.mse_loss(self.body(x)[:, 0], y.double())

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class OnRankFromStep(nn.Module):
    """Makes its output NaN on one rank, from a given step on."""

    def __init__(self, rank: int, step: int) -> None:
        super().__init__()
        self.rank, self.step, self.seen = rank, step, 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return x * torch.nan if self.seen >= self.step and dist.get_rank() == self.rank else x


class InfiniteBetween(Small):
    """Produces an infinity between two layers, outside of any layer."""

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.bn(self.conv(x)).mean(2) / 0)
        return output


def infinite_between() -> nn.Module:
    return InfiniteBetween()


def small() -> nn.Module:
    return Small()


def plain() -> nn.Module:
    return Plain()


def own_lightning() -> nn.Module:
    return OwnLightning()


def nan_in_layer(rank: int, step: int) -> nn.Module:
    model = Small()
    model.between = OnRankFromStep(rank, step)
    return model


def nan_weight() -> nn.Module:
    model = Small()
    with torch.no_grad():
        model.head.bias[1] = torch.nan
    return model


def samples(number: int, seed: int, nan_at: int | None = None) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = 100 + torch.randn(number, FEATURES, LENGTH, generator=generator, dtype=torch.float64)
    y = torch.randint(0, CLASSES, (number,), generator=generator)
    if nan_at is not None:
        x[nan_at, 0, 0] = torch.nan
    return TensorDataset(x, y)


def fit(
    rank: int,
    spec: Spec,
    make_model: Callable[[], nn.Module] = small,
    *,
    train: Dataset[Any] | None = None,
    loader: UserLoader | None = None,
    shuffle: bool = True,
    batches_per_step: int = 1,
    folder: Path | None = None,
    resume: bool = False,
    ckpt_path: Path | None = None,
    callbacks: Sequence[Callback] = (),
    vote: StopVote | None = None,
    noise: SampleNoise | None = None,
    processes: int = 0,
) -> Fitted:
    """Trains on 22 samples, so that the last batch of 7 has one; 9 for validation and 2 for test.

    batches_per_step: global batches per optimizer step. processes: of each loader. folder: for result files
    and a final checkpoint. resume: whether to start from the checkpoint in `folder`. ckpt_path: another
    checkpoint to start from.
    """
    warnings.simplefilter("ignore")  # Lightning's tips
    seed_everything(spec.training.seed, verbose=False)
    model = make_model()
    module = model if isinstance(model, LightningModule) else as_lightning_module(model, spec)
    recorder = Recorder()
    files = [JsonLines(folder / "metrics.jsonl")] if folder and rank == 0 else []
    tracker = Fanout([recorder, *files])
    report = norm_report(spec.norm, rank, tracker)
    share_counts = ShareCounts()
    loss = GlobalLoss(tracker, vote or StopVote(), share_counts, ahead=list)
    first = [share_counts, report, loss]
    assert spec.training.global_batch_size is not None
    noise = noise or SampleNoise(seed=spec.training.seed, rank=rank)
    callbacks = [*first, ProgressReporter(tracker), *callbacks]
    trainer = _trainer(spec, tracker, loss, noise, callbacks, batches_per_step)
    share = partial(
        share_loader,
        batch_size=spec.training.global_batch_size,
        accumulate_grad_batches=spec.training.accumulate_grad_batches,
        rank=rank,
        world_size=dist.get_world_size(),
        seed=spec.training.seed,
    )
    if processes:
        current_process().daemon = False  # so that it may have child processes, which end with it
    load = partial(
        DataLoader,
        num_workers=processes,
        persistent_workers=processes > 0,
        multiprocessing_context="fork" if processes else None,
    )
    error = None
    try:
        trainer.fit(
            module,
            loader or share(load(_as(spec, train or samples(22, 1)), shuffle=shuffle)),
            share(load(_as(spec, samples(9, 2)))),
            ckpt_path=folder / "last.ckpt" if folder and resume else ckpt_path,
            weights_only=False,
        )
        if isinstance(module, Supervised):
            trainer.test(module, share(DataLoader(_as(spec, samples(2, 3)))), verbose=False)
    except NonFiniteLoss as caught:
        error = str(caught)
    if folder:
        trainer.save_checkpoint(folder / "last.ckpt")
        report.draw(folder)
    tracker.close()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    return Fitted(history=recorder.found, state=state, progress=recorder.last, error=error)


def _as(spec: Spec, data: Dataset[Any]) -> Dataset[Any]:
    if not isinstance(data, TensorDataset):
        return data
    x, y = data.tensors
    return TensorDataset(x if spec.training.precision == "64-true" else x.float(), y)


def _trainer(
    spec: Spec,
    tracker: Tracker,
    loss: GlobalLoss,
    noise: SampleNoise,
    callbacks: list[Callback],
    batches_per_step: int,
) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=1,
        num_nodes=dist.get_world_size(),
        strategy=ShareStrategy(
            loss=loss, share=lambda loader: loader, noise=noise, forward_sync_buffers=False
        ),
        plugins=[JoinedEnvironment(), SyncBatchNormPlugin()],
        precision=spec.training.precision,
        max_epochs=spec.training.max_epochs or -1,
        max_steps=spec.training.max_steps or -1,
        accumulate_grad_batches=spec.training.accumulate_grad_batches * batches_per_step,
        callbacks=callbacks,
        logger=RunLogger(tracker, DiscardedRun(), {}, Path()),
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
