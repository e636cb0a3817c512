"""Tracking in MLflow, in the background and by batches: one request a second, whatever the pace of steps."""

from __future__ import annotations

import dataclasses
import json
import logging
import pickle
import posixpath
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training.tracking import History, Progress

log = logging.getLogger(__name__)

PROGRESS_TAG = "syncbn.progress"
BATCH = 999  # metrics in one log_batch: MLflow takes 1000 entries, one is the progress tag
PARAMS = 100  # in one log_batch
LONGEST_PARAM = 6000  # characters
LONGEST_NAME = 250
FLUSH_SECONDS = 1.0
GIVE_UP_SECONDS = 120.0  # how long `close` waits for a server that is away


class MlflowTracker:
    """Writes to the run `run_id` of the server at `uri`.

    `log` and `progress` only append to memory; a thread sends. A server that is away is asked again until it
    answers. Steps that an earlier attempt of this run has written are not written twice. In names of metrics
    and parameters, characters that MLflow does not take become underscores.
    """

    def __init__(
        self,
        uri: str,
        run_id: str,
        *,
        params: Mapping[str, str],
        tags: Mapping[str, str],
        register_as: str | None = None,
    ) -> None:
        self.uri, self.run_id, self.register_as = uri, run_id, register_as
        self._params, self._tags = params, tags
        self._points: deque[tuple[str, float, int, int]] = deque()
        self._progress: Progress | None = None
        self._written: dict[str, int] = {}  # by an earlier attempt
        self._taken: dict[str, int] = {}  # by this one
        self._begun = False
        self._trouble: Exception | None = None
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._send_forever, name="mlflow-writer", daemon=True)
        self._thread.start()

    def log(self, step: int, epoch: int, metrics: Mapping[str, float]) -> None:  # noqa: ARG002
        now = int(time.time() * 1000)
        for given, value in metrics.items():
            name = _name(given)
            if step > self._taken.get(name, 0):
                self._taken[name] = step
                self._points.append((name, value, now, step))

    def progress(self, progress: Progress) -> None:
        self._progress = progress

    def history(self, prefixes: tuple[str, ...] = ("",)) -> History:
        self._drain()
        names = [  # each costs a request
            name
            for name in self._client.get_run(self.run_id).data.metrics
            if name.startswith(prefixes) and not name.startswith("system/")
        ]
        return {
            name: sorted(
                (point.step, point.value) for point in self._client.get_metric_history(self.run_id, name)
            )
            for name in names
        }

    def artifact(self, path: Path) -> None:
        _patiently(lambda: self._client.log_artifact(self.run_id, str(path)))

    def model(self, model: nn.Module, example: Any) -> None:
        """Logs the model as MLflow's pytorch flavour; it loads with torch alone."""
        signature = _signature(model, example)
        _patiently(lambda: self._log_model(model, signature))

    def _log_model(self, model: nn.Module, signature: Any) -> None:
        import mlflow

        mlflow.set_tracking_uri(self.uri)
        with mlflow.start_run(run_id=self.run_id, log_system_metrics=False):
            mlflow.pytorch.log_model(
                model,
                name="model",
                signature=signature,
                serialization_format="pickle",  # the other one, pt2, fixes the batch size and drops training
                pickle_module=pickle,  # the default, cloudpickle, would have to be there to load it
                pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}"],
                registered_model_name=self.register_as,
            )

    def close(self) -> None:
        try:
            self._drain()
        finally:
            self._closing.set()
            self._wake.set()
            self._thread.join()

    def _drain(self) -> None:
        """Waits until the thread has sent everything; gives up when for a long time nothing gets through."""
        left, deadline = len(self._points), time.monotonic() + GIVE_UP_SECONDS
        while self._points or self._progress or not self._begun:
            self._wake.set()
            if len(self._points) < left:
                left, deadline = len(self._points), time.monotonic() + GIVE_UP_SECONDS
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"MLflow at {self.uri} has taken nothing for {GIVE_UP_SECONDS:.0f} s ({self._trouble}): "
                    f"{len(self._points)} metric values could not be written"
                )
            time.sleep(0.02)

    def _send_forever(self) -> None:
        while not self._closing.is_set():
            self._wake.wait(FLUSH_SECONDS)
            self._wake.clear()  # before sending: a wake that comes meanwhile counts for the next round
            try:
                if not self._begun:  # importing mlflow takes seconds: here, not in the training thread
                    self._begin()
                    self._begun = True
                self._send()
            except Exception as error:  # the server is away, for whatever reason: keep, wait, try again
                self._trouble = error
                log.warning("MLflow at %s: %s; trying again", self.uri, error)
                time.sleep(FLUSH_SECONDS)

    def _send(self) -> None:
        from mlflow.entities import Metric, RunTag

        while self._points or self._progress:
            points = [self._points[index] for index in range(min(BATCH, len(self._points)))]
            progress = self._progress
            tags = [RunTag(PROGRESS_TAG, json.dumps(dataclasses.asdict(progress)))] if progress else []
            new = [Metric(*point) for point in points if point[3] > self._written.get(point[0], 0)]
            self._client.log_batch(self.run_id, metrics=new, tags=tags)
            for _ in points:  # only now: what was not acknowledged stays
                self._points.popleft()
            if self._progress is progress:
                self._progress = None
            if len(points) < BATCH:  # the rest can wait for the next second
                return

    def _begin(self) -> None:
        from mlflow.entities import Param, RunTag

        self._written = self._last_steps()
        there = self._client.get_run(self.run_id).data.params
        params = {_name(key): value[:LONGEST_PARAM] for key, value in self._params.items()}
        new = iter([Param(key, value) for key, value in params.items() if key not in there])
        while some := list(islice(new, PARAMS)):
            self._client.log_batch(self.run_id, params=some)
        self._client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in self._tags.items()])

    def _last_steps(self) -> dict[str, int]:
        """The last step written of each metric, by an earlier attempt."""
        run = self._client.get_run(self.run_id)
        return {
            name: max(point.step for point in self._client.get_metric_history(self.run_id, name))
            for name in run.data.metrics
            if not name.startswith("system/")
        }

    @cached_property
    def _client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.uri)


