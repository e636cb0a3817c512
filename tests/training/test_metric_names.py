from __future__ import annotations

import pytest

from training.metric_names import best_mode


@pytest.mark.parametrize(
    ("metric", "mode"),
    [
        ("val_loss", "min"),
        ("train_loss_epoch", "min"),
        ("val_loss/dataloader_idx_0", "min"),
        ("val_dice_loss", "min"),
        ("MeanSquaredError", "min"),
        ("test_accuracy", "max"),
        ("val/MulticlassAccuracy", "max"),
        ("val_R2Score", "max"),
        ("BinaryF1Score", "max"),
        ("learning_rate", None),
        ("loss_scale", None),
        ("closeness", None),
        ("", None),
    ],
)
def test_the_last_word_that_counts_says_which_value_is_the_best(metric: str, mode: str | None) -> None:
    assert best_mode(metric) == mode
