"""Which tests are quick, and servers that tests of several packages use: one of each for the whole run.

`pytest -m "not full"` runs without Ray, MLflow's server, PostgreSQL and a browser. A test belongs to the full
run if it is in tests/e2e, or if it asks for the fixture `full_run`, mostly through the fixture of a server.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from testing.postgres import NotInstalled, Postgres
from testing.postgres import postgres as started_postgres
from tests.mlflow_server import MlflowServer, running_server

# A busy machine must not fail a test.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# The clients of all tests find the tokens of their servers in a folder of their own.
_state = tempfile.TemporaryDirectory(prefix="syncbn-tests-")
os.environ["XDG_STATE_HOME"] = _state.name

QUICK = "not full"
E2E = Path(__file__).parent / "e2e"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        fixtures = item.fixturenames if isinstance(item, pytest.Function) else ()
        if "full_run" in fixtures or E2E in item.path.parents:
            item.add_marker(pytest.mark.full)


@pytest.fixture(scope="session")
def full_run(pytestconfig: pytest.Config) -> None:
    """Asked for by what starts a server, processes that train, or a compiler.

    Fails in a quick run: a test may ask for a server by getfixturevalue, which nobody sees beforehand.
    """
    if pytestconfig.getoption("markexpr") == QUICK:
        pytest.fail("a quick test starts a server: mark the parameter with which it does as pytest.mark.full")


@pytest.fixture(scope="session")
def running_mlflow(
    full_run: None,  # noqa: ARG001
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[MlflowServer]:
    with running_server(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@pytest.fixture
def mlflow_server(running_mlflow: MlflowServer) -> MlflowServer:
    """It answers, whatever the test before has done to it."""
    running_mlflow.ensure_started()
    return running_mlflow


@pytest.fixture(scope="session")
def postgres(full_run: None) -> Iterator[Postgres]:  # noqa: ARG001
    try:
        with started_postgres(fsync="off", max_connections="200") as server:
            yield server
    except NotInstalled as error:
        pytest.skip(str(error))
