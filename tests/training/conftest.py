from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.mlflow_server import MlflowServer, environment_of_a_worker
from tests.training.worlds import Worlds

if TYPE_CHECKING:
    from mlflow import MlflowClient


@pytest.fixture(scope="session")
def worlds(full_run: None) -> Iterator[Worlds]:  # noqa: ARG001
    """worlds.run(world_size, function, ...): in processes that live for the whole session."""
    with Worlds() as worlds:
        yield worlds


@pytest.fixture
def environment() -> Iterator[None]:
    """That of a worker, for clients of MLflow."""
    with environment_of_a_worker():
        yield


@pytest.fixture
def server(mlflow_server: MlflowServer, environment: None) -> MlflowServer:  # noqa: ARG001
    return mlflow_server


@pytest.fixture
def client(server: MlflowServer) -> MlflowClient:
    from mlflow import MlflowClient  # takes seconds

    return MlflowClient(tracking_uri=server.url)


@pytest.fixture
def run_id(client: MlflowClient) -> str:
    run_id: str = client.create_run("0").info.run_id
    return run_id
