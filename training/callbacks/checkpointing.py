"""The Lightning callback that saves checkpoints: when it saves one, and what the checkpoint holds.

All ranks save a checkpoint together, between two optimizer steps or after the last one. It holds what
Lightning saves (model, optimizers, schedulers, gradient scaler, loops), the metrics accumulated so far in the
epoch, and the states of the random generators. A resumed run therefore continues as if it had never stopped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from training import internals
from training.callbacks import resume_point, train_state
from training.callbacks.job_step import job_step
from training.callbacks.log_sync import LogSync
from training.callbacks.made_with import check_same, made_with
from training.callbacks.monitor import Monitor
from training.callbacks.own_checkpoints import IN_MEMORY, JobCheckpointIO
from training.callbacks.stop_vote import StopVote, Vote
from training.callbacks.train_state import TrainState
from training.checkpoints.folder import Checkpoints
from training.checkpoints.listing import LIGHTNING
from training.checkpoints.retention import comparable, is_better
from training.run_dir import RunFolder
from training.spec import Spec
from training.tracking.tracker import Tracker

if TYPE_CHECKING:
    from training.checkpoints.object_store import ObjectStore

log = logging.getLogger(__name__)

Store: TypeAlias = "Checkpoints | ObjectStore"

SECONDS_BETWEEN = 10.0
"""Minimum time between two checkpoints that are saved only because an epoch has ended."""


class StopRequested(BaseException):
    """Ends a run that was asked to save itself and stop. This is not a failure.

    step: of the last checkpoint, 0 if there is none; up to date on rank 0 only.
    """

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


class CheckpointCallback(Callback):
    """Saves the run every N steps or minutes, between epochs, whenever a validation was the best so far, when
    the run is asked to stop, and when it ends.

    Only rank 0 votes, from its clock and the stop request in the run's folder; `vote` carries its decision to
    every rank together with the loss. `busy` is entered while a checkpoint is saved. If a checkpoint cannot
    be written, rank 0 logs a warning and training continues; the previous checkpoint stays.

    The checkpoint is saved just before the next batch, because only then is everything that belongs to the
    step complete, including metrics, schedulers and validation.

    step, state: of the checkpoint that the run goes on from; 0, None: it starts at its first step. release:
    called when all ranks have read it. best: the best metric of the run's checkpoints, on rank 0. own_output:
    returns that of the state to save, on rank 0. environments, draws_by_sample: of the state to save. final:
    whether to save the run when it ends.
    """

    def __init__(
        self,
        spec: Spec,
        folder: RunFolder,
        tracker: Tracker,
        store: Store,
        *,
        vote: StopVote,
        logs: LogSync,
        busy: Callable[[str], AbstractContextManager[None]],
        step: int = 0,
        state: TrainState | None = None,
        release: Callable[[], None] = lambda: None,
        best: float | None = None,
        own_output: Callable[[], dict[str, Any]] = dict,
        environments: Sequence[dict[str, str]] = (),
        draws_by_sample: bool = True,
        final: bool = True,
    ) -> None:
        self.settings, self.spec, self.folder = spec.training.checkpoint, spec, folder
        self.tracker, self.vote, self.logs, self.busy = tracker, vote, logs, busy
        self.store = store
        self._monitor, self._best, self._final = Monitor(self.settings), best, final
        self._to_restore, self._release = state, release
        self._own_output, self._environments = own_output, list(environments)
        self._draws_by_sample = draws_by_sample
        self._made_with: dict[str, Any] = {}
        self._step = step
        self._saved = None if state is None else step  # updated on rank 0 only
        self._saved_at = time.monotonic()

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if stage == "fit" and self._final:
            internals.before_epoch_ends(trainer, lambda: self._save_within_epoch(trainer, module))

    def on_fit_start(self, trainer: Trainer, _module: LightningModule) -> None:
        self._made_with = made_with(trainer)
        if self._to_restore is not None:
            check_same(self._to_restore.made_with, self._made_with)
        if self._to_restore is not None and self._to_restore.finished:
            trainer.should_stop = True  # it was interrupted after its training, which is not to go on

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        if self._to_restore is not None and self._to_restore.between_epochs:
            self._restore(trainer, module)

    def on_validation_start(self, trainer: Trainer, _module: LightningModule) -> None:
        self._monitor.validation_starts(trainer)

    def on_validation_end(self, trainer: Trainer, _module: LightningModule) -> None:
        self._monitor.validation_ends(trainer)

    def on_before_backward(self, *_: Any) -> None:
        self.vote.cast(self._own_vote() if dist.get_rank() == 0 else Vote.GO_ON)

    def _own_vote(self) -> Vote:
        """Rank 0's vote on what to do after the current step."""
        if self.folder.stop_request.exists():
            return Vote.SAVE_AND_STOP
        every, minutes = self.settings.every_steps, self.settings.every_minutes
        due = every is not None and (self._step + 1) % every == 0
        due |= minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes
        return Vote.SAVE if due else Vote.GO_ON

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, _batch: Any, batch_idx: int
    ) -> None:
        if self._to_restore is not None:
            self._restore(trainer, module)
        if job_step(trainer) == self._step:
            return  # nothing new to save, or between two micro-batches of one step
        self._step = job_step(trainer)
        self._release()  # a step needs all ranks, so each of them has read the checkpoint by now
        decided = self.vote.decision
        may_be_due = batch_idx == 0 or self._monitor.was_validated(trainer)
        if decided is Vote.GO_ON and may_be_due and self._is_due(trainer, epoch_ended=batch_idx == 0):
            decided = Vote.SAVE
        if decided is not Vote.GO_ON:
            self._save(
                trainer,
                module,
                lambda lightning: resume_point.before_fetched_batch(lightning, trainer, batch_idx),
                epoch_ended=batch_idx == 0,
            )
        if decided is Vote.SAVE_AND_STOP:
            raise StopRequested(self._saved or 0)

    def on_train_epoch_end(self, *_: Any) -> None:
        self.logs.resumed = {}

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self._final and not internals.stopped_within_epoch(trainer):
            self._save(
                trainer,
                module,
                lambda lightning: resume_point.before_next_epoch(lightning, trainer),
                epoch_ended=True,
                finished=True,
            )

    def _save_within_epoch(self, trainer: Trainer, module: LightningModule) -> None:
        """Saves a run that ends within an epoch, before Lightning ends the epoch as if it were complete."""
        # Between two micro-batches the gradients so far would be lost: no such checkpoint could go on.
        if internals.stopped_within_epoch(trainer) and not internals.is_between_micro_batches(trainer):
            self._save(
                trainer,
                module,
                lambda lightning: resume_point.before_next_batch(lightning, trainer),
                epoch_ended=False,
                finished=True,
            )

    def _restore(self, trainer: Trainer, module: LightningModule) -> None:
        assert self._to_restore is not None
        self._to_restore.restore(trainer, module)
        self.logs.resumed = self.logs.of_this_rank(self._to_restore.logged)
        self._to_restore = None

    def _is_due(self, trainer: Trainer, *, epoch_ended: bool) -> bool:
        # Collective: every rank gets here, and rank 0 decides, by its clock and the metric.
        due = False
        if trainer.is_global_zero:
            metric = comparable(self._monitor.value(trainer, epoch_ended=epoch_ended))
            due = epoch_ended and time.monotonic() - self._saved_at >= SECONDS_BETWEEN
            due |= is_better(metric, self._best, self.settings.mode)
        decision = torch.tensor([float(due)], device=trainer.strategy.root_device)
        dist.broadcast(decision, 0)
        return bool(decision)

    def _save(
        self,
        trainer: Trainer,
        module: LightningModule,
        set_resume_point: Callable[[dict[str, Any]], None],
        *,
        epoch_ended: bool,
        finished: bool = False,
    ) -> None:
        """Saves the run. Collective. set_resume_point: changes the state of Lightning's loops."""
        self._step = job_step(trainer)
        with self.busy("saving a checkpoint"):
            state = train_state.gather(
                trainer,
                module,
                spec=self.spec,
                made_with=self._made_with,
                finished=finished,
                between_epochs=finished and epoch_ended,
            )
            io = trainer.strategy.checkpoint_io
            assert isinstance(io, JobCheckpointIO)
            trainer.save_checkpoint(IN_MEMORY)
            if state is not None:
                set_resume_point(io.last)
                state = replace(
                    state,
                    own_output=self._own_output(),
                    environments=self._environments,
                    draws_by_sample=self._draws_by_sample,
                )
                metric = self._monitor.value(trainer, epoch_ended=epoch_ended)
                self._write(io.last, state, comparable(metric), trainer.current_epoch)
            io.last = {}
        self._saved_at = time.monotonic()

    def _write(self, lightning: dict[str, Any], state: TrainState, metric: float | None, epoch: int) -> None:
        try:
            # The tracker first: a run that resumes from here does not log these points again.
            self.tracker.sync()
            with self.store.writing(self._step, metric=metric, epoch=epoch) as folder:
                torch.save(lightning, folder / LIGHTNING)
                state.save(folder)
            self._saved = self._step
            if is_better(metric, self._best, self.settings.mode):
                self._best = metric
        except (OSError, RuntimeError) as error:  # torch wraps errors of the disk in a RuntimeError
            last = self._saved
            fallback = "there is no earlier one" if last is None else f"the last one is of step {last}"
            log.warning(
                "the checkpoint of step %d could not be written: %s. Training continues; %s. %s",
                *(self._step, error, fallback, self.store.remedy),
            )


def checkpoint_store(spec: Spec, folder: RunFolder) -> Store:
    """Returns the store of the run's checkpoints: a folder, or object storage if the run has a URL for it."""
    settings = spec.training.checkpoint
    if folder.checkpoints_url is None:
        return Checkpoints(folder.checkpoints, keep_last=settings.keep_last, mode=settings.mode)
    from training.checkpoints.object_store import ObjectStore

    return ObjectStore(folder.checkpoints_url, keep_last=settings.keep_last, mode=settings.mode)
