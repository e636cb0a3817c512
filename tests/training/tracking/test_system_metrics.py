from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.line import Line
from tests.mlflow_server import MlflowServer
from training.tracking import system_metrics
from training.tracking.system_metrics import SystemMetrics

if TYPE_CHECKING:
    from mlflow import MlflowClient

# What MLflow and what it stands on warn of is theirs to mend.
pytestmark = pytest.mark.filterwarnings("ignore")

PATIENCE = 60.0


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_metrics, "SAMPLE_SECONDS", 0.05)


def cpu(node_id: str) -> str:
    return f"system/{node_id}/cpu_utilization_percentage"


def wait_for(client: MlflowClient, run_id: str, name: str, more_than: int = 0) -> list[int]:
    """The steps of that metric, as soon as there are more than so many."""
    deadline = time.monotonic() + PATIENCE
    while len(steps := [point.step for point in client.get_metric_history(run_id, name)]) <= more_than:
        assert time.monotonic() < deadline, f"no {name}"
        time.sleep(0.1)
    return steps


def alive() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "system-metrics"]


def test_every_worker_has_metrics_of_its_own_and_an_attempt_goes_on_after_the_last(
    server: MlflowServer, client: MlflowClient, run_id: str
) -> None:
    with SystemMetrics(server.url, run_id, "worker-0"), SystemMetrics(server.url, run_id, "worker-1"):
        wait_for(client, run_id, cpu("worker-0"), 2)
        wait_for(client, run_id, cpu("worker-1"), 1)
    assert not alive()
    before = len(wait_for(client, run_id, cpu("worker-1")))
    with SystemMetrics(server.url, run_id, "worker-1"):
        steps = wait_for(client, run_id, cpu("worker-1"), before + 1)

    assert steps == list(range(len(steps)))
    names = client.get_run(run_id).data.metrics
    assert {name.partition("/")[0] for name in names} == {"system"}
    assert "system/worker-0/system_memory_usage_percentage" in names
    assert "system/worker-1/network_receive_megabytes" in names


def test_a_server_that_was_away_gets_them_again_when_it_is_back(
    server: MlflowServer, client: MlflowClient, run_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    def wait_for_failure() -> None:
        caplog.clear()
        deadline = time.monotonic() + PATIENCE
        while "system metrics of late: " not in caplog.text:
            assert time.monotonic() < deadline, "nothing has failed"
            time.sleep(0.05)

    with Line(server.port) as line, caplog.at_level("DEBUG", logger=system_metrics.__name__):
        line.cut()
        with SystemMetrics(line.url, run_id, "late"):
            wait_for_failure()
            line.mend()
            before = len(wait_for(client, run_id, cpu("late")))
            line.cut()
            wait_for_failure()
            line.mend()
            wait_for(client, run_id, cpu("late"), before + 1)


@pytest.mark.usefixtures("environment")
def test_leaving_does_not_wait_for_a_server_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "100")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        metrics = SystemMetrics(f"http://127.0.0.1:{listener.getsockname()[1]}", "0" * 32, "worker-0")
        with metrics:
            connection, _ = listener.accept()
            assert connection.recv(4) == b"GET "

        (thread,) = alive()  # still in that request: nobody has waited for it
        connection.close()
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    thread.join(PATIENCE)
    assert not thread.is_alive()
