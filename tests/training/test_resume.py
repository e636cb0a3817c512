from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from tests.training.fitting import Fitted, fit, make_spec
from tests.training.worlds import Worlds
from training.spec import Spec

# Epochs of 4 steps: 7, 7, 7 and 1 samples.
MIDDLE, LAST = 6, 8


class SaveAt(Callback):
    """Leaves a checkpoint at a hook, when so many steps are done, and notes what is trained on."""

    def __init__(self, hook: str, step: int, path: Path) -> None:
        self.hook, self.step, self.path = hook, step, path
        self.seen: list[tuple[int, int, list[float]]] = []

    def on_train_batch_start(self, trainer: Trainer, _module: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append((trainer.current_epoch, batch_idx, batch[0].sum((1, 2)).tolist()))

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._at("batch end", trainer)

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        self._at("epoch end", trainer)

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        self._at("epoch start", trainer)

    def _at(self, hook: str, trainer: Trainer) -> None:
        if hook == self.hook and trainer.global_step == self.step and not self.path.exists():
            trainer.save_checkpoint(self.path)


Seen = list[tuple[int, int, list[float]]]


def in_parts(
    rank: int, spec: Spec, saves: Sequence[tuple[str, int]], folder: Path, processes: int
) -> list[tuple[Fitted, Seen]]:
    """A whole run for each save, the first from the beginning, the others from the save before."""
    found = []
    checkpoint = None
    for hook, step in [*saves, ("never", 0)]:
        saver = SaveAt(hook, step, folder / f"{hook} {step}.ckpt")
        fitted = fit(rank, spec, callbacks=[saver], ckpt_path=checkpoint, processes=processes)
        found.append((fitted, saver.seen))
        checkpoint = saver.path
    return found


@pytest.mark.parametrize("length", [{"max_epochs": 4}, {"max_epochs": None, "max_steps": 14}])
@pytest.mark.parametrize(
    ("saves", "processes"),
    [
        ([("batch end", MIDDLE)], 0),
        ([("batch end", MIDDLE)], 2),
        ([("epoch end", LAST)], 0),
        ([("epoch end", LAST)], 2),
        ([("epoch start", LAST)], 0),
        ([("epoch start", LAST)], 2),
        # One after the other: what Lightning counts must be right after a resumption, too.
        (
            [
                ("epoch start", 4),
                ("batch end", 5),
                ("batch end", 7),
                ("epoch end", 8),
                ("epoch end", 12),
                ("batch end", 13),
            ],
            0,
        ),
    ],
)
def test_a_run_in_parts_is_bit_for_bit_the_run_in_one(
    worlds: Worlds, tmp_path: Path, saves: list[tuple[str, int]], processes: int, length: dict[str, Any]
) -> None:
    ((whole, seen), *parts), _ = worlds.run(2, in_parts, make_spec(**length), saves, tmp_path, processes)

    for (_, step), (part, seen_after) in zip(saves, parts, strict=True):
        assert seen_after == seen[step:]
        assert part.history["train_loss"] == whole.history["train_loss"][step:]
        assert part.history.get("val_loss", []) == [at for at in whole.history["val_loss"] if at[0] > step]
        assert all(torch.equal(part.state[name], value) for name, value in whole.state.items())
        assert part.progress is not None
        assert whole.progress is not None
        assert replace(part.progress, eta_seconds=0) == replace(whole.progress, eta_seconds=0)


def test_another_number_of_ranks_goes_on_with_the_very_next_sample(worlds: Worlds, tmp_path: Path) -> None:
    spec = make_spec(accumulate_grad_batches=2)
    save = ("batch end", MIDDLE)
    ((whole, _), _), _ = worlds.run(2, in_parts, spec, [save], tmp_path, 0)

    resumed, *_ = worlds.run(3, fit, spec, ckpt_path=tmp_path / "batch end 6.ckpt")

    assert [step for step, _ in resumed.history["train_loss"]] == list(range(MIDDLE + 1, 13))
    for (_, expected), (_, found) in zip(
        whole.history["train_loss"][MIDDLE:], resumed.history["train_loss"], strict=True
    ):
        assert found == pytest.approx(expected, rel=1e-9)
    for name, value in whole.state.items():
        torch.testing.assert_close(resumed.state[name], value, rtol=1e-9, atol=1e-9, msg=name)
