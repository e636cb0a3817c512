"""Each fault of MLflow, the API, Ray and the scheduler is named: servers misbehave as the real ones do."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr

from service.api.app import create_app
from service.backends.memory_tracking import FakeResults
from service.doctor import api, mlflow, ray, scheduler, versions
from service.doctor.diagnosis import parts
from service.doctor.examine import examine
from service.doctor.finding import Finding, Level
from service.errors import Unavailable
from service.ports import free_port
from service.queue import lease
from service.queue.store import Store
from service.settings import Settings
from tests.mlflow_server import MlflowServer
from tests.service.live_api import find_ray
from tests.service.serving import Stage
from training.host.job_user import AS_ROOT

SILENT = 0.3
"""Seconds after which a server that does not answer is given up."""


def levels(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(each.about, each.level) for each in findings]


@contextmanager
def silent_server() -> Iterator[str]:
    """Accepts connections, as the kernel does for a process that is stopped, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


# MLflow


def test_an_mlflow_that_is_down_is_named() -> None:
    (finding,) = mlflow.check(f"http://127.0.0.1:{free_port()}")

    assert finding.level is Level.FAULT
    assert finding.message.startswith("it is down")


def test_an_mlflow_that_hangs_is_named() -> None:
    with silent_server() as address:
        (finding,) = mlflow.check(f"http://{address}", seconds=SILENT)

    assert finding.level is Level.FAULT
    assert "accepts connections and has not answered for 0.3 s" in finding.message


def test_an_mlflow_that_refuses_the_host_is_named_with_the_way_out(mlflow_server: MlflowServer) -> None:
    url = mlflow_server.url.replace("127.0.0.1", "127.0.0.1.nip.invalid")
    with resolving("127.0.0.1.nip.invalid"):
        (finding,) = mlflow.check(url)

    assert finding.level is Level.FAULT
    assert finding.message.startswith("it refuses the host 127.0.0.1.nip.invalid:")
    assert "MLFLOW_SERVER_ALLOWED_HOSTS=127.0.0.1.nip.invalid:" in finding.advice


def test_a_healthy_mlflow_of_another_version_is_a_warning(mlflow_server: MlflowServer) -> None:
    assert levels(list(mlflow.check(mlflow_server.url))) == [("MLflow", "ok")]

    found = list(mlflow.check(mlflow_server.url, own={"mlflow": "2.9.1"}))

    assert levels(found) == [("MLflow", "ok"), ("versions", "warning")]
    assert "the client of the jobs 2.9.1" in found[1].message


@contextmanager
def resolving(name: str) -> Iterator[None]:
    """The name has the address of loopback in this process, as in /etc/hosts."""
    with pytest.MonkeyPatch.context() as patch:
        real = socket.getaddrinfo

        def getaddrinfo(host: object, *arguments: object, **options: object) -> object:
            return real("127.0.0.1" if host in {name, name.encode()} else host, *arguments, **options)  # type: ignore[arg-type]

        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        yield


# The API


def test_an_api_of_this_version_is_well_and_another_key_is_named(stage: Stage, sqlite_store: Store) -> None:
    app = create_app(Settings(api_key=SecretStr("right")), sqlite_store, FakeResults())
    with stage.showing(app):
        good = list(api.check(stage.url, "right", expected=True))
        (bad,) = api.check(stage.url, "wrong", expected=True)

    assert levels(good) == [("API", "ok"), ("versions", "ok")]
    assert bad.level is Level.FAULT
    assert "answers 401" in bad.message


def test_a_port_that_another_program_has_taken_is_named() -> None:
    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(500)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        (finding,) = api.check(f"http://127.0.0.1:{other.server_port}", None, expected=False)
        other.shutdown()

    assert finding.level is Level.FAULT
    assert "not this service" in finding.message


@pytest.mark.parametrize(("expected", "level"), [(True, Level.FAULT), (False, Level.WARNING)])
def test_an_api_that_is_down_is_a_fault_only_where_it_should_run(expected: bool, level: Level) -> None:
    (finding,) = api.check(f"http://127.0.0.1:{free_port()}", None, expected=expected)

    assert finding.level is level


# The scheduler


