"""System metrics of the machines of a run, logged to MLflow beside the metrics of the training."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection
from typing import Any

log = logging.getLogger(__name__)

SAMPLE_SECONDS = 1.0
SAMPLES = 5  # averaged into one point
LEAVE_SECONDS = 2.0


class SystemMetrics:
    """A context manager that logs CPU, memory, disk, network and GPU use of this node until it exits.

    uri, run_id: the MLflow server and run. node: the number of this node in the run, from 0. The first has
    the names that MLflow gives: system/cpu_utilization_percentage; the others system/node-1_cpu_….
    Works in a thread, because importing mlflow takes seconds: entering does not block, exiting blocks for at
    most LEAVE_SECONDS. If a request fails, its points are dropped.
    """

    def __init__(self, uri: str, run_id: str, node: int) -> None:
        self.uri, self.run_id, self.node = uri, run_id, node
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system-metrics", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._leaving.set()
        self._thread.join(LEAVE_SECONDS)  # may be importing or waiting for a server; a daemon, ends with us

    def _run(self) -> None:
        try:
            self._measure()
        except Exception as error:
            log.warning("no system metrics of node %d: %s", self.node, error)

    def _measure(self) -> None:
        from mlflow import MlflowClient
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        client = MlflowClient(tracking_uri=self.uri)
        # Only its collectors: its own thread ends after one failed request, and joining it can take minutes.
        monitor = SystemMetricsMonitor(self.run_id, tracking_uri=self.uri)
        step: int | None = None
        while not self._leaving.is_set():
            for _ in range(SAMPLES):
                monitor.collect_metrics()
                if self._leaving.wait(SAMPLE_SECONDS):
                    break
            values = {f"{self._prefix}{name}": value for name, value in monitor.aggregate_metrics().items()}
            for collector in monitor.monitors:
                collector.clear_metrics()
            try:
                step = self._next_step(client, values) if step is None else step
                self._write(client, values, step)
                step += 1
            except Exception as error:  # the server may be unreachable: later points may succeed
                log.debug("system metrics of node %d: %s", self.node, error)

    def _write(self, client: Any, values: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = [Metric(name, value, now, step) for name, value in values.items()]
        client.log_batch(self.run_id, metrics=points)

    def _next_step(self, client: Any, names: Collection[str]) -> int:
        """Returns the first step after those of earlier attempts."""
        points = client.get_run(self.run_id).data.to_proto().metrics
        return 1 + max((point.step for point in points if point.key in names), default=-1)

    @property
    def _prefix(self) -> str:
        # One slash, or MLflow would not count them to its section of system metrics, the last one.
        return "system/" if self.node == 0 else f"system/node-{self.node}_"
