from __future__ import annotations

import math

from training.tracking.best import best_points


def test_the_best_point_of_each_validation_metric_and_of_the_monitored_one() -> None:
    history = {
        "val_loss": [(1, 2.0), (2, math.nan), (3, 1.0), (4, 1.0)],
        "val/accuracy": [(1, 0.5), (2, 0.75), (3, math.inf)],
        "val_diverged_loss": [(1, math.nan)],
        "val_learning_rate": [(1, 0.1)],
        "train_loss": [(1, 0.0)],
        "score": [(1, 1.0), (2, 3.0)],
    }

    found = best_points(history, monitor="score", mode="max")

    assert found == {"val_loss": (3, 1.0), "val/accuracy": (2, 0.75), "score": (2, 3.0)}
    assert best_points({}, monitor="val_loss", mode="min") == {}
