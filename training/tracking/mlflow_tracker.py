"""The MLflow tracker: sends metrics in the background in batches, one request every two seconds."""

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
from training.protocol import Point, Progress
from training.tracking.dataset import Dataset
from training.tracking.spool import Spool
from training.tracking.tracker import History

log = logging.getLogger(__name__)

TAGS = 20  # in one log_batch
BATCH = 980  # metrics in one log_batch: MLflow accepts 1000 entries, tags included
PARAMS = 100  # in one log_batch
LONGEST_PARAM = 6000  # characters
LONGEST_TAG = 8000
LONGEST_NAME = 250
SEND_SECONDS = 2.0
GIVE_UP_SECONDS = 600.0  # how long `close` and other blocking calls wait for a server that accepts nothing
SHORT_GIVE_UP_SECONDS = 10.0  # the same for `close(wait=False)`
REPORT_SECONDS = 15.0  # between log lines while a call waits

Result = TypeVar("Result")


class NotWritten(TrainingError):
    """MLflow did not accept all metrics, parameters or tags in time."""


class MlflowTracker:
    """Writes to the run `run_id` of the server at `uri`.

    `log` and `tags` only append to memory; a thread sends, and retries while the server is unreachable.
    dataset: the input of the run; None: none is logged. spool: the file in which points wait (see
    training.tracking.spool); None: they wait in memory. Points that an earlier attempt left in it are sent
    first. Points that an earlier attempt has logged are not logged again. register_as: the model's name in
    the registry; None: not registered. In names, characters that MLflow refuses become underscores.
    """

    def __init__(
        self,
        uri: str,
        run_id: str,
        *,
        params: Mapping[str, str],
        tags: Mapping[str, str],
        dataset: Dataset | None = None,
        spool: Path | None = None,
        register_as: str | None = None,
    ) -> None:
        self.uri, self.run_id, self.register_as = uri, run_id, register_as
        self._dataset = dataset
        self._params = dict(params)
        self._params_sent: set[str] = set()  # names of the parameters that MLflow has
        self._spool = Spool(spool)
        self._last_logged = dict(self._spool.last_steps)  # the last logged step of each metric
        self._last_sent: dict[str, int] = {}  # the last step of each metric that MLflow had at the beginning
        self._tags: dict[str, str] = {}
        self._tags_lock = threading.Lock()
        self.tags(tags)
        self._initialised = False
        self._last_error: Exception | None = None
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._send_forever, name="mlflow-sender", daemon=True)
        self._thread.start()

    def log(self, step: int, epoch: int, metrics: Mapping[str, float]) -> None:  # noqa: ARG002
        now = int(time.time() * 1000)
        for given, value in metrics.items():
            name = _name(given)
            if step > self._last_logged.get(name, -1):
                self._last_logged[name] = step
                self._spool.append(Point(name, float(value), now, step))

    def log_at(self, own_step: int, step: int, epoch: int, metrics: Mapping[str, float]) -> None:  # noqa: ARG002
        self.log(own_step, epoch, metrics)

    def progress(self, progress: Progress) -> None:
        """Does nothing: the progress goes to the host agent (training.rank.progress)."""

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
            for name in self._with_retries("to return its metrics", lambda: _last_steps(self._run()))
            if name.startswith(prefixes)
        ]
        return {name: self._with_retries(f"to return {name}", partial(self._points, name)) for name in names}

    def _points(self, name: str) -> list[tuple[int, float]]:
        points = self._client.get_metric_history(self.run_id, name)
        return sorted((point.step, point.value) for point in points)

    def artifact(self, path: Path) -> None:
        self._with_retries(f"to take {path.name}", lambda: self._client.log_artifact(self.run_id, str(path)))

    def best(self, points: Mapping[str, tuple[int, float]]) -> None:
        """Logs each value as the metric best_NAME at its step: runs can be sorted by it."""
        for name, (step, value) in points.items():
            # Without slashes: each prefix would be a section of charts of its own.
            self.log(step, 0, {f"best_{name.replace('/', '_')}": value})
        self._wake.set()  # sent while the caller draws its figures: the end of a job must not wait for it

    def model(self, model: nn.Module, example: Any, step: int) -> None:
        """Logs the model in MLflow's pytorch flavour, as an output of the run. Loading it needs torch alone.

        The metrics of its last step become the model's metrics.
        """
        signature = _signature(model, example)
        self._drain(GIVE_UP_SECONDS)
        self._with_retries("to take the model", lambda: self._log_model(model, signature, step))

    def _log_model(self, model: nn.Module, signature: Any, step: int) -> None:
        import mlflow

        mlflow.set_tracking_uri(self.uri)
        # Not mlflow.pytorch.log_model: it writes to the active run, which user code may have changed.
        mlflow.models.Model.log(
            artifact_path=None,
            name="model",
            run_id=self.run_id,
            step=step,
            flavor=mlflow.pytorch,
            pytorch_model=model,
            signature=signature,
            serialization_format="pickle",  # pt2 would fix the batch size and drop the training mode
            pickle_module=pickle,  # loading a model of the default, cloudpickle, needs cloudpickle
            pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}"],
            registered_model_name=self.register_as,
        )

    def close(self, *, wait: bool = True) -> None:
        """Blocks until everything is sent; ends the thread.

        Raises NotWritten if MLflow refuses something, or accepts nothing for GIVE_UP_SECONDS
        (SHORT_GIVE_UP_SECONDS if `wait` is False).
        """
        try:
            self._drain(GIVE_UP_SECONDS if wait else SHORT_GIVE_UP_SECONDS)
        finally:
            self._closing.set()
            self._wake.set()
            self._thread.join(SHORT_GIVE_UP_SECONDS)  # it may be blocked in a request
            self._spool.close()

    def _drain(self, seconds: float) -> None:
        """Blocks until the thread has sent everything. Raises NotWritten after `seconds` without progress."""
        left, deadline = len(self._spool), _Deadline(seconds)
        while len(self._spool) or self._tags or not self._initialised or self._new_params():
            self._wake.set()
            if len(self._spool) < left:
                left, deadline = len(self._spool), _Deadline(seconds)
            if self._last_error is not None and not _is_transient(self._last_error):
                raise self._not_written("refuses metrics")
            if deadline.is_over(f"MLflow at {self.uri}: {left} metric values are left; {self._last_error}"):
                raise self._not_written(f"has taken nothing for {seconds:.0f} s")
            time.sleep(0.02)

    def _not_written(self, why: str) -> NotWritten:
        where = "were in memory alone and are lost"
        if self._spool.path is not None:
            where = f"are kept in {self._spool.path} and sent when this run resumes"
        return NotWritten(
            f"MLflow at {self.uri} {why} ({self._last_error}): {len(self._spool)} metric values {where}"
        )

    def _with_retries(self, what: str, request: Callable[[], Result]) -> Result:
        """Calls `request` as `with_retries` does. what: what MLflow is waited for, for the log."""
        return with_retries(
            lambda error: f"MLflow at {self.uri} {what}: {len(self._spool)} metric values are left; {error}",
            request,
        )

    def _send_forever(self) -> None:
        while not self._closing.is_set():
            self._wake.wait(SEND_SECONDS)
            self._wake.clear()  # before sending: a wake-up during sending counts for the next round
            try:
                if not self._initialised:  # in this thread, because importing mlflow takes seconds
                    self._initialise()
                    self._initialised = True
                while self._send() and not self._closing.is_set():
                    pass
            except Exception as error:  # keep the points and retry, whatever the error is
                if self._last_error is None:
                    log.warning("MLflow at %s: %s; metrics are kept and sent again", self.uri, error)
                self._last_error = error
                self._closing.wait(SEND_SECONDS)
            else:
                if self._last_error is not None:
                    log.warning("MLflow at %s accepts metrics again", self.uri)
                self._last_error = None

    def _send(self) -> bool:
        """Sends one batch. Returns whether another full one may be waiting."""
        from mlflow.entities import Metric, Param, RunTag

        while params := self._new_params():
            try:
                self._client.log_batch(self.run_id, params=[Param(*param) for param in params.items()])
                self._params_sent |= params.keys()
            except Exception:
                # User code may have logged some of them itself, with another value: that one counts.
                known = params.keys() & self._run().data.params.keys()
                if not known:
                    raise
                self._params_sent |= known
        batch = self._spool.peek(BATCH)
        with self._tags_lock:
            tags = dict(islice(self._tags.items(), TAGS))
        new = [Metric(*point) for point in batch.points if point.step > self._last_sent.get(point.name, -1)]
        if new or tags:
            self._client.log_batch(self.run_id, metrics=new, tags=[RunTag(*tag) for tag in tags.items()])
        self._spool.acknowledge(batch)  # only now: points that were not acknowledged are sent again
        with self._tags_lock:
            self._tags = {key: value for key, value in self._tags.items() if tags.get(key) != value}
        return len(batch.points) == BATCH or len(tags) == TAGS

    def _initialise(self) -> None:
        run = self._run()
        # The points of a metric are sent in order, so MLflow has all of them up to its last step.
        self._last_sent = _last_steps(run)
        self._params_sent = set(run.data.params)
        self._log_dataset()

    def _log_dataset(self) -> None:
        if self._dataset is None:
            return
        try:
            self._client.log_inputs(self.run_id, [self._dataset.as_input()])
        except Exception as error:
            if _is_transient(error):
                raise
            log.warning("MLflow at %s does not take the data as an input: %s", self.uri, error)

    def _new_params(self) -> dict[str, str]:
        """Returns parameters that MLflow does not have yet, at most as many as it accepts at once."""
        named = ((_name(key), value[:LONGEST_PARAM]) for key, value in self._params.items())
        return dict(islice((item for item in named if item[0] not in self._params_sent), PARAMS))

    def _run(self) -> Any:
        return self._client.get_run(self.run_id)

    @cached_property
    def _client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.uri)


