"""The `self.logger` of user code: an MLFlowLogger whose metrics and parameters go through the tracker."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment  # type: ignore[attr-defined]
from lightning.pytorch.utilities import rank_zero_only

from training.tracking.mlflow_run import MlflowRun
from training.tracking.tracker import Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)


class RunLogger(MLFlowLogger):
    """Passes metrics and hyperparameters to `tracker`; everything else goes to `run` directly.

    `ProgressReporter` sets the step and the epoch. params: the run's parameters so far, which hyperparameters
    do not replace. folder: where a checkpoint callback without a folder of its own puts its files.
    """

    def __init__(self, tracker: Tracker, run: MlflowRun, params: Mapping[str, str], folder: Path) -> None:
        Logger.__init__(self)  # not MLFlowLogger's, which imports mlflow: that takes seconds
        self.tracker, self.run, self.folder = tracker, run, folder
        self.step, self.epoch = 1, 0
        self.current_step = 1
        """The step that is being made, or the last one between two steps."""
        self._params = dict(params)
        self._info: Any = None

    @property
    @rank_zero_experiment
    def experiment(self) -> MlflowClient:
        """A client of the run's store. Blocks only where there is no server, at the first use."""
        return self.run.client()

    @property
    def run_id(self) -> str | None:
        """The id of the run; None on other ranks than 0. Blocks at the first use."""
        info = self._run_info()
        return info and str(info.run_id)

    @property
    def experiment_id(self) -> str | None:
        """The id of the run's experiment; None on other ranks than 0. Blocks at the first use."""
        info = self._run_info()
        return info and str(info.experiment_id)

    @rank_zero_only
    def _run_info(self) -> Any:
        if self._info is None:
            self._info = self.run.load().info
        return self._info

    @property
    def name(self) -> str | None:
        return self.experiment_id

    @property
    def version(self) -> str | None:
        return self.run_id

    @property
    def save_dir(self) -> str:
        return str(self.folder)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Adds parameters to the run. One whose name has another value already is named hparams.NAME."""
        for key, value in _flat(params).items():
            name = key if self._params.get(key, value) == value else f"hparams.{key}"
            self._params.setdefault(name, value)
            self.tracker.params({name: value})

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Logs metrics; those of user code at `step`, or at the current step if it is None."""
        texts = [name for name, value in metrics.items() if isinstance(value, str)]
        if texts:
            log.warning("metrics whose values are text are not logged: %s", ", ".join(texts))
        values = {name: float(value) for name, value in metrics.items() if name not in {*texts, "epoch"}}
        if "epoch" in metrics:  # from Lightning, whose `step` starts at 0 and does not advance after fitting
            self.tracker.log(self.step, self.epoch, values)
        else:
            own = self.current_step if step is None else step
            self.tracker.log_at(own, self.current_step, self.epoch, values)

    @rank_zero_only
    def log_image(self, key: str, images: Sequence[Any], step: int | None = None, **_options: Any) -> None:
        """Logs images (tensors of shape CHW or HW, arrays of shape HWC, or PIL images) under `key`.

        step: the current one if None. Options of other loggers, such as captions, are ignored. Blocks.
        """
        at = self.current_step if step is None else step
        for image in images:
            self.experiment.log_image(self.run_id, _as_array(image), key=key, step=at)

    def finalize(self, status: str = "success") -> None:
        """Does nothing: whoever created the run sets its status."""

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Does nothing: checkpoints stay in the run folder."""


def _flat(params: Any, prefix: str = "") -> dict[str, str]:
    """Returns nested parameters by the path to each, as text: {"optimizer/lr": "0.1"}."""
    if isinstance(params, Namespace):
        params = vars(params)
    elif is_dataclass(params) and not isinstance(params, type):
        params = asdict(params)
    if not isinstance(params, Mapping):
        return {prefix.removesuffix("/"): str(params)}
    flat: dict[str, str] = {}
    for key, value in params.items():
        flat |= _flat(value, f"{prefix}{key}/")
    return flat


def _as_array(image: Any) -> Any:
    if not isinstance(image, torch.Tensor):
        return image
    array = image.detach().cpu()
    return (array.permute(1, 2, 0) if array.dim() == 3 else array).numpy()
