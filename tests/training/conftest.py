from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from mlflow import MlflowClient

from tests.mlflow_server import MlflowServer, environment_of_a_worker
from tests.training.worlds import Worlds

# A busy machine must not fail a test.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(scope="session")
def worlds() -> Iterator[Worlds]:
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
    return MlflowClient(tracking_uri=server.url)


@pytest.fixture
def run_id(client: MlflowClient) -> str:
    run_id: str = client.create_run("0").info.run_id
    return run_id
