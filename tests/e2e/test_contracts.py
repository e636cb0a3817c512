"""What the service asks of a cluster, of the one in memory and of a real Ray alike."""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from service.errors import Unavailable
from service.fakes import FakeCluster
from service.launch import Attempt, Cluster, Phase, Status
from service.processes import State
from service.ray_jobs import RayJobs
from tests.e2e.stack import Stack
from tests.ports import free_port

pytestmark = pytest.mark.ray

IDS = (f"contract-{number}" for number in range(1_000))


@pytest.fixture(scope="module")
def ray(stack: Stack) -> Iterator[RayJobs]:
    state = State.load(stack.folder)
    cluster = RayJobs(state.ray_url, state.token)
    yield cluster
    cluster.close()


@pytest.fixture(params=["memory", "ray"])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    if request.param == "memory":
        return FakeCluster()
    real: RayJobs = request.getfixturevalue("ray")
    return real


def attempt(**changes: object) -> Attempt:
    """One without an order: on a real cluster it fails as soon as it looks for it."""
    fields = {"job_id": next(IDS), "number": 1, "workers": 1, "spec": {}} | changes
    return Attempt(**fields)  # type: ignore[arg-type]


def ended(cluster: Cluster, submission_id: str, seconds: float = 60) -> Status:
    deadline = time.monotonic() + seconds
    while (status := cluster.status(submission_id)) is None or not status.ended:
        assert time.monotonic() < deadline, status
        time.sleep(0.2)
    return status


def test_an_unknown_attempt_has_no_status_and_no_log(cluster: Cluster) -> None:
    assert cluster.status("unknown-1") is None
    assert cluster.logs("unknown-1") == ""


def test_to_stop_an_unknown_attempt_is_harmless(cluster: Cluster) -> None:
    cluster.stop("unknown-1")

    assert cluster.status("unknown-1") is None


def test_the_machines_are_named_with_what_they_have(cluster: Cluster) -> None:
    (node,) = cluster.nodes()

    assert node.id
    assert node.address
    assert node.cpus >= 1
    assert node.gpus >= 0


def test_an_attempt_submitted_twice_is_launched_once_and_can_be_stopped(cluster: Cluster) -> None:
    # Only a real cluster runs it; its code is in the way of ours, and it lasts.
    lasting = attempt(code=archive("training/attempt.py", "import time; print('once'); time.sleep(100)"))
    name = lasting.submission_id

    cluster.submit(lasting)
    cluster.submit(lasting)
    assert cluster.status(name) is not None
    if isinstance(cluster, RayJobs):
        wait_for_word(cluster, name, "once")
        cluster.submit(lasting)
        assert cluster.logs(name).count("once") == 1
        assert submissions(cluster).count(name) == 1
    cluster.stop(name)

    assert ended(cluster, name).phase is Phase.STOPPED
    cluster.stop(name)
    cluster.submit(lasting)
    assert cluster.status(name) == Status(phase=Phase.STOPPED, message=ended(cluster, name).message)


def test_a_stop_right_after_the_submission_is_not_lost(cluster: Cluster) -> None:
    lasting = attempt(code=archive("training/attempt.py", "import time; time.sleep(100)"))

    cluster.submit(lasting)
    cluster.stop(lasting.submission_id)

    assert ended(cluster, lasting.submission_id).phase is Phase.STOPPED


def test_an_attempt_without_an_order_fails_and_says_so(ray: RayJobs) -> None:
    orderless = attempt()

    ray.submit(orderless)

    status = ended(ray, orderless.submission_id)
    assert status.phase is Phase.FAILED
    assert status.message
    assert "SYNCBN_ATTEMPT" in ray.logs(orderless.submission_id)
    assert "\x1b" not in ray.logs(orderless.submission_id)


def test_an_attempt_whose_code_cannot_be_unpacked_fails_with_the_reason(ray: RayJobs) -> None:
    broken = attempt(code=b"not a zip archive")

    ray.submit(broken)

    status = ended(ray, broken.submission_id)
    assert status.phase is Phase.FAILED
    assert "zip" in status.message.lower()
    assert isinstance(ray.logs(broken.submission_id), str)


@pytest.mark.parametrize("token", ["wrong", None])
def test_a_wrong_token_is_unavailable_with_advice(stack: Stack, token: str | None) -> None:
    cluster = RayJobs(State.load(stack.folder).ray_url, token)

    for call in calls(cluster):
        with pytest.raises(Unavailable, match="refuses the token"):
            call()
    cluster.close()


@pytest.mark.parametrize("kind", ["memory", "ray"])
def test_a_cluster_that_is_away_is_unavailable(kind: str) -> None:
    away: FakeCluster | RayJobs = FakeCluster()
    if kind == "ray":
        away = RayJobs(f"http://127.0.0.1:{free_port()}")
    else:
        away.unreachable = True  # type: ignore[union-attr]

    for call in calls(away):
        with pytest.raises(Unavailable, match="Ray is not reachable"):
            call()


def calls(cluster: Cluster) -> list[Callable[[], object]]:
    """Every method of the protocol."""
    return [
        cluster.nodes,
        partial(cluster.submit, attempt()),
        partial(cluster.status, "unknown-1"),
        partial(cluster.stop, "unknown-1"),
        partial(cluster.logs, "unknown-1"),
    ]


def archive(path: str, text: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr(path, text)
    return content.getvalue()


def wait_for_word(cluster: Cluster, submission_id: str, word: str) -> None:
    deadline = time.monotonic() + 60
    while word not in cluster.logs(submission_id):
        assert time.monotonic() < deadline, cluster.status(submission_id)
        time.sleep(0.2)


def submissions(ray: RayJobs) -> list[str]:
    """The ids of all that Ray was given."""
    return [job["submission_id"] for job in ray._send("GET", "/api/jobs/").json()]
