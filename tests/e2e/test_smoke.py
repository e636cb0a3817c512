"""The smoke test of a cluster, on the embedded stack: what must hold there too, and what cannot."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator

import pytest

from deploy.smoke import Smoke
from tests.e2e.stack import Stack

pytestmark = pytest.mark.ray


@pytest.fixture
def smoke(stack: Stack) -> Iterator[Smoke]:
    """Kills the process of rank 1 of the one job that runs."""
    with stack.client() as client:

        def kill_worker() -> None:
            (job,) = client.jobs(states=["running"])
            pids = re.findall(r", pid=(\d+)\) world_rank=1", client.logs(job.id))
            os.kill(int(pids[-1]), signal.SIGKILL)

        yield Smoke(
            client=client,
            mlflow_url=stack.mlflow,
            kill_worker=kill_worker,
            restart=lambda _: None,
            disturb_at=40,
        )
    import mlflow

    mlflow.set_tracking_uri(None)


# MLflow's own warnings, as errors, would be answers to what it asks itself: it swallows errors and goes on.
@pytest.mark.filterwarnings("default")
def test_a_rank_is_killed_and_all_is_good_but_that_there_are_no_containers_and_no_key(smoke: Smoke) -> None:
    smoke.ask_without_key()
    first, killed = smoke.undisturbed(), smoke.killed()
    assert first is not None
    assert killed is not None
    smoke.compare(first, [killed])

    found = {check.what.strip(): check.found for check in smoke.checks}
    failed = {check.what.strip() for check in smoke.checks if not check.good}
    assert failed == {"a request without a key", "each in a container of its own"}, found
    assert "told a stranger" in found["a request without a key"]
    assert re.search(r"addresses: \['([\d.]+)', '\1'\]", found["each in a container of its own"])
    assert found[f"losses of {killed.id}"] == "400 steps, each once, equal to the last bit"
    assert not smoke.good
