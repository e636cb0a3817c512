from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.user_code.loggers import left_out_loggers
from tests.service.examples import make_spec
from tests.service.user_code.test_check import make_archive

LOGGERS = [
    "CSVLogger",
    "TensorBoardLogger",
    "mine.CometLogger",
    {"class_path": "pytorch_lightning.loggers.CometLogger"},
]
"""Of these, the packages of the second and the last are not there."""


def notes(code: bytes | Path | None = None, **environment: Any) -> list[str]:
    spec = make_spec(trainer={"logger": LOGGERS}, environment=environment)
    return left_out_loggers(spec, code)


def test_a_logger_whose_package_is_not_there_has_a_note_that_says_what_to_do() -> None:
    assert notes() == [
        "trainer.logger.1: TensorBoardLogger needs tensorboard, which is not installed where jobs run; the "
        "job leaves the logger out, unless environment.requirements has it",
        "trainer.logger.3: pytorch_lightning.loggers.CometLogger needs comet_ml, which is not installed "
        "where jobs run; the job leaves the logger out, unless environment.requirements has it",
    ]


@pytest.mark.parametrize("requirements", [["TensorBoard>=2", "comet-ml"], ["tensorboardX", "comet_ml==3.1"]])
def test_requirements_bring_the_packages(requirements: list[str]) -> None:
    assert notes(requirements=requirements) == []


def test_other_requirements_may_bring_them() -> None:
    found = notes(requirements=["somewhere"])

    assert len(found) == 2
    assert all("unless one of environment.requirements brings it" in note for note in found)


def test_the_code_brings_a_package(tmp_path: Path) -> None:
    (tmp_path / "tensorboard.py").touch()

    for code in (tmp_path, make_archive({"tensorboard.py": b""})):
        assert [note.partition(":")[0] for note in notes(code)] == ["trainer.logger.3"]
