"""`syncbn doctor`: what it prints, its exit code, and where it takes the settings from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.doctor import diagnosis
from service.doctor.finding import Check, fault, ok, warning
from service.embedded.patient import patient
from service.embedded.processes import StackState
from tests.service.cli.command_line import Syncbn


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[Check]:
    given = [
        Check(about="disk", run=lambda: [ok("disk", "there is room")]),
        Check(about="files", run=lambda: [warning("files", "few\x1b[31m", "raise it")]),
    ]
    monkeypatch.setattr(diagnosis, "checks", lambda *_: given)
    return given


def test_warnings_are_no_fault(syncbn: Syncbn, checks: list[Check], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNCBN_DATABASE_URL", "sqlite:///none.db")
    assert len(checks) == 2

    result = syncbn("doctor")

    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "0 faults, 1 warning"
    assert "ok       disk: there is room" in result.stdout
    assert "→ raise it" in result.stdout
    assert "\x1b" not in result.stdout


def test_a_fault_ends_with_code_1(
    syncbn: Syncbn, checks: list[Check], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNCBN_DATABASE_URL", "sqlite:///none.db")
    checks.append(Check(about="Ray", run=lambda: [fault("Ray", "it is down", "start it")]))

    result = syncbn("doctor", "--json")

    answer = json.loads(result.stdout)
    assert result.exit_code == 1
    assert answer["healthy"] is False
    assert {"about": "Ray", "level": "fault", "message": "it is down", "advice": "start it"} in answer[
        "findings"
    ]


def test_a_folder_where_up_has_never_run_is_refused(syncbn: Syncbn, tmp_path: Path) -> None:
    result = syncbn("doctor", "--data-dir", str(tmp_path / "none"))

    assert result.exit_code == 2
    assert "has never run" in result.stderr
    assert not (tmp_path / "none").exists()


def test_the_settings_of_a_data_folder_are_those_of_its_servers(tmp_path: Path) -> None:
    state = StackState.load(tmp_path)
    state.keep("ray", {"gcs_port": 4321})
    state.keep("mlflow", {"port": 5678})

    found = patient(tmp_path)

    assert found.settings.ray_address == "127.0.0.1:4321"
    assert found.settings.mlflow_url == "http://127.0.0.1:5678"
    assert found.settings.database_url == f"sqlite:///{tmp_path / 'syncbn.db'}"
    assert found.settings.ray_token is not None
    assert found.settings.ray_token.get_secret_value() == state.token
    assert not found.up
