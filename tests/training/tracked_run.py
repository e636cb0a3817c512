"""A training as its tracker sees it, in a process that can be killed."""

from __future__ import annotations

import os
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

from testing.warm import warm
from tests.training.worlds import PRELOAD

VALIDATE_EVERY = 10
SAVE_EVERY = 100


def begin(uri: str, run_id: str, folder: Path, *, more: int | None) -> tuple[BaseProcess, int]:
    """The process, when it has taken up its checkpoint, and the step of that; it ends `more` steps later."""
    context = warm(*PRELOAD)
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_train, args=(uri, run_id, folder, more, there))
    process.start()
    there.close()
    return process, here.recv()


def _train(uri: str, run_id: str, folder: Path, more: int | None, began: object) -> None:
    from training.tracking import mlflow_tracker

    mlflow_tracker.SEND_SECONDS = 0.4  # so that it is killed as often while it sends as while it waits
    tracker = mlflow_tracker.MlflowTracker(uri, run_id, params={"seed": "0"}, tags={}, spool=folder / "spool")
    checkpoint = folder / "checkpoint"
    step = int(checkpoint.read_text()) if checkpoint.exists() else 0
    began.send(step)  # type: ignore[attr-defined]
    end = None if more is None else step + more
    while step != end:
        step += 1
        # No two attempts compute the very same.
        tracker.log(step, 0, {"train_loss": step + 1 / os.getpid(), "learning_rate": 0.1})
        if step % VALIDATE_EVERY == 0:
            tracker.log(step, 0, {"val_loss": step + 1 / os.getpid()})
        if step % SAVE_EVERY == 0:
            tracker.sync()
            (folder / "new").write_text(str(step))
            (folder / "new").rename(checkpoint)
        time.sleep(0.001)
    tracker.close()
