"""One embedded stack for all tests of this folder: a real Ray, a real MLflow server, a real queue."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.embedded.processes import sweep
from tests.e2e.machines import Machines, two_machines
from tests.e2e.stack import Stack

ONE_NETWORK = pytest.StashKey[bool]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.stash.get(ONE_NETWORK, False):
        terminalreporter.write_line(
            "network namespaces are not allowed here: two Ray nodes shared one network"
        )


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """It has to end without a trace."""
    stack = Stack(tmp_path_factory.mktemp("stack"))
    try:
        stack.start()
        yield stack
        assert stack.end(signal.SIGINT) == 0
        assert stack.processes() == []
        assert "SIGTERM handler" not in (stack.folder / "logs" / "scheduler.log").read_text()
    finally:
        if stack.up is not None and stack.up.poll() is None:
            stack.end()
        sweep(stack.folder)


@pytest.fixture
def machines(tmp_path: Path, pytestconfig: pytest.Config) -> Iterator[Machines]:
    """Two of them, and one cluster."""
    with two_machines() as (here, there):
        pytestconfig.stash[ONE_NETWORK] = here == there
        machines = Machines(tmp_path, here, there)
        try:
            machines.start()
            yield machines
        finally:
            machines.end()


@pytest.fixture(scope="session")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's package: modules that train, raise or die, a LightningModule and its data."""
    package = tmp_path_factory.mktemp("user") / "code" / "mine"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text((Path(__file__).parent / "user_nets.py").read_text())
    return package.parent
