from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import SecretStr

from service import server
from service.client.local_token import token_file
from service.embedded import stack
from service.embedded.processes import MARK, Child, StackState, sweep
from service.embedded.servers import MlflowServer
from service.errors import Refused
from service.identity import Identity
from service.local_token import published
from service.logs import LogFormat
from service.ports import free_port
from service.settings import Settings

SYNCBN = str(Path(sys.executable).with_name("syncbn"))
Spawn = Callable[..., psutil.Process]


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Starts a process that only sleeps, with what it shall have in its environment."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(**environment: str) -> psutil.Process:
        started.append(subprocess.Popen(["sleep", "60"], env=os.environ | environment))
        process = psutil.Process(started[-1].pid)
        # Popen returns in the midst of the exec, when others may not see the new environment yet.
        while not environment.items() <= process.environ().items():
            time.sleep(0.01)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def taken() -> Iterator[int]:
    """A port of this machine on which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


class Sleeper(Child):
    key, name = "sleeper", "Sleeper"

    def command(self) -> list[str]:
        return ["sleep", "60"]

    def is_ready(self) -> bool:
        return self.is_alive()


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[Sleeper]:
    child = Sleeper(StackState.load(tmp_path))
    yield child
    child.end()


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


# What is written down


def test_what_was_kept_is_found_again(tmp_path: Path) -> None:
    state = StackState.load(tmp_path)
    state.keep("ray", {"process": "1@x", "gcs_port": 6379})
    state.keep("mlflow", {"process": "2@x"})

    again = StackState.load(tmp_path)

    assert again.servers == {"ray": {"process": "1@x", "gcs_port": 6379}, "mlflow": {"process": "2@x"}}
    assert again.ray_address == "127.0.0.1:6379"
    assert again.token == state.token


def test_a_write_that_was_cut_off_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = StackState.load(tmp_path)
    state.keep("ray", {"pid": 1})

    def torn(path: Path, text: str) -> int:
        with path.open("w") as file:
            file.write(text[: len(text) // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", torn)
        with pytest.raises(KeyboardInterrupt):
            state.keep("mlflow", {"pid": 2})

    assert StackState.load(tmp_path).servers == {"ray": {"pid": 1}}


def test_a_file_that_a_power_cut_has_emptied_names_no_process(tmp_path: Path) -> None:
    (tmp_path / "stack.json").touch()

    assert StackState.load(tmp_path).servers == {}


def test_the_token_is_secret_and_stays(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        token = StackState.load(tmp_path).token
    finally:
        os.umask(old)

    assert len(token) == 64
    assert stat.S_IMODE((tmp_path / "ray.token").stat().st_mode) == 0o600
    assert StackState.load(tmp_path).token == token


def test_folders_have_different_tokens(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()

    assert StackState.load(tmp_path / "a").token != StackState.load(tmp_path / "b").token


def test_a_token_whose_writing_was_cut_off_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(path: Path, text: str) -> int:
        with path.open("w") as file:
            file.write(text[:7])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", torn)
        with pytest.raises(KeyboardInterrupt):
            StackState.load(tmp_path)

    assert len(StackState.load(tmp_path).token) == 64
    assert stat.S_IMODE((tmp_path / "ray.token").stat().st_mode) == 0o600


# Whose process it is


def test_a_child_is_known_to_the_next_that_looks(sleeper: Sleeper, tmp_path: Path) -> None:
    sleeper.start()

    again = Sleeper(StackState.load(tmp_path))

    assert again.is_alive()
    assert again.process() == sleeper.process()
    again.take_over_or_start()
    assert again.process() == sleeper.process()


def test_a_child_that_died_is_started_again(sleeper: Sleeper, capsys: pytest.CaptureFixture[str]) -> None:
    sleeper.start()
    first = sleeper.process()
    assert first is not None
    first.kill()
    first.wait(60)

    assert not sleeper.is_alive()
    sleeper.restart_if_dead()

    assert sleeper.is_alive()
    assert sleeper.process() != first
    assert f"Sleeper exited unexpectedly (log: {sleeper.log})" in capsys.readouterr().out
    sleeper.restart_if_dead()
    assert capsys.readouterr().out == ""


def test_a_child_is_ended_with_everything_below_it(tmp_path: Path) -> None:
    class Parent(Sleeper):
        def command(self) -> list[str]:
            return ["sh", "-c", "sleep 60 & wait"]

    parent = Parent(StackState.load(tmp_path))
    parent.start()
    process = parent.process()
    assert process is not None
    deadline = time.monotonic() + 60
    while not (below := process.children()):
        assert time.monotonic() < deadline
        time.sleep(0.02)

    parent.end()

    assert not parent.is_alive()
    assert all(is_gone(child) for child in [process, *below])
    parent.end()


@pytest.mark.parametrize("change", [{"pid": 2**22 + 1}, {"born": "then"}], ids=["dead", "reused"])
def test_another_process_is_not_taken_for_ours(
    sleeper: Sleeper, spawn: Spawn, change: dict[str, Any]
) -> None:
    strange = spawn()
    ours = Identity.of(strange.pid)
    sleeper.state.keep("sleeper", {"process": str(ours)})
    assert sleeper.is_alive()

    sleeper.state.keep("sleeper", {"process": str(replace(ours, **change))})

    assert sleeper.process() is None
    sleeper.end()
    assert not is_gone(strange)


def test_what_an_earlier_version_wrote_down_is_no_process_of_ours(sleeper: Sleeper, spawn: Spawn) -> None:
    strange = spawn()

    sleeper.state.keep("sleeper", {"pid": strange.pid, "create_time": strange.create_time()})

    assert not sleeper.is_alive()


def test_a_child_that_dies_at_once_is_not_started_all_the_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Dying(Sleeper):
        starts = 0

        def command(self) -> list[str]:
            self.starts += 1
            return ["true"]

    child = Dying(StackState.load(tmp_path))
    child.start()
    wait_until_dead(child)
    assert child.restart_if_dead()  # the first time at once
    wait_until_dead(child)

    assert not child.restart_if_dead()
    assert not child.restart_if_dead()

    assert child.starts == 2
    assert capsys.readouterr().out.count("exited unexpectedly") == 2


def wait_until_dead(child: Child) -> None:
    deadline = time.monotonic() + 60
    while child.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_child_that_cannot_be_started_is_tried_again_later(
    tmp_path: Path, taken: int, capsys: pytest.CaptureFixture[str]
) -> None:
    server = MlflowServer(StackState.load(tmp_path), taken)

    assert not server.restart_if_dead()
    assert not server.restart_if_dead()

    assert capsys.readouterr().out.count(f"MLflow: port {taken} is taken") == 1


def test_the_end_of_a_child_waits_for_what_is_not_ours_below_it_without_asking_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ranks are: they have no mark, and end with whoever watches over them."""
    clean = f"env -u {MARK} sh -c 'trap \"echo asked >{tmp_path}/asked\" TERM; while :; do sleep 0.05; done'"

    class Parent(Sleeper):
        def command(self) -> list[str]:
            return ["sh", "-c", f"{clean} & wait"]

    parent = Parent(StackState.load(tmp_path))
    parent.start()
    process = parent.process()
    assert process is not None
    deadline = time.monotonic() + 60
    while not any(MARK not in below.environ() for below in process.children(recursive=True)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    below = process.children(recursive=True)
    monkeypatch.setattr("service.embedded.processes.end_all.__defaults__", (0.5,))

    parent.end()

    assert all(is_gone(each) for each in [process, *below])
    assert not (tmp_path / "asked").exists()


def test_what_was_never_started_is_not_alive(sleeper: Sleeper) -> None:
    assert not sleeper.is_alive()


# Sweep


def test_sweep_ends_what_carries_the_mark_of_the_folder_and_nothing_else(
    tmp_path: Path, spawn: Spawn
) -> None:
    marked, unmarked = spawn(**{MARK: str(tmp_path)}), spawn()
    another = spawn(**{MARK: f"{tmp_path}/deeper"})

    assert sweep(tmp_path)

    assert is_gone(marked)
    assert not is_gone(unmarked)
    assert not is_gone(another)
    assert not sweep(tmp_path)


def test_sweep_spares_a_child_and_what_is_below_it(sleeper: Sleeper, tmp_path: Path, spawn: Spawn) -> None:
    sleeper.start()
    stray = spawn(**{MARK: str(tmp_path)})

    assert sweep(tmp_path, spare=[sleeper])

    assert sleeper.is_alive()
    assert is_gone(stray)


def test_sweep_insists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.embedded.processes.end_all.__defaults__", (0.3,))
    program = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); signal.pause()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], env=os.environ | {MARK: str(tmp_path)}, stdout=subprocess.PIPE
    ) as deaf:
        assert deaf.stdout is not None
        deaf.stdout.readline()

        assert sweep(tmp_path)

        assert is_gone(psutil.Process(deaf.pid))


