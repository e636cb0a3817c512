"""A configuration of LightningCLI gives, as a job, what LightningCLI gives on one device."""

from __future__ import annotations

import copy
import os
import warnings
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI

from tests.training import cli_project  # noqa: F401 - its classes are named without their module
from tests.training.attempts import Done, attempt
from tests.training.worlds import Worlds
from training.spec import read_spec

CONFIGURATIONS = {
    "callbacks and limits": """
        seed_everything: 1
        trainer:
          max_epochs: 4
          devices: 2
          strategy: ddp_find_unused_parameters_true
          sync_batchnorm: true
          gradient_clip_val: 0.5
          check_val_every_n_epoch: 2
          limit_train_batches: 2
          enable_progress_bar: true
          callbacks:
            - class_path: lightning.pytorch.callbacks.EarlyStopping
              init_args: {monitor: val_loss, patience: 3}
            - class_path: lightning.pytorch.callbacks.EMAWeightAveraging
              init_args: {decay: 0.9}
            - class_path: lightning.pytorch.callbacks.ModelCheckpoint
              init_args: {monitor: val_loss, mode: min, dirpath: own_checkpoints}
        model: {class_path: tests.training.cli_project.Net, init_args: {lr: 0.05}}
        data: {class_path: tests.training.cli_project.Data, init_args: {batch_size: 4}}
        """,
    "nested classes": """
        seed_everything: true
        trainer:
          max_epochs: 2
          devices: [0]
          callbacks:
            - class_path: LearningRateMonitor
            - {class_path: ModelCheckpoint, init_args: {monitor: val_loss, dirpath: own_checkpoints}}
            - class_path: ModelCheckpoint
              init_args: {save_last: true, dirpath: own_checkpoints, filename: other}
            - {class_path: tests.training.cli_project.Decay, init_args: {by: 0.25}}
        model:
          class_path: tests.training.cli_project.Net
          init_args:
            encoder:
              class_path: Encoder
              init_args:
                width: 5
                norm: {class_path: torch.nn.BatchNorm1d, init_args: {num_features: 5, momentum: 0.3}}
            width: 5
            metrics:
              accuracy:
                class_path: torchmetrics.classification.MulticlassAccuracy
                init_args: {num_classes: 2}
            weights: [2.0, 1]
            folder: some/where
        data:
          class_path: tests.training.cli_project.Data
          init_args:
            transforms: [{class_path: Scale, init_args: {by: 2}}, {class_path: Scale, init_args: {by: 0.7}}]
        """,
    "optimizer and scheduler": """
        seed_everything: 3
        trainer: {max_epochs: 5, devices: 1, log_every_n_steps: 2}
        model: {class_path: tests.training.cli_project.Bare}
        data: {class_path: tests.training.cli_project.Data, init_args: {batch_size: 5}}
        optimizer: {class_path: Adam, init_args: {lr: 0.05}}
        lr_scheduler:
          class_path: ReduceLROnPlateau
          init_args: {monitor: val_loss, patience: 0, factor: 0.2}
        """,
    "optimizer of both": """
        seed_everything: 3
        trainer: {max_epochs: 3, devices: 1}
        model: {class_path: tests.training.cli_project.Net, init_args: {lr: 100.0}}
        data: {class_path: tests.training.cli_project.Data}
        optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.1}}
        lr_scheduler: {class_path: torch.optim.lr_scheduler.StepLR, init_args: {step_size: 2, gamma: 0.1}}
        """,
    "intervals across epochs": """
        seed_everything: 5
        trainer:
          max_epochs: 4
          min_epochs: 2
          devices: 1
          check_val_every_n_epoch: null
          val_check_interval: 4
          reload_dataloaders_every_n_epochs: 2
          inference_mode: false
          detect_anomaly: true
          profiler: simple
          max_time: {hours: 1}
          callbacks: [{class_path: StochasticWeightAveraging, init_args: {swa_lrs: 0.05}}]
        model: {class_path: tests.training.cli_project.Net}
        data: {class_path: tests.training.cli_project.Data, init_args: {batch_size: 4}}
        """,
    "loaders of the model": """
        seed_everything: 2
        trainer: {max_epochs: 2, devices: 1}
        model: {class_path: tests.training.cli_project.OwnData}
        """,
    "random numbers of all parts": """
        seed_everything: 6
        trainer:
          max_epochs: 2
          devices: 1
          callbacks:
            - class_path: pytorch_lightning.callbacks.LearningRateMonitor
            - class_path: tests.training.cli_project.Decay
              init_args: {layer: {class_path: torch.nn.Linear, init_args: {in_features: 2, out_features: 3}}}
        model: {class_path: tests.training.cli_project.Net}
        data: {class_path: tests.training.cli_project.DrawnData}
        """,
    "accumulation and intervals": """
        seed_everything: 4
        trainer:
          max_epochs: 9
          max_steps: 7
          devices: 1
          accumulate_grad_batches: 4
          gradient_clip_val: 0.01
          gradient_clip_algorithm: value
          val_check_interval: 0.5
          limit_val_batches: 2
          num_sanity_val_steps: 2
          logger:
            - {class_path: CSVLogger, init_args: {save_dir: csv}}
        model:
          class_path: tests.training.cli_project.GivenOptimizer
          init_args: {optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.02}}}
          dict_kwargs: {width: 6}
        data: {class_path: tests.training.cli_project.Data, init_args: {batch_size: 4}}
        """,
}


