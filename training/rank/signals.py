"""SIGTERM ends a rank, as it ends any program."""

from __future__ import annotations

import signal
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

_BROADCAST = "_broadcast_sigterm_tensor"  # a method of Lightning's; a test holds that it is there


def _nothing() -> None: ...


class KeepSignals(Callback):
    """Puts back the handler that Lightning replaces when it begins to run.

    Lightning's enters a collective in the midst of whatever the rank is doing, which never ends where the
    other ranks got no signal. Runs are asked to stop in another way (callbacks.checkpointing). Without that
    handler the broadcast of the signal before each batch is of no use, and it is left out: it costs a
    collective a batch, and on a GPU a wait for everything that is queued there.
    """

    def __init__(self) -> None:
        self._own: Any = signal.getsignal(signal.SIGTERM)

    def on_fit_start(self, _trainer: Trainer, _module: LightningModule) -> None:
        self._own = signal.getsignal(signal.SIGTERM)  # of the user's, if it is set by now

    def on_train_start(self, trainer: Trainer, _module: LightningModule) -> None:
        setattr(trainer.fit_loop.epoch_loop, _BROADCAST, _nothing)
        signal.signal(signal.SIGTERM, self._own)

    def on_test_start(self, _trainer: Trainer, _module: LightningModule) -> None:
        signal.signal(signal.SIGTERM, self._own)
