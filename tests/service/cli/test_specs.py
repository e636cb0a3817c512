"""Files, overrides and variables of a spec on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.service.cli.command_line import Syncbn

CONFIGURATION = """
seed_everything: ${oc.env:SEED,3}
trainer: {max_epochs: 2, devices: 2}
model: {class_path: training.models.MLP}
data: {class_path: training.data.Digits}
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIGURATION)
    return str(path)


def validated(syncbn: Syncbn, *arguments: str, **environment: str) -> Any:
    result = syncbn("validate", *arguments, "--json", **environment)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_later_files_and_then_overrides_win(syncbn: Syncbn, config: str, tmp_path: Path) -> None:
    more = tmp_path / "more.yaml"
    more.write_text("trainer: {max_epochs: 3, gradient_clip_val: 1.0}\n")

    found = validated(syncbn, config, "--config", str(more))["spec"]
    alone = validated(syncbn, "--config", config, "--config", str(more), "--trainer.max_epochs", "4")["spec"]

    assert (found["training"]["max_epochs"], found["trainer"]) == (3, {"gradient_clip_val": 1.0})
    assert alone["training"]["max_epochs"] == 4


def test_a_file_with_a_section_for_fit_takes_overrides(syncbn: Syncbn, tmp_path: Path) -> None:
    path = tmp_path / "fit.yaml"
    path.write_text("fit:\n" + "\n".join(f"  {line}" for line in CONFIGURATION.splitlines()))

    spec = validated(syncbn, str(path), "--trainer.max_epochs=7", "--model.hidden=[8]")["spec"]

    assert spec["training"]["max_epochs"] == 7
    assert spec["model"]["init_args"] == {"hidden": [8]}


def test_variables_come_from_the_environment_of_the_command(syncbn: Syncbn, config: str) -> None:
    assert validated(syncbn, config)["spec"]["training"]["seed"] == 3
    assert validated(syncbn, config, SEED="8")["spec"]["training"]["seed"] == 8


def test_notes_are_shown_when_a_job_is_submitted(syncbn: Syncbn, config: str) -> None:
    submitted = syncbn("submit", config, "--json")

    assert json.loads(submitted.stdout)["workers"] is None
    assert "note: a global batch is 2 batches of the data's own loader" in submitted.stderr
    assert len(validated(syncbn, config)["notes"]) == 1


@pytest.mark.parametrize("command", ["validate", "submit"])
def test_a_logger_that_a_job_would_leave_out_has_a_note(syncbn: Syncbn, config: str, command: str) -> None:
    result = syncbn(command, config, "--trainer.logger=TensorBoardLogger")

    shown = result.stdout if command == "validate" else result.stderr
    assert "TensorBoardLogger needs tensorboard" in " ".join(shown.split())
    assert "environment.requirements" in shown


@pytest.mark.parametrize("rest", [[], ["--json"]])
def test_an_override_without_a_value_is_refused(syncbn: Syncbn, config: str, rest: list[str]) -> None:
    result = syncbn("validate", config, "--trainer.max_epochs", *rest)

    assert result.exit_code == 2
    assert "--trainer.max_epochs needs a value" in result.stderr


def test_a_misspelt_option_is_no_override(syncbn: Syncbn, config: str) -> None:
    assert syncbn("validate", config, "--folow").exit_code == 2


def test_no_file_is_an_error_that_says_what_to_name(syncbn: Syncbn) -> None:
    result = syncbn("validate")

    assert result.exit_code == 2
    assert "name a file with a spec, or give --config FILE" in result.stderr


def test_parts_of_a_configuration_may_be_files(
    syncbn: Syncbn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {
        "main.yaml": "{trainer: parts/trainer.yaml, model: parts/model.yaml, data: parts/data.json}",
        "parts/trainer.yaml": "{max_epochs: 2, gradient_clip_val: 1.0, logger: logger.yaml}",
        "parts/logger.yaml": "{class_path: CSVLogger, init_args: {save_dir: csv}}",
        "parts/model.yaml": "{class_path: training.models.MLP, init_args: {hidden: [8]}}",
        "parts/data.json": '{"class_path": "training.data.Digits"}',
        "wide.yaml": "{hidden: [16]}",
        "long.yaml": "{max_epochs: 9}",
        "sgd.yaml": "{class_path: SGD, init_args: {lr: 0.5}}",
        "missing.yaml": "{trainer: {callbacks: [none.yaml]}, model: none.yaml}",
    }
    (tmp_path / "parts").mkdir()
    for name, text in parts.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)

    spec = validated(syncbn, "main.yaml")["spec"]
    changed = validated(
        syncbn,
        *["main.yaml", "--trainer", "long.yaml", "--model=wide.yaml", "--optimizer", "sgd.yaml"],
    )["spec"]
    missing = syncbn("validate", "missing.yaml")
    nowhere = syncbn("validate", "main.yaml", "--model", "nowhere.yaml")
    unread = syncbn("validate", "main.yaml", "--set", "data=parts/data.json")

    assert (spec["training"]["max_epochs"], spec["model"]["init_args"]) == (2, {"hidden": [8]})
    assert spec["trainer"]["logger"][0]["init_args"] == {"save_dir": "csv"}
    assert changed["training"]["max_epochs"] == 9
    assert changed["trainer"] == spec["trainer"]
    assert (changed["model"]["class_path"], changed["model"]["init_args"]) == (
        "training.models.MLP",
        {"hidden": [16]},
    )
    assert changed["optimizer"] == {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}
    assert "model: cannot read none.yaml: No such file" in missing.stderr
    assert "model: cannot read nowhere.yaml: No such file" in nowhere.stderr
    assert "data: parts/data.json is a file, and `syncbn submit` reads those" in unread.stderr
