"""A callback that knows how many samples this rank's share of the running batch has, from the sampler.

The first dimension of a batch's first tensor need not be the samples: sequences may have time first, and a
batch may be an object of the user's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from sync_bn import SyncBatchNorm
from training import internals, metric_internals
from training.errors import TrainingError, is_lost_peer
from training.loading.combined import check_combined, given_in_batch
from training.loading.counted import CountedLoader
from training.loading.sharded import ShardedBatch
from training.model.export import example_input
from training.model.sample_draws import Share
from training.model.supervised import Supervised


class ShareCounts(Callback):
    """Sets `samples` at the start of each batch; other callbacks and `module.log` read it, so it comes first.

    If the share is empty but its batch is a `Placeholder`, its samples count for nothing while it runs:
    neither in the statistics of SyncBatchNorm nor in metrics of torchmetrics. If its batch is empty, too,
    metrics are not updated: many of torchmetrics' take no batch without samples.
    """

    def __init__(self) -> None:
        self.samples = 1
        self.share: Share | None = None
        """Where this rank's samples of the running batch to train on are, if that is known."""
        self.batch = ""
        """The running batch, in words: equal on all ranks."""
        self.example: Tensor | None = None
        """One sample of the input of the first batch, if that is a tensor."""
        self._is_first, self._is_empty = True, False
        self._batch = ExitStack()

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Adds to an error of the user's step that this rank's share is empty, if it is, and the way out."""
        try:
            yield
        except Exception as error:
            if self._is_empty and not isinstance(error, TrainingError) and not is_lost_peer(error):
                error.add_note(
                    f"Rank {dist.get_rank()} has no sample of this batch, because it has fewer samples than "
                    f"there are workers ({dist.get_world_size()}). Make the step accept tensors of length 0 "
                    "(test len(x)), or use fewer workers, or a batch size that leaves a larger last batch "
                    "(training.global_batch_size; for validation and test training.eval_batch_size), or, for "
                    "training, set training.drop_last."
                )
            raise

    def on_train_epoch_start(self, trainer: Trainer, _module: LightningModule) -> None:
        loaders, mode = internals.loaders_to_train_on(trainer)
        if len(loaders) > 1:
            batches = int(trainer.num_training_batches)
            check_combined(loaders, mode, batches=batches, world_size=trainer.world_size)

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._is_first:
            self._is_first = False
            self.example = example_input(batch.first if isinstance(batch, ShardedBatch) else batch)
        (loader, number), *others = given_in_batch(*internals.loaders_to_train_on(trainer), batch_idx)
        self.batch = f"batch {batch_idx} of the training epoch"
        self._begin(module, loader, batch, number)
        position = loader.position(number) if isinstance(loader, CountedLoader) else None
        self.share = None
        if position is not None:
            if others:
                position = position._replace(step=batch_idx)  # a short loader begins again within the epoch
            self.share = Share(self.samples, trainer.current_epoch, *position)

    def on_validation_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._evaluate(trainer, module, batch, batch_idx, dataloader_idx)

    def on_test_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._evaluate(trainer, module, batch, batch_idx, dataloader_idx)

    def on_train_batch_end(self, *_: Any) -> None:
        self._batch.close()

    def on_validation_batch_end(self, *_: Any) -> None:
        self._batch.close()

    def on_test_batch_end(self, *_: Any) -> None:
        self._batch.close()

    def _evaluate(
        self, trainer: Trainer, module: LightningModule, batch: Any, number: int, index: int
    ) -> None:
        self.batch = f"batch {number} of loader {index} of the evaluation"
        loaders, mode = internals.loaders_to_evaluate_on(trainer)
        if mode == "sequential":
            loader = loaders[index]
        else:
            (loader, number), *_ = given_in_batch(loaders, mode, number)
        self._begin(module, loader, batch, number)

    def _begin(self, module: LightningModule, loader: Any, batch: Any, number: int) -> None:
        self._batch.close()  # of a batch that ended the epoch early, from on_train_batch_start
        if isinstance(batch, ShardedBatch):
            return  # each shard has its own number of samples
        known = loader.samples(number) if isinstance(loader, CountedLoader) else None
        self.samples = extract_batch_size(batch) if known is None else known
        if isinstance(module, Supervised):
            module.samples = self.samples
        stands_in = isinstance(loader, CountedLoader) and loader.is_placeholder(number)
        self._is_empty = known == 0 and not stands_in
        if stands_in:
            self._batch.enter_context(_counts_nothing(module))
        elif self._is_empty:
            self._batch.enter_context(_updates_nothing(module))


@contextmanager
def _counts_nothing(module: LightningModule) -> Iterator[None]:
    layers = [layer for layer in module.modules() if isinstance(layer, SyncBatchNorm)]
    for layer in layers:
        layer.counts_samples = False
    try:
        with _restored_metrics(module):
            yield
    finally:
        for layer in layers:
            layer.counts_samples = True


@contextmanager
def _updates_nothing(module: LightningModule) -> Iterator[None]:
    # A collection's first update finds out which of its metrics have equal states: without samples, all.
    metrics: list[Any] = [part for part in module.modules() if isinstance(part, Metric | MetricCollection)]
    before = [(metric, vars(metric).get("update")) for metric in metrics]
    for metric in metrics:
        metric.update = _nothing
    try:
        with _restored_metrics(module):  # a metric's forward counts an update in any case
            yield
    finally:
        for metric, update in before:
            del metric.update
            if update is not None:
                metric.update = update


def _nothing(*_: Any, **__: Any) -> None:
    """An update that does nothing."""


@contextmanager
def _restored_metrics(module: LightningModule) -> Iterator[None]:
    metrics = [metric for metric in module.modules() if isinstance(metric, Metric)]
    before = [(metric, metric_internals.metric_state(metric)) for metric in metrics]
    try:
        yield
    finally:
        for metric, state in before:
            metric_internals.restore_metric_state(metric, state)
