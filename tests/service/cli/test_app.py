from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from service.cli.app import app
from tests.service.cli.command_line import Syncbn
from tests.service.live_api import FaultyApp, LiveServer, live_service
from training.spec import Spec

HEAVY = {"torch", "ray", "lightning", "mlflow", "fastapi", "sqlalchemy", "httpx", "pydantic"}


def test_help_lists_the_commands_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from service.cli import main; sys.argv = ['syncbn', '--help']\n"
        "try: main()\n"
        "finally: print('LOADED', *{name.partition('.')[0] for name in sys.modules})"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    for command in ("submit", "validate", "logs", "metrics", "train", "up"):
        assert f" {command} " in shown
    assert "130 interrupted" in shown
    assert not HEAVY & set(shown.rpartition("LOADED")[2].split())


def test_the_client_loads_no_server_and_no_training() -> None:
    code = "import sys, service.client; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert not (HEAVY - {"httpx", "pydantic"}) & set(loaded.split())


def test_help_does_not_show_the_key(syncbn: Syncbn) -> None:
    assert "hunter2" not in syncbn("--help", SYNCBN_API_KEY="hunter2").stdout


def test_train_runs_the_spec_here_and_exits_as_it_does(
    syncbn: Syncbn, spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[tuple[Spec, Path | None, Path]] = []

    def train_locally(spec: Spec, *, code: Path | None, output: Path) -> int:
        called.append((spec, code, output))
        return 1

    monkeypatch.setitem(sys.modules, "training.host.local", SimpleNamespace(train_locally=train_locally))

    result = syncbn("train", spec, "--set", "training.seed=3", "--code", str(tmp_path))

    ((parsed, code, output),) = called
    assert result.exit_code == 1
    assert (parsed.training.seed, code, output) == (3, tmp_path, Path("output"))


def test_up_runs_the_stack_and_exits_as_it_does(syncbn: Syncbn, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[dict[str, Any]] = []

    def run(**arguments: Any) -> int:
        called.append(arguments)
        return 0

    monkeypatch.setitem(sys.modules, "service.embedded.stack", SimpleNamespace(run=run))

    assert syncbn("up", "--port", "8001").exit_code == 0
    assert called == [
        {"data_dir": Path("syncbn-data"), "host": "127.0.0.1", "port": 8001, "mlflow_port": 5000}
    ]


@pytest.mark.parametrize("command", ["show", "logs", "metrics", "wait", "cancel"])
def test_an_unknown_job_exits_4(syncbn: Syncbn, command: str) -> None:
    result = syncbn(command, "j-unknown")

    assert result.exit_code == 4
    assert result.stderr.startswith("error: no job 'j-unknown'")


def test_an_unreachable_server_exits_5_and_says_what_to_do(syncbn: Syncbn) -> None:
    result = syncbn("--url", "http://127.0.0.1:1", "list")

    assert (result.exit_code, result.stdout) == (5, "")
    for text in ("http://127.0.0.1:1", "SYNCBN_URL", "syncbn up"):
        assert text in result.stderr
    assert "Traceback" not in result.stderr


def test_a_missing_key_is_asked_for_and_one_given_opens(
    live_server: LiveServer[FaultyApp], tmp_path: Path
) -> None:
    with live_service(live_server, tmp_path, api_key="hunter2") as service:
        environment = {"SYNCBN_URL": service.url, "SYNCBN_API_KEY": None}
        refused = CliRunner().invoke(app, ["list"], env=environment)
        opened = CliRunner().invoke(app, ["--api-key", "hunter2", "list"], env=environment)

    assert (refused.exit_code, opened.exit_code) == (2, 0)
    assert "SYNCBN_API_KEY" in refused.stderr
