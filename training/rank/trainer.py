"""The Lightning Trainer of a run, with its plugins and callbacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from lightning.pytorch.plugins.precision import Precision

from sync_bn import check_ranks
from training.callbacks.buffer_watch import BufferWatch
from training.callbacks.checkpointing import CheckpointCallback, Store
from training.callbacks.epoch_length import EpochLength
from training.callbacks.global_loss import GlobalLoss
from training.callbacks.heartbeat import Heartbeat
from training.callbacks.log_sync import LogSync
from training.callbacks.logger import RunLogger
from training.callbacks.own_checkpoints import JobCheckpointIO, KeptFiles, OwnCheckpoints
from training.callbacks.progress import ProgressReporter
from training.callbacks.rng_watch import RngWatch
from training.callbacks.share_counts import ShareCounts
from training.callbacks.stop_vote import StopVote
from training.errors import BuildError
from training.hangs.watchdog import Watchdog
from training.model.norms import layer_sync
from training.rank.loaders import RankLoaders
from training.rank.options import UserOptions
from training.rank.own_output import OwnOutput
from training.rank.signals import KeepSignals
from training.rank.starting_point import StartingPoint
from training.rank.strategy import GroupStrategy
from training.run_dir import RunFolder
from training.spec import Spec
from training.spec.training import Training
from training.tracking.tracker import Tracker

if TYPE_CHECKING:
    from training.rank.context import RankContext

FIRST_BATCH_SECONDS = 300.0
"""How long ranks wait for one another in the first steps: the first batch of one may take long to load."""


def make_trainer(
    spec: Spec,
    context: RankContext,
    folder: RunFolder,
    *,
    tracker: Tracker,
    logger: RunLogger,
    norm_report: Any,
    watchdog: Watchdog,
    store: Store,
    start: StartingPoint,
    share: ShareCounts,
    logs: LogSync,
    files: KeptFiles,
    own_output: OwnOutput,
    loaders: RankLoaders,
    prepared: Callable[[], None],
    user: UserOptions,
    curves_only: bool,
) -> Trainer:
    """Returns the Trainer for one rank. Every rank must call it, because it may create process groups.

    curves_only: validate on one batch, and do not save the run when it ends.
    """
    settings, synchronized = spec.training, spec.norm.is_synchronized
    plugins: list[Any] = [context.environment(), JobCheckpointIO(files, own_output.written), *user.plugins]
    if synchronized:
        plugins.append(layer_sync(spec.norm, context.node_rank, settings.accumulate_grad_batches))
        check_ranks(timeout_seconds=FIRST_BATCH_SECONDS)
    # With statistics over all ranks, buffers are equal already, and broadcasting them would cost time.
    same_buffers = synchronized and spec.norm.group == "world"
    vote = StopVote()
    loss = GlobalLoss(
        tracker, vote, share, watchdog.ranks_ahead, equal_parts=settings.loader_batches is not None
    )
    arguments = {"log_every_n_steps": 1, "num_sanity_val_steps": 0, **user.arguments}
    if curves_only and arguments.get("limit_val_batches") != 0:
        arguments["limit_val_batches"] = 1  # not none: callbacks and schedulers may wait for its metrics
    sets_precision = any(isinstance(plugin, Precision) for plugin in user.plugins)
    if sets_precision and settings.precision != Training().precision:
        raise BuildError(
            "trainer.plugins",
            f"has a precision plugin, and training.precision is {settings.precision}; keep one of them",
        )
    return Trainer(
        accelerator="gpu" if spec.resources.gpus_per_worker else "cpu",
        devices="auto",
        strategy=GroupStrategy(loss=loss, share=loaders.share, forward_sync_buffers=not same_buffers),
        plugins=plugins,
        precision=None if sets_precision else settings.precision,
        max_epochs=settings.max_epochs or -1,
        max_steps=settings.max_steps or -1,
        accumulate_grad_batches=settings.accumulate_grad_batches,
        callbacks=[
            Heartbeat(watchdog, prepared),
            KeepSignals(),
            OwnCheckpoints(files),
            logs,
            share,
            EpochLength(),
            BufferWatch(),
            # The checkpoint callback restores random generators, so it precedes RngWatch, which checks
            # whether they advance. It casts a vote, so it precedes GlobalLoss, which counts the votes.
            CheckpointCallback(
                spec,
                folder,
                tracker,
                store,
                vote=vote,
                logs=logs,
                busy=watchdog.busy,
                step=start.step,
                state=start.state,
                release=start.release,
                best=start.best,
                own_output=own_output.state,
                final=not curves_only,
            ),
            RngWatch(tracker),
            norm_report,
            loss,
            ProgressReporter(tracker),
            *user.callbacks,
        ],
        logger=[logger if own is None else own for own in user.loggers],
        default_root_dir=folder.files,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        **arguments,
    )
