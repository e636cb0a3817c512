"""Scripts on the command line, in place of a spec."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest

from service.client import Client
from tests.service.cli.command_line import Syncbn
from tests.service.live_api import Service

NOTE = "may depend on the number of workers"


@pytest.fixture
def script(tmp_path: Path) -> str:
    """A script in the folder `tools` of a project."""
    folder = tmp_path / "project" / "tools"
    folder.mkdir(parents=True)
    (folder / "train.py").write_text("print('trained')\n")
    (folder.parent / "mine.py").write_text("")
    return str(folder / "train.py")


def test_a_script_is_submitted_with_its_folder_and_its_arguments(
    syncbn: Syncbn, client: Client, service: Service, script: str
) -> None:
    workers = ("--set", "resources.workers=2")

    ran = syncbn("submit", script, *workers, "--json", "--", "--lr", "0.1", "--set", "a=b", "-x")

    assert ran.exit_code == 0, ran.stderr
    assert NOTE in ran.stderr
    job = client.job(json.loads(ran.stdout)["id"])
    assert job.name == "train.py"
    assert job.spec["resources"]["workers"] == 2
    assert job.spec["script"]["path"] == "train.py"
    assert job.spec["script"]["args"] == ["--lr", "0.1", "--set", "a=b", "-x"]
    archive = service.store.get_code(job.spec["code"])
    assert zipfile.ZipFile(io.BytesIO(archive)).namelist() == ["train.py"]
    assert NOTE in syncbn("show", job.id).stdout.replace("\n", " ").replace("  ", "")


def test_the_code_may_be_a_folder_above_the_script_and_a_file_may_say_the_rest(
    syncbn: Syncbn, script: str, tmp_path: Path
) -> None:
    (tmp_path / "more.yaml").write_text("retries: 0\n")
    project = str(tmp_path / "project")

    ran = syncbn("submit", script, "--code", project, "--config", str(tmp_path / "more.yaml"), "--json")

    spec = json.loads(ran.stdout)["spec"]
    assert (spec["script"]["path"], spec["retries"]) == ("tools/train.py", 0)


def test_validate_says_what_holds_for_a_script(syncbn: Syncbn, script: str) -> None:
    ran = syncbn("validate", script)

    assert ran.exit_code == 0
    assert NOTE in " ".join(ran.stdout.split())
    assert "samples per worker" not in ran.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--lr", "0.1"), "write -- before it"),
        (("--model.lr=0.1",), "write -- before it"),
        (("--code", "/usr"), "is not in the folder of the code, /usr"),
        (
            ("--set", "script.path=other.py"),
            "no other.py in the uploaded code; its Python files: train.py",
        ),
        (("--set", "training.seed=1"), "training: a script does this itself"),
    ],
)
def test_what_a_script_cannot_be_run_with_is_refused(
    syncbn: Syncbn, script: str, words: tuple[str, ...], said: str
) -> None:
    ran = syncbn("submit", script, *words)

    assert ran.exit_code == 2
    assert said in " ".join(ran.stderr.replace("│", "").split())


def test_a_script_with_a_syntax_error_is_refused_with_its_line(syncbn: Syncbn, script: str) -> None:
    Path(script).write_text("import torch\nprint(\n")

    for command in ("submit", "train", "verify"):
        ran = syncbn(command, script)
        assert ran.exit_code == 2
        assert "script.path: train.py, line 2: '(' was never closed" in ran.stderr


def test_a_module_beside_the_script_may_not_hide_one_that_is_imported_already(
    syncbn: Syncbn, script: str, tmp_path: Path
) -> None:
    Path(script).with_name("numpy.py").write_text("")

    for command in ("submit", "train"):
        ran = syncbn(command, script, "--code", str(tmp_path / "project"))
        assert ran.exit_code == 2
        assert "tools/numpy.py would hide the installed package 'numpy'" in ran.stderr


def test_arguments_belong_to_a_script_alone(syncbn: Syncbn, spec: str) -> None:
    for command in ("submit", "validate", "train"):
        ran = syncbn(command, spec, "--", "--lr", "0.1")
        assert ran.exit_code == 2
        assert "in a spec they are script.args" in " ".join(ran.stderr.replace("│", "").split())


def test_a_spec_with_a_script_needs_code(syncbn: Syncbn, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("script: {path: train.py}")

    ran = syncbn("submit", str(tmp_path / "spec.yaml"))

    assert ran.exit_code == 2
    assert "no code is uploaded, so there is no train.py; give its folder with --code" in ran.stderr


def test_the_curves_of_scripts_cannot_be_verified(syncbn: Syncbn, script: str, tmp_path: Path) -> None:
    ran = syncbn("verify", script, "--output", str(tmp_path / "verify"))

    assert ran.exit_code == 2
    assert "the steps of a script are not known" in ran.stderr
    assert not (tmp_path / "verify").exists()
