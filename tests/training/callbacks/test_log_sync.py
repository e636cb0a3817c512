"""What a module logs on some ranks alone counts the samples of these ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import MeanMetric

from tests.training.attempts import Done, attempt
from tests.training.lab_modules import SAMPLES, VALIDATION, Samples, features
from tests.training.worlds import Worlds
from training.errors import StepError
from training.spec import shares

BATCH, LOGS = 4, 1
"""The size of a global batch, and the rank that logs."""


class Base(LightningModule):
    """Counts along with its training; `targets_of` gives a share's targets on rank LOGS, None on others."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def targets_of(self, batch: Any) -> Tensor | None:
        y = features(batch)[1]
        return y if dist.get_rank() == LOGS and len(y) else None

    def training_step(self, batch: Any, _index: int) -> Tensor:
        loss: Tensor = self.layer(features(batch)[0]).square().mean()
        return loss

    def validation_step(self, batch: Any, index: int) -> None: ...

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


class LogsOnOneRank(Base):
    def training_step(self, batch: Any, index: int) -> Tensor:
        self._log_all(batch, "train", on_step=True)
        return super().training_step(batch, index)

    def validation_step(self, batch: Any, index: int) -> None:  # noqa: ARG002
        self._log_all(batch, "val", on_step=False)

    def _log_all(self, batch: Any, stage: str, *, on_step: bool) -> None:
        if (y := self.targets_of(batch)) is None:
            return
        values = {"mean": y.mean(), "sum": y.sum(), "max": y.max(), "min": y.min()}
        for name, value in values.items():
            self.log(
                f"{stage}_{name}", value, reduce_fx=name, on_step=on_step, on_epoch=True, batch_size=len(y)
            )


class LogsLate(Base):
    def validation_step(self, batch: Any, index: int) -> None:
        if index == 1:
            y = features(batch)[1]
            self.log("late", y.mean(), on_step=True, on_epoch=False, batch_size=len(y))


class MetricOfOneRank(Base):
    """A metric that only one rank logs, and only when the epoch ends."""

    def __init__(self) -> None:
        super().__init__()
        self.metric = MeanMetric()

    def validation_step(self, batch: Any, index: int) -> None:  # noqa: ARG002
        if (y := self.targets_of(batch)) is not None:
            self.metric.update(y)

    def on_validation_epoch_end(self) -> None:
        if dist.get_rank() == LOGS:
            self.log("metric", self.metric)


def run(worlds: Worlds, folder: Path, module: type[Base], workers: int = 3) -> Done:
    return worlds.run(workers, attempt, spec_of(module), folder)[0]


def spec_of(module: type[Base]) -> dict[str, Any]:
    return {
        "model": {"class_path": f"tests.training.callbacks.test_log_sync.{module.__name__}"},
        "data": {"class_path": "tests.training.lab_modules.Data"},
        "training": {"global_batch_size": BATCH, "max_epochs": 1, "precision": "64-true"},
    }


def targets(count: int, seed: int, workers: int) -> list[Tensor]:
    """The targets of the rank that logs, by batch."""
    y, found = Samples(count, seed).y[:, 0], []
    for start in range(0, count, BATCH):
        sizes = shares(min(BATCH, count - start), workers)
        before = start + sum(sizes[:LOGS])
        found.append(y[before : before + sizes[LOGS]])
    return found


REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": torch.mean,
    "sum": torch.sum,
    "max": torch.amax,
    "min": torch.amin,
}


@pytest.mark.parametrize("workers", [2, 3])
def test_values_of_one_rank_are_those_of_its_samples(worlds: Worlds, tmp_path: Path, workers: int) -> None:
    done = run(worlds, tmp_path, LogsOnOneRank, workers)

    trained, validated = targets(SAMPLES, 1, workers), torch.cat(targets(VALIDATION, 2, workers))
    for name, reduce in REDUCTIONS.items():
        steps = [float(reduce(y)) for y in trained if len(y)]
        assert list(done.series(f"train_{name}_step").values()) == pytest.approx(steps), name
        epoch = float(reduce(torch.cat(trained)))
        assert list(done.series(f"train_{name}_epoch").values()) == pytest.approx([epoch]), name
        assert list(done.series(f"val_{name}").values()) == pytest.approx([float(reduce(validated))]), name


def error_of(rank: int, spec: dict[str, Any], folder: Path) -> str | None:
    try:
        attempt(rank, spec, folder)
    except StepError as error:
        return str(error)
    return None


def test_a_value_logged_on_step_late_in_a_validation_is_refused(worlds: Worlds, tmp_path: Path) -> None:
    for rank, message in enumerate(worlds.run(2, error_of, spec_of(LogsLate), tmp_path)):
        assert f"validation_step logged 'late' on_step on rank {rank}" in str(message)


def test_a_metric_that_one_rank_logs_when_an_epoch_ends_has_all_its_updates(
    worlds: Worlds, tmp_path: Path
) -> None:
    done = run(worlds, tmp_path, MetricOfOneRank)

    expected = float(torch.cat(targets(VALIDATION, 2, 3)).mean())
    assert list(done.series("metric").values()) == pytest.approx([expected], rel=1e-6)
