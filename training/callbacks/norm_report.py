"""The callback that logs what synchronizing changes, per layer and step, as `sync_bn.observe` measures it.

NoReport      observes nothing
└── NormReport  observes every N-th optimizer step on rank 0; logs metrics and finally draws a heat map
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from sync_bn import SyncBatchNorm, observe
from sync_bn.diagnostics import MEASURES, Observation, Report
from training.callbacks.job_step import job_step
from training.console import say
from training.model.supervised import Supervised
from training.spec import Norm
from training.tracking.tracker import Tracker

FIGURE = "norm_noise.png"
COLUMNS = 256  # the heat map's maximum width; a screen hardly shows more


class NoReport(Callback):
    """Observes nothing."""

    def draw(self, folder: Path) -> list[Path]:  # noqa: ARG002
        """Writes the figure of the observed steps, if any, to `folder`; returns the files written."""
        return []


def norm_report(norm: Norm, rank: int, tracker: Tracker) -> NoReport:
    """Returns a NormReport on rank 0 if the spec sets `norm.observe_every`, a NoReport otherwise."""
    return NormReport(tracker, norm.observe_every) if norm.observe_every and rank == 0 else NoReport()


@dataclass(frozen=True, kw_only=True)
class _ObservedStep:
    """An observed optimizer step whose report has not been read yet."""

    step: int
    epoch: int
    report: Report


class NormReport(NoReport):
    """Logs `norm/LAYER/MEASURE`, for each of sync_bn's MEASURES, at every `every`-th optimizer step.

    If a step has several batches, or a layer is called several times, the last call counts. Values that are
    not finite are left out. It needs no collective. Steps that are not observed are unaffected. With one
    rank, observed steps use sync_bn's arithmetic instead of torch's, which is equal up to rounding.

    Must come before `GlobalLoss` in the list of callbacks. A step's report is read once the next batch has
    computed its loss: `GlobalLoss` waits for the device there anyway, so reading costs only the copies, and
    that batch has logged nothing yet, which would end the step's line in `metrics.jsonl`.
    """

    def __init__(self, tracker: Tracker, every: int) -> None:
        self.tracker, self.every = tracker, every
        self._model: nn.Module = nn.Identity()
        self._overview = Overview({})
        self._due = math.inf
        self._observing = ExitStack()
        self._report: Report | None = None
        self._unread: list[_ObservedStep] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The model is converted by now. Without its wrapper, the layers have the names that the user knows.
        self._model = pl_module.model if isinstance(pl_module, Supervised) else pl_module
        layers = {m: name for name, m in self._model.named_modules() if isinstance(m, SyncBatchNorm)}
        self._overview = Overview(layers)
        if layers:
            self._due = self._next_due(trainer)
        else:
            say("norm.observe_every: there is nothing to observe, because the model has no BatchNorm")

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._observing.close()  # a batch that the module skipped does not call on_train_batch_end
        # A batch may be part of a step or contain several; only its end tells which step it completed.
        if job_step(trainer) + 1 >= self._due:
            self._report = self._observing.enter_context(observe(self._model))

    def on_before_backward(self, *_: Any) -> None:
        self._read()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._read()  # if this batch had no backward pass
        self._observing.close()
        if self._report is not None and job_step(trainer) >= self._due:
            at = {"step": job_step(trainer), "epoch": trainer.current_epoch}
            self._unread.append(_ObservedStep(**at, report=self._report))
            self._due = self._next_due(trainer)
        self._report = None

    def on_train_epoch_end(self, *_: Any) -> None:
        self._read()  # before the checkpoint: an attempt that resumes from it does not see this step again

    def on_exception(self, *_: Any) -> None:
        self._observing.close()
        # The original error must reach the user, not a second one from reading a failed device.
        with suppress(Exception):
            self._read()

    def draw(self, folder: Path) -> list[Path]:
        steps = self._overview.steps
        if not steps:
            if self._overview.layers:
                say(f"norm.observe_every: no step of this attempt was observed, so there is no {FIGURE}")
            return []
        figure = self._overview.figure()
        figure.suptitle(f"Rank 0, steps {steps[0]} to {steps[-1]}, as this attempt saw them")
        figure.savefig(folder / FIGURE, dpi=110)
        return [folder / FIGURE]

    def _next_due(self, trainer: Trainer) -> int:
        return (job_step(trainer) // self.every + 1) * self.every

    def _read(self) -> None:
        while self._unread:
            observed = self._unread.pop()
            by_layer = {observation.layer: observation for observation in observed.report.observations()}
            if not by_layer:  # all layers are in evaluation mode
                continue
            metrics = {
                f"norm/{layer or 'model'}/{measure}": float(getattr(observation, measure))
                for layer, observation in by_layer.items()
                for measure in MEASURES
            }
            finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
            self.tracker.log(observed.step, observed.epoch, finite)
            self._overview.add(observed.step, by_layer)


class Overview(Report):
    """The report of a whole training run in bounded memory: at most COLUMNS steps, evenly spaced."""

    def __init__(self, layers: Mapping[SyncBatchNorm, str]) -> None:
        super().__init__(layers, every=1)
        self._columns: list[tuple[int, Mapping[str, Observation]]] = []
        self._added, self._stride = 0, 1

    @property
    def steps(self) -> list[int]:
        return [step for step, _ in self._columns]

    def add(self, step: int, observations: Mapping[str, Observation]) -> None:
        """Adds a step's observations, by layer name; older steps may be dropped to keep the spacing even."""
        if self._added % self._stride == 0:
            self._columns.append((step, observations))
        self._added += 1
        if len(self._columns) > COLUMNS:
            self._columns = self._columns[::2]
            self._stride *= 2

    def heat_map(self, measure: str = "mean_noise") -> tuple[Tensor, list[int]]:
        """As `Report.heat_map`; the last column is the last step that was kept."""
        values = [
            [getattr(column.get(layer), measure, math.nan) for _, column in self._columns]
            for layer in self.layers
        ]
        return torch.tensor(values, dtype=torch.float64), self.steps
