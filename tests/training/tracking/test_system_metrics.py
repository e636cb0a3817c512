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


CPU = "system/cpu_utilization_percentage"
CPU_OF_ANOTHER = "system/node-1_cpu_utilization_percentage"


def wait_for(client: MlflowClient, run_id: str, name: str, more_than: int = 0) -> list[int]:
    """The steps of that metric, as soon as there are more than so many."""
    deadline = time.monotonic() + PATIENCE
    while len(steps := [point.step for point in client.get_metric_history(run_id, name)]) <= more_than:
        assert time.monotonic() < deadline, f"no {name}"
        time.sleep(0.1)
    return steps


def alive() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "system-metrics"]


def test_every_node_has_metrics_of_its_own_and_an_attempt_goes_on_after_the_last(
    server: MlflowServer, client: MlflowClient, run_id: str
) -> None:
    with SystemMetrics(server.url, run_id, 0), SystemMetrics(server.url, run_id, 1):
        wait_for(client, run_id, CPU, 2)
        wait_for(client, run_id, CPU_OF_ANOTHER, 1)
    assert not alive()
    before = len(wait_for(client, run_id, CPU_OF_ANOTHER))
    with SystemMetrics(server.url, run_id, 1):
        steps = wait_for(client, run_id, CPU_OF_ANOTHER, before + 1)

    assert steps == list(range(len(steps)))
    names = client.get_run(run_id).data.metrics
    # MLflow's section of system metrics has what has this prefix and no further slash.
    assert {name.rpartition("/")[0] for name in names} == {"system"}
    assert {
        "system/system_memory_usage_percentage",
        "system/node-1_network_receive_megabytes",
    } <= names.keys()


def test_a_server_that_was_away_gets_them_again_when_it_is_back(
    server: MlflowServer, client: MlflowClient, run_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    def wait_for_failure() -> None:
        caplog.clear()
        deadline = time.monotonic() + PATIENCE
        while "system metrics of node 0: " not in caplog.text:
            assert time.monotonic() < deadline, "nothing has failed"
            time.sleep(0.05)

    with Line(server.port) as line, caplog.at_level("DEBUG", logger=system_metrics.__name__):
        line.cut()
        with SystemMetrics(line.url, run_id, 0):
            wait_for_failure()
            line.mend()
            before = len(wait_for(client, run_id, CPU))
            line.cut()
            wait_for_failure()
            line.mend()
            wait_for(client, run_id, CPU, before + 1)


@pytest.mark.usefixtures("environment")
def test_leaving_does_not_wait_for_a_server_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "100")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        metrics = SystemMetrics(f"http://127.0.0.1:{listener.getsockname()[1]}", "0" * 32, 0)
        with metrics:
            connection, _ = listener.accept()
            assert connection.recv(4) == b"GET "

        (thread,) = alive()  # still in that request: nobody has waited for it
        connection.close()
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    thread.join(PATIENCE)
    assert not thread.is_alive()