# Ports


def test_a_taken_port_of_mlflow_is_refused_by_its_option(tmp_path: Path, taken: int) -> None:
    server = MlflowServer(StackState.load(tmp_path), taken)

    with pytest.raises(Refused, match=f"port {taken} is taken: choose another with --mlflow-port"):
        server.start()

    assert not server.is_alive()


def up(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SYNCBN_")}
    command = [SYNCBN, "up", "--data-dir", str(folder), "--port", str(free_port()), *arguments]
    return subprocess.run(command, env=clean | environment, capture_output=True, text=True, timeout=300)


def test_up_refuses_a_taken_port(tmp_path: Path, taken: int) -> None:
    done = up(tmp_path / "new", "--port", str(taken))

    assert done.returncode == 2
    assert f"error: port {taken} is taken: choose another with --port" in done.stderr
    assert not (tmp_path / "new").exists()


def test_up_refuses_a_file_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")

    done = up(tmp_path / "file")

    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: --data-dir {tmp_path / 'file'} cannot be used: File exists: name a folder"
    ]
    assert (tmp_path / "file").read_text() == "mine"


def test_up_refuses_a_database_that_is_none_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database, but more than a hundred characters of text" * 20)

    done = up(tmp_path / "new", SYNCBN_DATABASE_URL=f"sqlite:///{tmp_path / 'text'}")

    assert done.returncode == 2
    assert done.stderr.splitlines() == ["error: the database cannot be used: file is not a database"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_up_refuses_other_machines_without_a_key(tmp_path: Path, host: str) -> None:
    with pytest.raises(Refused, match=f"--host {host} .*set SYNCBN_API_KEY first"):
        server.check_address(host, 0, Settings())
    if host == "0.0.0.0":
        done = up(tmp_path / "new", "--host", host)
        assert done.returncode == 2
        assert "set SYNCBN_API_KEY first, or leave --host at 127.0.0.1" in done.stderr
        assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1.2.3"])
def test_this_machine_needs_no_key(host: str) -> None:
    server.check_address(host, 0, Settings())


def test_other_machines_are_served_with_a_key() -> None:
    settings = Settings(api_key=SecretStr("secret"))

    server.check_address("0.0.0.0", 0, settings)


def test_a_host_that_is_not_this_machine_is_not_called_a_taken_port() -> None:
    settings = Settings(api_key=SecretStr("secret"))

    with pytest.raises(Refused, match=r"cannot listen on 192\.0\.2\.1:0: "):
        server.check_address("192.0.2.1", 0, settings)


def test_a_folder_serves_one_up_at_a_time(tmp_path: Path) -> None:
    assert stack._holder(tmp_path / "up.lock") is None
    with stack._only_one(tmp_path):
        assert stack._holder(tmp_path / "up.lock") == os.getpid()
        done = up(tmp_path)
        assert done.returncode == 2
        assert f"another `syncbn up` runs on {tmp_path}" in done.stderr
    assert stack._holder(tmp_path / "up.lock") is None


def test_down_ends_what_a_killed_up_left(tmp_path: Path, spawn: Spawn) -> None:
    stray = spawn(**{MARK: str(tmp_path)})

    assert stack.down(data_dir=tmp_path)

    assert is_gone(stray)
    assert not stack.down(data_dir=tmp_path)


@pytest.mark.parametrize(("log_format", "shown"), [(LogFormat.TEXT, True), (LogFormat.JSON, False)])
def test_the_link_that_signs_in_is_for_people_and_not_for_a_log_collector(
    log_format: LogFormat, shown: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with published(token_file(8000)) as token:
        link = stack._console_link(Settings(log_format=log_format), "127.0.0.1", 8000)

    assert link == "http://127.0.0.1:8000/" + (f"sign-in?token={token}" if shown else "")
