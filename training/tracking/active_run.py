"""MLflow's own functions (`mlflow.log_metric`, …) write to one run, which user code cannot end.

Importing this module imports mlflow, which takes seconds.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import mlflow
from mlflow import ActiveRun, MlflowClient
from mlflow.tracking import fluent

from training.internals import add_active_run, replace_active_runs
from training.tracking.mlflow_run import MlflowRun


class _LazyRun(ActiveRun):  # type: ignore[misc]  # mlflow has no types
    """A run that is loaded when it is first looked at: only then is there a request, or a store created."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self._load = load

    def __getattr__(self, name: str) -> Any:
        if name == "_load" or "_load" not in self.__dict__:
            raise AttributeError(name)
        run = self.__dict__.pop("_load")()
        super().__init__(run)
        return getattr(self, name)


class ActiveJobRun:
    """From construction to `leave`, `run` is the active run in every thread.

    `mlflow.start_run()` returns it; with `nested=True` or another run's id it starts or resumes that one
    within it. `mlflow.end_run()`, and leaving `with mlflow.start_run()`, leave its status as it is; whatever
    is logged later goes to it again.
    """

    def __init__(self, run: MlflowRun) -> None:
        self._active = _LazyRun(run.load)
        self._uri = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
        self._start_run, self._set_terminated = fluent.start_run, MlflowClient.set_terminated
        mlflow.set_tracking_uri(run.uri)
        replace_active_runs(lambda: [self._active])
        self._patch(self._starting(), self._ending())

    def leave(self, status: str) -> None:
        """Ends this thread's nested runs that are still active, with `status`, and undoes everything."""
        with suppress(Exception):  # as MLflow at the exit of a process
            while (active := mlflow.active_run()) is not None and active is not self._active:
                mlflow.end_run(status)
        replace_active_runs(list)
        self._patch(self._start_run, self._set_terminated)
        mlflow.set_tracking_uri(self._uri)  # None, its initial value, if nobody had set it

    def _patch(self, start_run: Callable[..., Any], set_terminated: Callable[..., Any]) -> None:
        mlflow.start_run = fluent.start_run = start_run
        MlflowClient.set_terminated = set_terminated

    def _starting(self) -> Callable[..., Any]:
        """Returns the replacement of `mlflow.start_run`."""
        original, signature = self._start_run, inspect.signature(self._start_run)

        @functools.wraps(original)
        def start_run(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs).arguments
            run_id, within = given.get("run_id"), given.get("nested") or given.get("parent_run_id")
            if (run_id is None and not within) or run_id == self._active.info.run_id:
                add_active_run(self._active)
                mlflow.set_tags(given.get("tags") or {})
                return self._active
            if mlflow.active_run() is None:
                add_active_run(self._active)  # the parent
            return original(**{"experiment_id": self._active.info.experiment_id, **given, "nested": True})

        return start_run

    def _ending(self) -> Callable[..., Any]:
        """Returns the replacement of `MlflowClient.set_terminated`."""
        original = self._set_terminated

        @functools.wraps(original)
        def set_terminated(client: MlflowClient, run_id: str, *args: Any, **kwargs: Any) -> None:
            if run_id != self._active.info.run_id:
                original(client, run_id, *args, **kwargs)

        return set_terminated
