"""Tracking in MLflow, in the background and by batches: a request every two seconds, whatever the pace."""

from __future__ import annotations

import logging
import pickle
import posixpath
import re
import threading
import time
from collections.abc import Callable, Mapping
from functools import cache, cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from training.errors import TrainingError
from training.protocol import Progress
from training.tracking.spool import Point, Spool
from training.tracking.tracker import History

log = logging.getLogger(__name__)

TAGS = 20  # in one log_batch
BATCH = 980  # metrics in one log_batch: MLflow takes 1000 entries
PARAMS = 100  # in one log_batch
LONGEST_PARAM = 6000  # characters
LONGEST_TAG = 8000
LONGEST_NAME = 250
SEND_SECONDS = 2.0
GIVE_UP_SECONDS = 600.0  # how long the end of a training waits for a server that takes nothing
HURRY_SECONDS = 10.0  # how long, where it must not wait
REPORT_SECONDS = 15.0

Answer = TypeVar("Answer")


class NotWritten(TrainingError):
    """MLflow did not take everything."""


class MlflowTracker:
    """Writes to the run `run_id` of the server at `uri`.

    `log` and `tags` only append to memory; a thread sends. A server that is away is asked again
    until it answers. Points wait in the file `spool` (see `spool`), or in memory where there is none;
    what an earlier attempt left there is sent first. Steps that an earlier attempt of this run has taken are
    not written twice. In names, characters that MLflow does not take become underscores.
    """

    def __init__(
        self,
        uri: str,
        run_id: str,
        *,
        params: Mapping[str, str],
        tags: Mapping[str, str],
        spool: Path | None = None,
        register_as: str | None = None,
    ) -> None:
        self.uri, self.run_id, self.register_as = uri, run_id, register_as
        self._params = dict(params)
        self._known: set[str] = set()  # names of parameters that the run has
        self._spool = Spool(spool)
        self._taken = dict(self._spool.last_steps)  # the last step of each metric
        self._written: dict[str, int] = {}  # of those, what MLflow had before
        self._tags: dict[str, str] = {}
        self._tags_lock = threading.Lock()
        self.tags(tags)
        self._begun = False
        self._trouble: Exception | None = None
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._send_forever, name="mlflow-sender", daemon=True)
        self._thread.start()

    def log(self, step: int, epoch: int, metrics: Mapping[str, float]) -> None:  # noqa: ARG002
        now = int(time.time() * 1000)
        for given, value in metrics.items():
            name = _name(given)
            if step > self._taken.get(name, 0):
                self._taken[name] = step
                self._spool.append(Point(name, float(value), now, step))

    def progress(self, progress: Progress) -> None:
        """The run's agent is told of that (training.rank.progress)."""

    def params(self, params: Mapping[str, str]) -> None:
        self._params = {**params, **self._params}

    def tags(self, tags: Mapping[str, str]) -> None:
        with self._tags_lock:
            self._tags |= {_name(key): value[:LONGEST_TAG] for key, value in tags.items()}

    def sync(self) -> None:
        self._spool.sync()

    def history(self, prefixes: tuple[str, ...] = ("",)) -> History:
        self._drain(GIVE_UP_SECONDS)
        names = [  # each costs a request
            name
            for name in self._retried("to tell its metrics", lambda: _last_steps(self._run()))
            if name.startswith(prefixes)
        ]
        return {name: self._retried(f"to tell {name}", partial(self._points, name)) for name in names}

    def _points(self, name: str) -> list[tuple[int, float]]:
        points = self._client.get_metric_history(self.run_id, name)
        return sorted((point.step, point.value) for point in points)

    def artifact(self, path: Path) -> None:
        self._retried(f"to take {path.name}", lambda: self._client.log_artifact(self.run_id, str(path)))

    def model(self, model: nn.Module, example: Any) -> None:
        """Logs the model as MLflow's pytorch flavour; it loads with torch alone."""
        signature = _signature(model, example)
        self._retried("to take the model", lambda: self._log_model(model, signature))

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

    def close(self, *, patient: bool = True) -> None:
        """Raises NotWritten when MLflow refuses, or takes nothing for GIVE_UP_SECONDS, or HURRY_SECONDS."""
        try:
            self._drain(GIVE_UP_SECONDS if patient else HURRY_SECONDS)
        finally:
            self._closing.set()
            self._wake.set()
            self._thread.join(HURRY_SECONDS)  # it may sit in a request that nobody answers
            self._spool.close()

    def _drain(self, seconds: float) -> None:
        """Waits until the thread has sent everything; gives up when for so long nothing gets through."""
        left, patience = len(self._spool), _Deadline(seconds)
        while len(self._spool) or self._tags or not self._begun or self._new_params():
            self._wake.set()
            if len(self._spool) < left:
                left, patience = len(self._spool), _Deadline(seconds)
            if self._trouble is not None and not _may_pass(self._trouble):
                raise self._not_written("refuses metrics")
            if patience.is_over(f"MLflow at {self.uri}: {left} metric values are left; {self._trouble}"):
                raise self._not_written(f"has taken nothing for {seconds:.0f} s")
            time.sleep(0.02)

    def _not_written(self, why: str) -> NotWritten:
        where = "were in memory alone and are lost"
        if self._spool.path is not None:
            where = f"are kept in {self._spool.path} and sent when this run goes on"
        return NotWritten(
            f"MLflow at {self.uri} {why} ({self._trouble}): {len(self._spool)} metric values {where}"
        )

    def _retried(self, what: str, request: Callable[[], Answer]) -> Answer:
        """Asks again while nobody answers; what the server refuses is raised at once."""
        patience = _Deadline(GIVE_UP_SECONDS)
        while True:
            try:
                return request()
            except Exception as error:
                line = f"MLflow at {self.uri} {what}: {len(self._spool)} metric values are left; {error}"
                if not _may_pass(error) or patience.is_over(line):
                    raise
                time.sleep(SEND_SECONDS)

    def _send_forever(self) -> None:
        while not self._closing.is_set():
            self._wake.wait(SEND_SECONDS)
            self._wake.clear()  # before sending: a wake that comes meanwhile counts for the next round
            try:
                if not self._begun:  # importing mlflow takes seconds: here, not in the training thread
                    self._begin()
                    self._begun = True
                while self._send() and not self._closing.is_set():
                    pass
            except Exception as error:  # the server is away, for whatever reason: keep, wait, try again
                if self._trouble is None:
                    log.warning("MLflow at %s: %s; metrics wait, and are sent again", self.uri, error)
                self._trouble = error
                self._closing.wait(SEND_SECONDS)
            else:
                if self._trouble is not None:
                    log.warning("MLflow at %s takes metrics again", self.uri)
                self._trouble = None

    def _send(self) -> bool:
        """One request; returns whether there is enough left for another at once."""
        from mlflow.entities import Metric, Param, RunTag

        while params := self._new_params():
            self._client.log_batch(self.run_id, params=[Param(*param) for param in params.items()])
            self._known |= params.keys()
        batch = self._spool.peek(BATCH)
        with self._tags_lock:
            tags = dict(islice(self._tags.items(), TAGS))
        new = [Metric(*point) for point in batch.points if point.step > self._written.get(point.name, 0)]
        if new or tags:
            self._client.log_batch(self.run_id, metrics=new, tags=[RunTag(*tag) for tag in tags.items()])
        self._spool.acknowledge(batch)  # only now: what was not acknowledged stays
        with self._tags_lock:
            self._tags = {key: value for key, value in self._tags.items() if tags.get(key) != value}
        return len(batch.points) == BATCH or len(tags) == TAGS

    def _begin(self) -> None:
        run = self._run()
        # Points of one metric are sent in order: of those in the spool, MLflow has all up to its last step.
        self._written = _last_steps(run)
        self._known = set(run.data.params)

    def _new_params(self) -> dict[str, str]:
        """As many as MLflow takes at once."""
        named = ((_name(key), value[:LONGEST_PARAM]) for key, value in self._params.items())
        return dict(islice((item for item in named if item[0] not in self._known), PARAMS))

    def _run(self) -> Any:
        return self._client.get_run(self.run_id)

    @cached_property
    def _client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.uri)