def test_a_scheduler_is_named_that_has_never_run_is_silent_or_has_no_ray(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(database_url=str(sqlite_store._engine.url))
    (never,) = scheduler.check(settings)
    find_ray(sqlite_store)
    well = list(scheduler.check(settings))
    find_ray(sqlite_store, problem="Ray is not reachable: it is away")
    without_ray = list(scheduler.check(settings))
    monkeypatch.setattr(lease, "SILENCE_SECONDS", -1.0)
    (silent,) = scheduler.check(settings)

    assert "none ever has" in never.message
    assert levels(well) == [("scheduler", "ok"), ("versions", "ok")]
    assert levels(without_ray) == [("scheduler", "ok"), ("scheduler", "fault"), ("versions", "ok")]
    assert "has not been heard from" in silent.message
    assert never.level is silent.level is Level.FAULT
    assert never.advice == silent.advice == lease.HOW_TO_START


def test_a_scheduler_that_has_stepped_down_is_named(sqlite_store: Store) -> None:
    number = sqlite_store.take_over(None, "1@a")
    assert number
    sqlite_store.step_down(number)

    (finding,) = scheduler.check(Settings(database_url=str(sqlite_store._engine.url)))

    assert "has stepped down" in finding.message


def test_who_runs_up_is_told_that_it_starts_the_parts_again_and_where_their_logs_are(
    sqlite_store: Store, tmp_path: Path
) -> None:
    away = f"127.0.0.1:{free_port()}"
    settings = Settings().of_stack(
        tmp_path,
        database_url=str(sqlite_store._engine.url),
        ray_address=away,
        mlflow_url=f"http://{away}",
        storage=str(tmp_path),
    )
    app = create_app(settings, sqlite_store, FakeResults())

    found = list(examine(parts(settings, 30.0)))

    by_part = {each.about: each for each in found if each.level is Level.FAULT}
    for about, part in (("scheduler", "scheduler"), ("Ray", "ray"), ("MLflow", "mlflow")):
        assert by_part[about].advice.startswith("a running `syncbn up` starts it again")
        assert f"{tmp_path}/{part}.log" in by_part[about].advice
    with pytest.raises(Unavailable, match=f"`syncbn up` starts it again .*{tmp_path}/scheduler.log"):
        app.state.context.scheduler()


# Ray; what a real one answers is tested in tests/e2e/test_doctor.py


def test_a_ray_that_is_down_or_frozen_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "_probe", lambda *_: {"problem": "Ray is not reachable: 1: Connection refused"})
    (down,) = ray.check(Settings(storage=str(tmp_path)), "", seconds=1)
    monkeypatch.undo()
    with silent_server() as address:
        settings = Settings(ray_address=address, storage=str(tmp_path))
        (frozen,) = ray.check(settings, "", seconds=SILENT)

    assert down.message.startswith("it is down")
    assert "accepts connections and does not answer" in frozen.message
    assert not list(tmp_path.iterdir())


def test_what_agents_say_is_compared_with_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    well = {
        "time": 100.0,
        "asked_at": 99.9,
        "answered_at": 100.1,
        "versions": {"ray": "1"},
        "sees_marker": True,
    }
    nodes = [
        {"address": "well", "alive": True, "agent": well},
        {"address": "behind", "alive": True, "agent": {**well, "time": 40.0}},
        {"address": "other", "alive": True, "agent": {**well, "versions": {"ray": "2"}}},
        {"address": "apart", "alive": True, "agent": {**well, "sees_marker": False}},
        {"address": "rooted", "alive": True, "agent": {**well, "jobs_as_root": True}},
        {"address": "unset", "alive": True, "agent": {**well, "job_user_problem": "no system user ada"}},
        {"address": "silent", "alive": True, "agent": {"problem": "silent"}},
        {"address": "none", "alive": True, "agent": {"problem": "missing"}},
        {"address": "dead", "alive": True, "agent": {"problem": "ActorDiedError: killed"}},
        {"address": "gone", "alive": False, "agent": {}},
    ]
    monkeypatch.setattr(ray, "_probe", lambda *_: {"nodes": nodes})

    found = list(ray.check(Settings(storage=str(tmp_path)), "q", seconds=1, own={"ray": "1"}))

    bad = [(each.about, each.message) for each in found if each.level is not Level.OK]
    assert bad == [
        ("Ray", "machines have left the cluster: gone"),
        ("clock", "the clock of behind is 60 s behind that of this machine"),
        ("versions", "the agent on other runs ray 2, here is 1"),
        ("storage", "apart does not see what this machine writes to the storage"),
        ("agents", "no job can start on unset"),
        ("agents", "the host agent on silent has not answered for 5 s"),
        ("agents", "there is no host agent on none"),
        ("agents", "the host agent on dead is gone: ActorDiedError: killed"),
    ]
    said = [each.message for each in found if each.level is Level.OK and "as root" in each.message]
    assert said == [f"the host agent on rooted answers; {AS_ROOT}"]


def test_a_part_that_says_no_version_is_older() -> None:
    (finding,) = versions.differences("the API", {})

    assert finding.level is Level.WARNING