def with_retries(line: Callable[[Exception], str], request: Callable[[], Result]) -> Result:
    """Calls `request`, and retries for GIVE_UP_SECONDS on transient errors; raises others at once.

    line: returns what is waited for and why, for the log.
    """
    deadline = _Deadline(GIVE_UP_SECONDS)
    while True:
        try:
            return request()
        except Exception as error:
            if not _is_transient(error) or deadline.is_over(line(error)):
                raise
            time.sleep(SEND_SECONDS)


def _signature(model: nn.Module, example: Any) -> Any:
    """Returns the shapes of input and output; None unless the model maps a tensor to a tensor."""
    import mlflow

    if not isinstance(example, torch.Tensor):
        return None
    kinds = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    if len(kinds) == 1 and example.is_floating_point():
        example = example.to(kinds.pop())
    try:
        with torch.no_grad():
            output = model(example)
    except Exception as error:  # a LightningModule may have no forward, or none for such a batch
        log.warning("the model is logged without a signature: %s", error)
        return None
    if not isinstance(output, torch.Tensor):
        return None
    return mlflow.models.infer_signature(example.float().cpu().numpy(), output.float().cpu().numpy())


def _last_steps(run: Any) -> dict[str, int]:
    """Returns the last step of each metric, system metrics excluded."""
    points = run.data.to_proto().metrics  # the point with the highest step of each metric
    return {point.key: point.step for point in points if not point.key.startswith("system/")}


@cache
def _name(given: str) -> str:
    """Returns a name that MLflow accepts: a limited character set, and a normalised path."""
    name = re.sub(r"[^\w\-. :/]", "_", given)[:LONGEST_NAME]
    unique = posixpath.normpath(name) == name and not name.startswith((".", "/"))
    return name if unique else re.sub(r"^\.|/", "_", name) or "_"


class _Deadline:
    """A deadline in `seconds` from now that logs what it waits for every REPORT_SECONDS."""

    def __init__(self, seconds: float) -> None:
        now = time.monotonic()
        self._end, self._next_line = now + seconds, now + REPORT_SECONDS

    def is_over(self, waiting_for: str) -> bool:
        now = time.monotonic()
        if now >= self._next_line:
            self._next_line = now + REPORT_SECONDS
            log.warning("waiting for %s", waiting_for)
        return now > self._end


def _is_transient(error: BaseException | None) -> bool:
    """Whether an error is transient: a connection error, a timeout, or a status of 500 or above."""
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