def _signature(model: nn.Module, example: Any) -> Any:
    """The shapes of input and output, where the model is one that takes a tensor and gives one."""
    import mlflow

    if not isinstance(example, torch.Tensor):
        return None
    kinds = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    if len(kinds) == 1 and example.is_floating_point():
        example = example.to(kinds.pop())
    try:
        with torch.no_grad():
            output = model(example)
    except Exception as error:  # a LightningModule need not have a forward, nor one for such a batch
        log.warning("the model is logged without a signature: %s", error)
        return None
    if not isinstance(output, torch.Tensor):
        return None
    return mlflow.models.infer_signature(example.float().cpu().numpy(), output.float().cpu().numpy())


def _last_steps(run: Any) -> dict[str, int]:
    """By name; what the machines measure of themselves is none of it."""
    points = run.data.to_proto().metrics  # of each metric the point of the highest step
    return {point.key: point.step for point in points if not point.key.startswith("system/")}


@cache
def _name(given: str) -> str:
    """A name that MLflow takes: some characters only, and a path that is written as short as can be."""
    name = re.sub(r"[^\w\-. :/]", "_", given)[:LONGEST_NAME]
    unique = posixpath.normpath(name) == name and not name.startswith((".", "/"))
    return name if unique else re.sub(r"^\.|/", "_", name) or "_"


class _Deadline:
    """So many seconds for something; on the way says what it waits for."""

    def __init__(self, seconds: float) -> None:
        now = time.monotonic()
        self._end, self._next_line = now + seconds, now + REPORT_SECONDS

    def is_over(self, waiting_for: str) -> bool:
        now = time.monotonic()
        if now >= self._next_line:
            self._next_line = now + REPORT_SECONDS
            log.warning("waiting for %s", waiting_for)
        return now > self._end


def _may_pass(error: BaseException | None) -> bool:
    """Nobody answered, or somebody who cannot now: a server that starts, one without its database."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import ConnectionError, HTTPError, Timeout

    while error is not None:
        if isinstance(error, ConnectionError | Timeout):
            return True
        if isinstance(error, MlflowException) and error.get_http_status_code() >= 500:
            return True
        if isinstance(error, HTTPError) and error.response is not None and error.response.status_code >= 500:
            return True
        error = error.__cause__ or error.__context__
    return False
