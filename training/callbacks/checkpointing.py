"""The Lightning callback that saves checkpoints: when it saves one, and what the checkpoint holds.

All ranks save a checkpoint together, between two optimizer steps. It holds what Lightning saves (model,
optimizers, schedulers, gradient scaler, loops), the metrics accumulated so far in the epoch, and the states
of the random generators. A resumed run therefore continues as if it had never stopped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from training import internals
from training.callbacks import train_state
from training.callbacks.job_step import job_step
from training.callbacks.log_sync import LogSync
from training.callbacks.own_checkpoints import IN_MEMORY, JobCheckpointIO
from training.callbacks.stop_vote import StopVote, Vote
from training.callbacks.train_state import TrainState
from training.checkpoints.folder import Checkpoints
from training.checkpoints.manifest import Saved
from training.loading.combined import states_at
from training.run_dir import RunFolder
from training.spec import Spec
from training.tracking.tracker import Tracker

if TYPE_CHECKING:
    from training.checkpoints.object_store import ObjectStore

log = logging.getLogger(__name__)

Store: TypeAlias = "Checkpoints | ObjectStore"

LIGHTNING = "lightning.ckpt"
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
    """Saves the run every N steps or minutes, between epochs, and when the run is asked to stop.

    Only rank 0 votes, from its clock and the stop request in the run's folder; `vote` carries its decision to
    every rank together with the loss. `busy` is entered while a checkpoint is saved. If a checkpoint cannot
    be written, rank 0 logs a warning and training continues; the previous checkpoint stays.

    The checkpoint is saved just before the next batch, because only then is everything that belongs to the
    step complete, including metrics, schedulers and validation.
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
        resumed: Saved | None = None,
    ) -> None:
        self.settings, self.seed, self.folder = spec.training.checkpoint, spec.training.seed, folder
        self.tracker, self.vote, self.logs, self.busy = tracker, vote, logs, busy
        self.store = store
        self._to_restore = train_state.load(resumed.path) if resumed else None
        self._step = resumed.step if resumed else 0
        self._saved = resumed.step if resumed else None  # updated on rank 0 only
        self._saved_at = time.monotonic()
        self._told_missing: str | None = None

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
            self._to_restore.restore(trainer, module)
            self.logs.resumed = self._to_restore.logged_by(trainer)
            self._to_restore = None
        if job_step(trainer) == self._step:
            return  # nothing new to save, or between two micro-batches of one step
        self._step = job_step(trainer)
        self.store.release()  # a step needs all ranks, so each of them has read the checkpoint by now
        decided = self.vote.decision
        if decided is Vote.GO_ON and batch_idx == 0 and self._epoch_checkpoint_is_due(trainer):
            decided = Vote.SAVE
        if decided is not Vote.GO_ON:
            self._save(trainer, module, batch_idx)
        if decided is Vote.SAVE_AND_STOP:
            raise StopRequested(self._saved or 0)

    def on_train_epoch_end(self, *_: Any) -> None:
        self.logs.resumed = {}

    def _epoch_checkpoint_is_due(self, trainer: Trainer) -> bool:
        # Collective: every rank gets here, and rank 0's clock decides.
        due = torch.tensor(
            [float(time.monotonic() - self._saved_at >= SECONDS_BETWEEN)],
            device=trainer.strategy.root_device,
        )
        dist.broadcast(due, 0)
        return bool(due)

    def _save(self, trainer: Trainer, module: LightningModule, batch_idx: int) -> None:
        with self.busy("saving a checkpoint"):
            state = train_state.gather(trainer, module, seed=self.seed)
            io = trainer.strategy.checkpoint_io
            assert isinstance(io, JobCheckpointIO)
            trainer.save_checkpoint(IN_MEMORY)
            if state is not None:
                _rewind_one_batch(io.last, trainer, batch_idx)
                self._write(trainer, io.last, state, batch_idx)
            io.last = {}
        self._saved_at = time.monotonic()

    def _write(self, trainer: Trainer, lightning: dict[str, Any], state: TrainState, batch_idx: int) -> None:
        # In the middle of an epoch, the last validation's value belongs to older weights.
        value = trainer.callback_metrics.get(self.settings.monitor) if batch_idx == 0 else None
        if batch_idx == 0 and value is None:
            self._tell_missing(trainer)
        try:
            # The tracker first: a run that resumes from here does not log these points again.
            self.tracker.sync()
            with self.store.writing(self._step, metric=None if value is None else float(value)) as folder:
                torch.save(lightning, folder / LIGHTNING)
                state.save(folder)
            self._saved = self._step
        except (OSError, RuntimeError) as error:  # torch wraps errors of the disk in a RuntimeError
            last = self._saved
            fallback = "there is no earlier one" if last is None else f"the last one is of step {last}"
            log.warning(
                "the checkpoint of step %d could not be written: %s. Training continues; %s. %s",
                *(self._step, error, fallback, self.store.remedy),
            )

    def _tell_missing(self, trainer: Trainer) -> None:
        """Says once that no checkpoint will be the best one, if a metric was named that is not logged."""
        monitor = self.settings.monitor
        if monitor in (self._told_missing, type(self.settings)().monitor):
            return
        self._told_missing = monitor
        names = ", ".join(sorted(trainer.callback_metrics)) or "none"
        log.warning(
            "training.checkpoint.monitor: no metric %r was logged by the end of the epoch, so no checkpoint "
            "is the best one; these were: %s",
            *(monitor, names),
        )


def checkpoint_store(spec: Spec, folder: RunFolder) -> Store:
    """Returns the store of the run's checkpoints: a folder, or object storage if the run has a URL for it."""
    settings = spec.training.checkpoint
    if folder.checkpoints_url is None:
        return Checkpoints(folder.checkpoints, keep_last=settings.keep_last, mode=settings.mode)
    from training.checkpoints.object_store import ObjectStore

    return ObjectStore(folder.checkpoints_url, keep_last=settings.keep_last, mode=settings.mode)


def _rewind_one_batch(lightning: dict[str, Any], trainer: Trainer, batch_idx: int) -> None:
    """Rewinds the loops' state by one batch: Lightning has fetched the next one and would count it done."""
    fit_loop = lightning["loops"]["fit_loop"]
    fit_loop["epoch_loop.batch_progress"]["is_last_batch"] = False
    fit_loop["state_dict"]["combined_loader"] = states_at(
        *internals.loaders_to_train_on(trainer), epoch=trainer.current_epoch, number=batch_idx
    )
