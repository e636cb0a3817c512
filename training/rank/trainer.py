"""The Lightning Trainer of a run, with its plugins and callbacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.precision import Precision

from sync_bn import check_ranks
from training.bits import environment
from training.bits.exchange import Exchange
from training.bits.logs import ShardLogs
from training.bits.loss import ShardLoss
from training.bits.shards import RankShards
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
from training.console import say
from training.errors import BuildError
from training.hangs.watchdog import Watchdog
from training.model.norms import layer_sync
from training.model.sample_noise import SampleNoise
from training.model.supervised import Supervised
from training.rank.bits_strategy import BitsStrategy, ShardStates
from training.rank.loaders import RankLoaders
from training.rank.options import UserOptions
from training.rank.own_output import OwnOutput
from training.rank.share_strategy import ShareStrategy
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


@dataclass(frozen=True, kw_only=True)
class RunParts:
    """What a Trainer is made of, besides the spec.

    logger: in place of each `None` of user.loggers. prepared: is called when the first batch is there.
    curves_only: validate on one batch, and do not save the run when it ends.
    """

    tracker: Tracker
    logger: RunLogger
    norm_report: Any
    watchdog: Watchdog
    store: Store
    start: StartingPoint
    share: ShareCounts
    logs: LogSync
    files: KeptFiles
    own_output: OwnOutput
    loaders: RankLoaders
    shards: RankShards | None
    prepared: Callable[[], None]
    user: UserOptions
    curves_only: bool


def make_trainer(spec: Spec, context: RankContext, folder: RunFolder, parts: RunParts) -> Trainer:
    """Returns the Trainer for one rank. Every rank must call it, because it may create process groups."""
    settings, synchronized = spec.training, spec.norm.is_synchronized
    sets_precision = _sets_precision(spec, parts.user)
    vote = StopVote()
    if parts.shards is not None:
        _tell_environment(parts.shards, parts, context.rank)
    by_sample = parts.start.state is None or parts.start.state.draws_by_sample
    noise = SampleNoise(seed=settings.seed, rank=context.rank, by_sample=by_sample)
    loss = _loss(parts, vote, equal_parts=settings.loader_batches is not None)
    # With statistics over all ranks, buffers are equal already, and broadcasting them would cost time.
    same_buffers = synchronized and spec.norm.group == "world"
    return Trainer(
        accelerator="gpu" if spec.resources.gpus_per_worker else "cpu",
        devices="auto",
        strategy=_strategy(parts, loss, noise, forward_sync_buffers=not same_buffers),
        plugins=_plugins(spec, context, parts),
        precision=None if sets_precision else settings.precision,
        max_epochs=settings.max_epochs or -1,
        max_steps=settings.max_steps or -1,
        accumulate_grad_batches=settings.accumulate_grad_batches,
        callbacks=_callbacks(spec, folder, parts, vote, loss, noise),
        logger=[parts.logger if own is None else own for own in parts.user.loggers],
        default_root_dir=folder.files,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        **arguments(
            parts.user.arguments,
            bits_on_gpus=parts.shards is not None and bool(spec.resources.gpus_per_worker),
            curves_only=parts.curves_only,
        ),
    )


def shards_of(spec: Spec, context: RankContext, share: ShareCounts) -> RankShards | None:
    """Returns the shards of a rank for `training.reproducible: bits`, otherwise None."""
    if spec.training.reproducible == "curve":
        return None
    exchange = Exchange(spec.shards, context.rank, context.world_size)
    shards = RankShards(exchange, share=share, seed=spec.training.seed)
    on_gpu = bool(spec.resources.gpus_per_worker)
    own = environment.own_environment(on_gpu=on_gpu)
    environment.check_same_on_all(own, shards.exchange)
    shards.exchange.share_memory("cuda" if on_gpu else "cpu")
    shards.environments = [own]
    return shards


def _tell_environment(shards: RankShards, parts: RunParts, rank: int) -> None:
    """Records what the result depends on, and whether earlier steps of the run were made in another way."""
    before: list[environment.Environment] = []
    if parts.start.state is not None:
        before = parts.start.state.environments or [environment.UNKNOWN]
    (now,) = shards.environments
    tags = environment.tags(now)
    if changed := environment.change(before, now):
        tags[environment.CHANGED_TAG] = changed
        if rank == 0:
            say(f"warning: bits may differ from those of a run that was made in one environment: {changed}")
    parts.tracker.tags(tags)
    shards.environments = environment.history(before, now)


def logs_of(module: LightningModule, share: ShareCounts, shards: RankShards | None) -> LogSync:
    """Returns what reduces the logged values of a module."""
    if shards is None:
        return LogSync(module, share, steps=not isinstance(module, Supervised))
    shards.logs = ShardLogs(module, share, shards.exchange, lambda: shards.threads.running)
    return shards.logs


def _loss(parts: RunParts, vote: StopVote, *, equal_parts: bool) -> GlobalLoss:
    given = parts.tracker, vote, parts.share, parts.watchdog.ranks_ahead
    if parts.shards is None:
        return GlobalLoss(*given, equal_parts=equal_parts)
    return ShardLoss(
        *given, equal_parts=equal_parts, exchange=parts.shards.exchange, threads=parts.shards.threads
    )


def _strategy(parts: RunParts, loss: GlobalLoss, noise: SampleNoise, **ddp: Any) -> GroupStrategy:
    if parts.shards is None:
        return ShareStrategy(loss=loss, share=parts.loaders.share, noise=noise, **ddp)
    assert isinstance(loss, ShardLoss)
    watchdog = parts.watchdog
    return BitsStrategy(
        loss=loss,
        share=parts.loaders.share,
        shards=parts.shards,
        doing=lambda what: watchdog.progress(watchdog.step, what),
    )


def _sets_precision(spec: Spec, user: UserOptions) -> bool:
    """Returns whether a plugin sets the precision. Raises BuildError if the spec does so, too."""
    found = any(isinstance(plugin, Precision) for plugin in user.plugins)
    if found and spec.training.precision != Training().precision:
        raise BuildError(
            "trainer.plugins",
            f"has a precision plugin, and training.precision is {spec.training.precision}; keep one of them",
        )
    return found


def _plugins(spec: Spec, context: RankContext, parts: RunParts) -> list[Any]:
    io = JobCheckpointIO(parts.files, parts.own_output.written)
    plugins: list[Any] = [context.environment(), io, *parts.user.plugins]
    if spec.norm.is_synchronized:
        plugins.append(layer_sync(spec.norm, context.node_rank, spec.training.accumulate_grad_batches))
        check_ranks(timeout_seconds=FIRST_BATCH_SECONDS)
    return plugins


def _callbacks(
    spec: Spec, folder: RunFolder, parts: RunParts, vote: StopVote, loss: GlobalLoss, noise: SampleNoise
) -> list[Callback]:
    return [
        Heartbeat(parts.watchdog, parts.prepared),
        KeepSignals(),
        OwnCheckpoints(parts.files),
        parts.logs,
        parts.share,
        EpochLength(),
        *([] if parts.shards else [BufferWatch()]),
        # The checkpoint callback restores random generators, so it precedes RngWatch, which checks
        # whether they advance. It casts a vote, so it precedes GlobalLoss, which counts the votes.
        CheckpointCallback(
            spec,
            folder,
            parts.tracker,
            parts.store,
            vote=vote,
            logs=parts.logs,
            busy=parts.watchdog.busy,
            step=parts.start.step,
            state=parts.start.state,
            release=parts.start.release,
            best=parts.start.best,
            own_output=parts.own_output.state,
            environments=parts.shards.environments if parts.shards else [],
            draws_by_sample=noise.by_sample,
            final=not parts.curves_only,
        ),
        *([ShardStates(parts.shards)] if parts.shards else [RngWatch(parts.tracker, noise.draws)]),
        parts.norm_report,
        loss,
        ProgressReporter(parts.tracker),
        *parts.user.callbacks,
    ]


def arguments(given: Mapping[str, Any], *, bits_on_gpus: bool, curves_only: bool) -> dict[str, Any]:
    """Returns the arguments of the Trainer that a spec may give.

    given: those of the spec. bits_on_gpus: for `training.reproducible: bits`, which needs kernels there that
    are deterministic; an operation that has none raises an error that names it. curves_only: see RunParts.
    """
    ours = {"log_every_n_steps": 1, "num_sanity_val_steps": 0}
    found = ours | ({"deterministic": True} if bits_on_gpus else {}) | dict(given)
    if curves_only and found.get("limit_val_batches") != 0:
        found["limit_val_batches"] = 1  # not none: callbacks and schedulers may wait for its metrics
    return found
