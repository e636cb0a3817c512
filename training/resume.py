"""What Lightning needs to go on from a checkpoint exactly where the run was."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class ExactResume(Callback):
    """Makes a resumed fit do what the first one would have done next, bit for bit.

    Checkpoints are made after an optimizer's step (`on_train_batch_end`, not an epoch's last), after an epoch
    (`on_train_epoch_end`) or before one (`on_train_epoch_start`). After an epoch's last step, validation is
    still to come, and Lightning would leave it out.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        # Lightning loads a checkpoint before it makes the module one of float64, which would round it.
        trainer.precision_plugin.convert_module(pl_module)

    def on_load_checkpoint(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,  # noqa: ARG002
        checkpoint: dict[str, Any],
    ) -> None:
        loops = checkpoint["loops"]["fit_loop"]
        epochs = loops["epoch_progress"]["current"]
        if epochs["started"] == epochs["processed"]:
            _begin_epoch(loops, epochs["processed"])


def _begin_epoch(loops: dict[str, Any], epoch: int) -> None:
    """Between two epochs Lightning would count the last one again and leave the next out."""
    for counts in loops["epoch_progress"].values():
        counts.update(dict.fromkeys(counts, epoch))
    for name in ("epoch_loop.batch_progress", "epoch_loop.val_loop.batch_progress"):
        current = loops[name]["current"]
        current.update(dict.fromkeys(current, 0))
        loops[name]["is_last_batch"] = False
