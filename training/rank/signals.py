"""A Lightning callback that keeps the default effect of SIGTERM: it ends the rank."""

from __future__ import annotations

import signal
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from training.internals import skip_sigterm_broadcast


class KeepSignals(Callback):
    """Restores the SIGTERM handler that Lightning replaces.

    Lightning's handler enters a collective in the middle of whatever the rank is doing, and hangs if the
    other ranks got no signal. Runs are stopped in another way (callbacks.checkpointing). Without the handler,
    Lightning's broadcast of the signal before each batch has no use, so it is disabled: it costs a collective
    a batch, and on a GPU a synchronisation with the device.
    """

    def __init__(self) -> None:
        self._handler: Any = signal.getsignal(signal.SIGTERM)

    def on_fit_start(self, _trainer: Trainer, _module: LightningModule) -> None:
        self._handler = signal.getsignal(signal.SIGTERM)  # the user's handler, if one is set by now

    def on_train_start(self, trainer: Trainer, _module: LightningModule) -> None:
        skip_sigterm_broadcast(trainer)
        signal.signal(signal.SIGTERM, self._handler)

    def on_test_start(self, _trainer: Trainer, _module: LightningModule) -> None:
        signal.signal(signal.SIGTERM, self._handler)
