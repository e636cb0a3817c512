"""What a checkpoint holds, and when one is made: a Lightning callback around `training.checkpoints.folder`.

A checkpoint is made between two optimizer steps, by all ranks together. Beside what Lightning saves (model,
optimizers, schedulers, the scaler of mixed precision, loops) it has what an epoch has gathered so far and the
random generators, so that a run that goes on from it does what it would have done without the break.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torch.distributed as dist
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer

from training.callbacks import train_state
from training.callbacks.log_reduction import LoggedValue, go_on
from training.callbacks.stop_vote import StopVote, Vote
from training.callbacks.train_state import TrainState
from training.checkpoints.folder import Checkpoints
from training.checkpoints.manifest import Saved
from training.run_dir import RunFolder
from training.spec import Spec
from training.tracking.tracker import Tracker

if TYPE_CHECKING:
    from training.checkpoints.object_store import ObjectStore

log = logging.getLogger(__name__)

Store: TypeAlias = "Checkpoints | ObjectStore"

LIGHTNING = "lightning.ckpt"
SECONDS_BETWEEN = 10.0
"""Epochs shorter than this do not each get a checkpoint."""


class StopRequested(BaseException):
    """The run was asked to save itself, and ends here; no failure. Carries the step that it goes on from."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


class InMemory(TorchCheckpointIO):
    """Keeps what Lightning would write: a disk that is full must not stop rank 0 between two collectives."""

    def __init__(self) -> None:
        super().__init__()
        self.last: dict[str, Any] = {}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:  # noqa: ARG002
        self.last = checkpoint


class Saving(Callback):
    """Saves the run: every so many steps or minutes, between epochs, and when it is asked to stop.

    Rank 0 alone votes, by its clock and the request in the run's folder; `vote` tells every rank of it with
    the loss. `busy` is entered around the writing. A checkpoint that cannot be written is a warning: the run
    goes on, with the one before to fall back on.

    It is made when the next batch is about to begin, because only then all that belongs to a step is done,
    metrics, schedulers and validation included.
    """

    def __init__(
        self,
        spec: Spec,
        folder: RunFolder,
        tracker: Tracker,
        store: Store,
        *,
        vote: StopVote,
        busy: Callable[[str], AbstractContextManager[None]],
        resumed: Saved | None = None,
    ) -> None:
        self.settings, self.seed, self.folder = spec.training.checkpoint, spec.training.seed, folder
        self.tracker, self.vote, self.busy = tracker, vote, busy
        self.store = store
        self._to_restore = train_state.load(resumed.path) if resumed else None
        self._half_logged: dict[str, LoggedValue] = {}
        self._step = resumed.step if resumed else 0
        self._saved = resumed.step if resumed else None  # rank 0's is kept up
        self._saved_at = time.monotonic()

    def on_before_backward(self, *_: Any) -> None:
        self.vote.cast(self._wanted() if dist.get_rank() == 0 else Vote.GO_ON)

    def _wanted(self) -> Vote:
        """After the step that is being made."""
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
            self._half_logged = self._to_restore.logged_by(trainer)
            self._to_restore = None
        if trainer.global_step == self._step:
            return  # nothing to save, or within an accumulated batch
        self._step = trainer.global_step
        self.store.release()  # all ranks have made a step together: all have read what they go on from
        decided = self.vote.decision
        if decided is Vote.GO_ON and batch_idx == 0 and self._long_since_the_last(trainer):
            decided = Vote.SAVE
        if decided is not Vote.GO_ON:
            self._save(trainer, module, batch_idx)
        if decided is Vote.SAVE_AND_STOP:
            raise StopRequested(self._saved or 0)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self._half_logged:
            go_on(trainer, self._half_logged)

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        go_on(trainer, self._half_logged)
        self._half_logged = {}

    def _long_since_the_last(self, trainer: Trainer) -> bool:
        # Every rank asks, rank 0's clock decides.
        long = torch.tensor(
            [float(time.monotonic() - self._saved_at >= SECONDS_BETWEEN)],
            device=trainer.strategy.root_device,
        )
        dist.broadcast(long, 0)
        return bool(long)

    def _save(self, trainer: Trainer, module: LightningModule, batch_idx: int) -> None:
        with self.busy("saving a checkpoint"):
            state = train_state.gather(trainer, module, seed=self.seed)
            io = trainer.strategy.checkpoint_io
            assert isinstance(io, InMemory)
            trainer.save_checkpoint("kept in memory")
            if state is not None:
                _as_before_the_batch(io.last, trainer.current_epoch, batch_idx)
                self._write(trainer, io.last, state, batch_idx)
            io.last = {}
        self._saved_at = time.monotonic()

    def _write(self, trainer: Trainer, lightning: dict[str, Any], state: TrainState, batch_idx: int) -> None:
        # In the middle of an epoch the last validation's value is that of other weights.
        value = trainer.callback_metrics.get(self.settings.monitor) if batch_idx == 0 else None
        try:
            # First what the tracker has taken: a run that goes on from here does not make these points again.
            self.tracker.sync()
            with self.store.writing(self._step, metric=None if value is None else float(value)) as folder:
                torch.save(lightning, folder / LIGHTNING)
                state.save(folder)
            self._saved = self._step
        except (OSError, RuntimeError) as error:  # torch wraps what the disk says in a RuntimeError
            last = self._saved
            instead = "there is none before it" if last is None else f"the last one is of step {last}"
            log.warning(
                "the checkpoint of step %d could not be written: %s. The training goes on; %s. %s",
                *(self._step, error, instead, self.store.remedy),
            )


def checkpoints(spec: Spec, folder: RunFolder) -> Store:
    """The store of the run's checkpoints."""
    settings = spec.training.checkpoint
    if folder.checkpoints_url is None:
        return Checkpoints(folder.checkpoints, keep_last=settings.keep_last, mode=settings.mode)
    from training.checkpoints.object_store import ObjectStore

    return ObjectStore(folder.checkpoints_url, keep_last=settings.keep_last, mode=settings.mode)


def _as_before_the_batch(lightning: dict[str, Any], epoch: int, batch_idx: int) -> None:
    """Lightning has drawn the batch that is about to begin, and would take it for done."""
    fit_loop = lightning["loops"]["fit_loop"]
    fit_loop["epoch_loop.batch_progress"]["is_last_batch"] = False
    fit_loop["state_dict"]["combined_loader"] = [{"epoch": epoch, "batch": batch_idx}]
