"""What `trainer:` of a spec becomes on a rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import DoublePrecision

from training.callbacks.own_checkpoints import KeptFiles
from training.errors import BuildError
from training.rank.options import UserOptions, user_options
from training.rank.trainer import arguments
from training.spec import TrainerOptions


def made(folder: Path, **given: Any) -> UserOptions:
    return user_options(TrainerOptions.model_validate(given), KeptFiles(folder))


def test_nothing_given_is_nothing_made(tmp_path: Path) -> None:
    assert made(tmp_path) == UserOptions(
        callbacks=[],
        loggers=[None],
        plugins=[],
        arguments={"enable_checkpointing": False, "enable_model_summary": False},
    )


def test_callbacks_are_constructed_and_progress_bars_left_out(tmp_path: Path) -> None:
    found = made(
        tmp_path,
        callbacks=[
            {"class_path": "EarlyStopping", "init_args": {"monitor": "x"}},
            {"class_path": "lightning.pytorch.callbacks.TQDMProgressBar"},
            {"class_path": "ModelCheckpoint"},
        ],
    )

    assert [type(each) for each in found.callbacks] == [EarlyStopping, ModelCheckpoint]
    assert found.arguments["enable_checkpointing"] is True


def test_a_checkpoint_callback_without_checkpointing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"trainer\.enable_checkpointing: is false, but .* ModelCheckpoint"):
        made(tmp_path, enable_checkpointing=False, callbacks=["ModelCheckpoint"])


def test_a_mistake_in_a_callback_is_named_by_its_key(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"trainer\.callbacks"):
        made(tmp_path, callbacks=[{"class_path": "EarlyStopping", "init_args": {"monitr": "x"}}])


def test_loggers_write_to_the_folder_of_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "files"
    folder.mkdir()

    found = made(
        folder,
        logger=["MLFlowLogger", {"class_path": "CSVLogger", "init_args": {"save_dir": "csv"}}, "CSVLogger"],
    )

    own, relative, default = found.loggers
    assert own is None
    assert isinstance(relative, CSVLogger)
    assert isinstance(default, CSVLogger)
    assert (Path(relative.save_dir), Path(default.save_dir)) == (folder / "csv", folder)


@pytest.mark.parametrize("folder", [".", "./", "", "out/.."])
def test_the_working_directory_of_a_logger_and_a_profiler_is_the_folder_of_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.chdir(tmp_path)
    kept = tmp_path / "run" / "files"

    found = made(
        kept,
        logger={"class_path": "CSVLogger", "init_args": {"save_dir": folder}},
        profiler={"class_path": "SimpleProfiler", "init_args": {"dirpath": folder}},
    )

    logger, _ = found.loggers
    assert isinstance(logger, CSVLogger)
    assert logger.save_dir == str(found.arguments["profiler"].dirpath) == str(kept)
    assert kept.is_dir()


def test_a_logger_without_its_package_is_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = made(tmp_path, logger=[{"class_path": "lightning.pytorch.loggers.CometLogger"}])

    assert found.loggers == [None]
    assert "CometLogger is left out, because the package comet_ml is not there" in capsys.readouterr().out


def test_plugins_are_constructed(tmp_path: Path) -> None:
    (plugin,) = made(tmp_path, plugins=["DoublePrecision"]).plugins

    assert isinstance(plugin, DoublePrecision)


@pytest.mark.parametrize(
    ("given", "bits_on_gpus", "deterministic"),
    [({}, False, None), ({}, True, True), ({"deterministic": "warn"}, True, "warn")],
)
def test_to_the_last_bit_on_gpus_kernels_are_deterministic_unless_the_spec_says_otherwise(
    given: dict[str, Any], bits_on_gpus: bool, deterministic: object
) -> None:
    found = arguments(given, bits_on_gpus=bits_on_gpus, curves_only=False)

    assert found.get("deterministic") == deterministic
    assert found["num_sanity_val_steps"] == 0
