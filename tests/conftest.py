"""Servers that tests of several packages use: one of each for the whole run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.mlflow_server import MlflowServer, running_server


@pytest.fixture(scope="session")
def running_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with running_server(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@pytest.fixture
def mlflow_server(running_mlflow: MlflowServer) -> MlflowServer:
    """It answers, whatever the test before has done to it."""
    running_mlflow.ensure_started()
    return running_mlflow
