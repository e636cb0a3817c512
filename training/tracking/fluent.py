"""The job's run is the active run of MLflow for user code; MLflow is not imported before it is needed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from training.tracking.mlflow_run import MlflowRun
from training.tracking.on_import import on_import


@contextmanager
def active_in_mlflow(run: MlflowRun) -> Iterator[None]:
    """Makes `run` the active run of MLflow (training.tracking.active_run), and ends it with the context.

    Enter it before anything else may import mlflow. Never blocks on a network, except to end runs that user
    code has started within `run` and has not ended.
    """
    joined: list[Any] = []

    def join() -> None:
        from training.tracking.active_run import ActiveJobRun

        joined.append(ActiveJobRun(run))

    status = "FAILED"
    with _environment(run.variables):
        try:
            with on_import("mlflow", join):
                yield
            status = "FINISHED"
        finally:
            for active in joined:
                active.leave(status)
            run.end(status)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