def _signature(model: nn.Module, example: Any) -> Any:
    """The shapes of input and output, where the model is one that takes a tensor and gives one."""
    import mlflow

    if not isinstance(example, torch.Tensor):
        return None
    try:
        with torch.no_grad():
            output = model(example)
    except Exception as error:  # a LightningModule need not have a forward, nor one for such a batch
        log.warning("the model is logged without a signature: %s", error)
        return None
    if not isinstance(output, torch.Tensor):
        return None
    return mlflow.models.infer_signature(example.float().cpu().numpy(), output.float().cpu().numpy())


def _name(given: str) -> str:
    """A name that MLflow takes: some characters only, and a path that is written as short as can be."""
    name = re.sub(r"[^\w\-. :/]", "_", given)[:LONGEST_NAME]
    unique = posixpath.normpath(name) == name and not name.startswith((".", "/"))
    return name if unique else re.sub(r"^\.|/", "_", name) or "_"


def _patiently(write: Callable[[], object]) -> None:
    """Writes again while nobody answers; what the server refuses is raised at once."""
    deadline = time.monotonic() + GIVE_UP_SECONDS
    while True:
        try:
            write()
            return
        except Exception as error:
            if not _nobody_answered(error) or time.monotonic() > deadline:
                raise
            log.warning("%s; trying again", error)
            time.sleep(FLUSH_SECONDS)


def _nobody_answered(error: BaseException | None) -> bool:
    from requests.exceptions import ConnectionError, Timeout

    while error is not None:
        if isinstance(error, ConnectionError | Timeout):
            return True
        error = error.__cause__ or error.__context__
    return False


class SystemMetrics:
    """MLflow's monitor of this node's CPU, memory, disk, network and GPUs, for as long as the context lasts.

    It starts in the background: importing mlflow takes seconds.
    """

    def __init__(self, uri: str, run_id: str) -> None:
        self.uri, self.run_id = uri, run_id
        self._monitor: Any = None
        self._thread = threading.Thread(target=self._start, name="system-metrics", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def _start(self) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        try:
            self._monitor = SystemMetricsMonitor(
                self.run_id,
                sampling_interval=1,
                samples_before_logging=5,
                resume_logging=True,
                tracking_uri=self.uri,
            )
            self._monitor.start()
        except Exception as error:  # a nicety: no reason to end a training
            log.warning("no system metrics: %s", error)

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        if self._monitor is not None:
            self._monitor.finish()