class _InDoublePrecision(LightningCLI):
    """Converts the model before callbacks copy it, as a job does; Lightning alone does so after that."""

    def after_instantiate_classes(self) -> None:
        self.model.double()


def with_lightning(
    _rank: int, configuration: dict[str, Any], folder: Path
) -> tuple[dict[str, float], dict[str, Any]]:
    """Runs LightningCLI on one device, with the whole batch of all devices; returns metrics and weights."""
    folder.mkdir()
    os.environ.pop("PL_GLOBAL_SEED", None)  # of a test before, in this process
    trainer = configuration["trainer"]
    devices = trainer["devices"] if isinstance(trainer["devices"], int) else len(trainer["devices"])
    if "data" in configuration:
        arguments = configuration["data"].setdefault("init_args", {})
        arguments["batch_size"] = arguments.get("batch_size", 4) * devices
    trainer |= {
        "devices": 1,
        "accelerator": "cpu",
        "strategy": "auto",
        "precision": "64-true",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": str(folder),
    }
    for callback in trainer.get("callbacks", []):  # which this process has as classes of their own
        callback["class_path"] = callback["class_path"].replace("pytorch_lightning", "lightning.pytorch")
    trainer.setdefault("logger", {"class_path": "CSVLogger", "init_args": {"save_dir": "csv"}})
    with chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cli = _InDoublePrecision(
            LightningModule,
            LightningDataModule if "data" in configuration else None,
            subclass_mode_model=True,
            subclass_mode_data="data" in configuration,
            save_config_callback=None,
            args={"fit": configuration, "subcommand": "fit"},
        )
    metrics = {
        name: float(value)
        for name, value in cli.trainer.callback_metrics.items()
        if name.startswith("val_")  # a loss of each step is there although it is not logged
    }
    return metrics, {name: value.detach() for name, value in cli.model.state_dict().items()}


def as_job(rank: int, document: dict[str, Any], folder: Path) -> Done:
    """Runs a job in a working directory of its own."""
    folder.mkdir(exist_ok=True)
    with chdir(folder):
        return attempt(rank, document, folder)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_job_gives_what_lightnings_command_line_gives(worlds: Worlds, tmp_path: Path, name: str) -> None:
    configuration = yaml.safe_load(CONFIGURATIONS[name])
    metrics, expected = worlds.run(1, with_lightning, copy.deepcopy(configuration), tmp_path / "lightning")[0]
    configuration["trainer"]["precision"] = "64-true"
    document = read_spec(configuration)[0].model_dump(mode="json")

    for workers in (1, 2, 3):
        done = worlds.run(workers, as_job, document, tmp_path / str(workers))[0]

        torch.testing.assert_close(dict(done.state), expected, rtol=1e-9, atol=1e-9)
        logged = {name: value for row in done.rows for name, value in row.items()}
        assert {name: logged.get(name) for name in metrics} == pytest.approx(metrics, rel=1e-6)
