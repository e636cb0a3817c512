"""What the scheduler asks of a cluster, of the one in memory and of a real Ray alike."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from service.backends.cluster import Cluster, Launch, Phase, Status
from service.backends.gangs import host_orders
from service.backends.memory import MemoryCluster
from service.backends.ray import RayCluster
from service.errors import Unavailable
from service.ports import free_port
from tests.e2e.small_ray import SmallRay
from tests.e2e.stack import until
from tests.training.host.test_agent import archive, gone
from training.protocol import Exit, Order, Superseded, cause, finished, stopped_at
from training.spec import Resources

NAMES = (f"contract-{number}" for number in range(1, 1_000))
CPUS = 2


FOR_EVER = 10_000.0
"""Seconds, more than a test may take: a wait that only its end has ended fails."""


class Subject:
    """The cluster under test, and what makes ranks do what a test says."""

    cluster: Cluster

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def attempt(self, what: str = "nothing", *, start: int = 1, name: str = "", **changes: Any) -> Launch:
        """Two ranks that come to their end by themselves; with changes of workers, cpus, epochs or model."""
        name = name or next(NAMES)
        workers, cpus = changes.pop("workers", CPUS), changes.pop("cpus", 1)
        spec = {
            "model": {"class_path": "lab.Does", "init_args": {"what": what} | changes.pop("model", {})},
            "data": {"class_path": "lab.Data"},
            "metrics": {},
            "training": {"global_batch_size": max(workers, 2), "max_epochs": changes.pop("epochs", 1)},
            "resources": {"workers": workers, "cpus_per_worker": cpus, "gpus_per_worker": 0},
        }
        order = Order(
            attempt=name,
            start=start,
            spec=spec,
            ranks=(),
            world_size=workers,
            folder=str(self.folder / name),
            output=str(self.folder / name / "output"),
            curves_only=True,
            code="lab",
        )
        return Launch(order=order, resources=Resources(cpus_per_worker=cpus), code=archive, **changes)

    def lasting(self, **changes: Any) -> Launch:
        """Its steps take time, and no CPU."""
        slow = {"hurry": str(self.folder / "never")}
        return self.attempt(epochs=100_000, model=slow | changes.pop("model", {}), **changes)

    def trains(self, launch: Launch) -> Status:
        """Returns when it has made a step."""
        return self.until(
            launch, lambda status: status.phase is Phase.RUNNING and status.progress is not None
        )

    def ended(self, launch: Launch) -> Status:
        return self.until(launch, lambda status: status.ended)

    def fails(self, launch: Launch) -> Status:
        """An attempt that was made to fail has done so."""
        return self.ended(launch)

    def until(self, launch: Launch, is_so: Callable[[Status], bool]) -> Status:
        deadline = time.monotonic() + 240
        while (status := self.attempts().get(launch.name)) is None or not is_so(status):
            assert time.monotonic() < deadline, status
            self.cluster.wait(1.0)
        return status

    def attempts(self) -> Mapping[str, Status]:
        """A new scheduler's cluster may have to hear of them first."""
        deadline = time.monotonic() + 240
        while True:
            try:
                return self.cluster.attempts()
            except Unavailable:
                assert time.monotonic() < deadline
                time.sleep(0.1)

    def unreachable(self) -> Cluster:
        """Whose Ray cannot be reached any more."""
        raise NotImplementedError

    def superseded(self) -> Cluster:
        """Of a scheduler that another one has followed."""
        raise NotImplementedError


class InMemory(Subject):
    """Ranks end when the test waits for their end: by then they have done what they were to do."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.cluster = self.memory = MemoryCluster()
        self.taken = 0

    def trains(self, launch: Launch) -> Status:
        self.memory.run(launch.name)
        return super().trains(launch)

    def ended(self, launch: Launch) -> Status:
        status = self.memory.status(launch.name)
        if status is not None and not status.ended:
            self.memory.finish(launch.name)
        return super().ended(launch)

    def fails(self, launch: Launch) -> Status:
        self.memory.fail(launch.name)
        return super().ended(launch)

    def unreachable(self) -> Cluster:
        self.memory.unreachable = True
        return self.memory

    def superseded(self) -> Cluster:
        self.memory.superseded = True
        return self.memory


class OnRay(Subject):
    fences = iter(range(1, 1_000))

    def __init__(self, folder: Path, ray: SmallRay) -> None:
        super().__init__(folder)
        self.ray = ray
        self.opened: list[RayCluster] = []
        self.cluster = self.connect()

    def connect(self) -> RayCluster:
        """As the next scheduler does, which tries again while Ray has yet to come."""
        self.fence = next(self.fences)
        deadline = time.monotonic() + 240
        while True:
            try:
                cluster = RayCluster(self.ray.address, token=self.ray.token, fence=self.fence, queue="test")
                self.opened.append(cluster)
            except Unavailable:
                assert time.monotonic() < deadline
                time.sleep(1.0)
            else:
                return self.opened[-1]

    def take_over(self) -> None:
        self.opened[-1].close()
        del self.opened[-1]
        self.cluster = self.connect()

    def superseded(self) -> Cluster:
        earlier = self.cluster
        self.cluster = self.connect()
        deadline = time.monotonic() + 240
        with suppress(Superseded):
            while time.monotonic() < deadline:
                earlier.wait(1.0)
        return earlier

    def tell_first_host(self, launch: Launch, nodes: Sequence[str]) -> None:
        """As a scheduler does that dies before it can tell the next host."""
        from service.backends import ray_calls

        first = next(iter(host_orders(launch.order, nodes, [()] * len(nodes), None)))
        agent = ray_calls.agent(first, self.fence)
        address = self.cluster.nodes()[0].address
        give = partial(self._give, agent)
        meeting = give("rendezvous", launch.name, 1, address)
        give("put_code", "lab", archive())
        give("launch", host_orders(launch.order, nodes, [()] * len(nodes), meeting)[first])

    def _give(self, agent: Any, order: str, *arguments: Any) -> Any:
        return answer(getattr(agent, order).remote(self.fence, *arguments))

    def close(self) -> None:
        """Nothing is left for the next test."""
        for name in self.attempts():
            self.cluster.release(name)
        self.wait_until_free()
        for cluster in self.opened:
            cluster.close()

    def wait_until_free(self) -> None:
        from service.backends import ray_calls

        deadline = time.monotonic() + 240
        while ray_calls.groups({}):
            assert time.monotonic() < deadline, self.attempts()
            time.sleep(0.1)


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallRay]:
    ray = SmallRay(tmp_path_factory.mktemp("ray"))
    try:
        ray.start(cpus=CPUS, gpus=2)
        yield ray
        disconnect()
    finally:
        ray.end()


def disconnect() -> None:
    import ray

    ray.shutdown()


def answer(reference: Any) -> Any:
    import ray

    return ray.get(reference, timeout=60)


@pytest.fixture
def on_ray(ray: SmallRay, tmp_path: Path) -> Iterator[OnRay]:
    subject = OnRay(tmp_path, ray)
    yield subject
    subject.close()


@pytest.fixture(params=["memory", "ray"])
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Subject:
    if request.param == "memory":
        return InMemory(tmp_path)
    found: OnRay = request.getfixturevalue("on_ray")
    return found


def orders(cluster: Cluster, launch: Launch) -> list[Callable[[], object]]:
    """Every method of the protocol but those that wait."""
    return [
        cluster.nodes,
        cluster.attempts,
        partial(cluster.launch, launch),
        partial(cluster.stop, launch.name, seconds=1.0),
        partial(cluster.end, launch.name),
        partial(cluster.release, launch.name),
    ]


def kinds(status: Status) -> set[Exit]:
    return {record.kind for record in status.exits}


# Both


def test_the_machines_are_named_with_what_they_have(subject: Subject) -> None:
    (node,) = subject.cluster.nodes()

    assert node.id
    assert node.address
    assert node.cpus >= CPUS
    assert node.gpus >= 0


def test_what_is_asked_for_an_unknown_attempt_is_harmless(subject: Subject) -> None:
    subject.cluster.stop("unknown-1", seconds=1.0)
    subject.cluster.end("unknown-1")
    subject.cluster.release("unknown-1")

    assert subject.attempts() == {}


def test_an_attempt_trains_to_its_end_and_is_forgotten(subject: Subject) -> None:
    launch = subject.attempt()

    subject.cluster.launch(launch)
    first = subject.attempts()[launch.name]
    assert (first.start, first.ended) == (1, False)

    status = subject.ended(launch)
    assert (status.phase, status.start) == (Phase.ENDED, 1)
    assert finished(status.exits, CPUS)

    subject.cluster.release(launch.name)
    assert launch.name not in subject.attempts()


def test_an_attempt_launched_twice_runs_once(subject: Subject) -> None:
    launch = subject.lasting()

    subject.cluster.launch(launch)
    subject.cluster.launch(launch)
    subject.trains(launch)
    subject.cluster.launch(launch)

    assert subject.attempts()[launch.name].phase is Phase.RUNNING
    subject.cluster.end(launch.name)
    subject.ended(launch)
    subject.cluster.launch(launch)
    assert subject.attempts()[launch.name].ended
    if isinstance(subject, OnRay):
        assert [len(list(subject.folder.glob("*/logs/*/rank-*.log")))] == [CPUS]


def test_an_attempt_is_started_again_where_it_is(subject: Subject) -> None:
    first = subject.attempt("exit", model={"argument": 7})
    subject.cluster.launch(first)
    failed = subject.fails(first)
    assert cause(failed.exits) is not None

    again = subject.attempt(name=first.name, start=2)
    subject.cluster.launch(again)
    status = subject.attempts()[first.name]
    assert (status.start, status.ended, status.exits) == (2, False, ())

    status = subject.ended(again)
    assert status.start == 2
    assert finished(status.exits, CPUS)
    subject.cluster.launch(first)
    assert subject.attempts()[first.name].start == 2


def test_an_attempt_that_is_stopped_saves_itself(subject: Subject) -> None:
    launch = subject.lasting()
    subject.cluster.launch(launch)
    subject.trains(launch)

    subject.cluster.stop(launch.name, seconds=60.0)
    subject.cluster.stop(launch.name, seconds=60.0)
    status = subject.ended(launch)

    assert kinds(status) == {Exit.STOPPED}
    assert len(status.exits) == CPUS
    assert stopped_at(status.exits)
    subject.cluster.stop(launch.name, seconds=60.0)
    assert subject.attempts()[launch.name] == status


@pytest.mark.parametrize("order", ["stop", "end"])
def test_what_is_ordered_right_after_the_launch_is_not_lost(subject: Subject, order: str) -> None:
    launch = subject.lasting()

    subject.cluster.launch(launch)
    if order == "stop":
        subject.cluster.stop(launch.name, seconds=60.0)
    else:
        subject.cluster.end(launch.name)
    status = subject.ended(launch)

    assert kinds(status) == {Exit.ENDED}
    assert {record.rank for record in status.exits} == set(range(CPUS))
    assert cause(status.exits) is None


def test_an_attempt_that_is_ended_has_not_failed(subject: Subject) -> None:
    launch = subject.lasting()
    subject.cluster.launch(launch)
    subject.trains(launch)

    subject.cluster.end(launch.name)
    status = subject.ended(launch)

    assert kinds(status) == {Exit.ENDED}
    assert len(status.exits) == CPUS


def test_wait_ends_when_something_has_changed_or_it_is_woken(subject: Subject) -> None:
    launch = subject.attempt()
    subject.cluster.launch(launch)
    subject.cluster.wait(FOR_EVER)  # the launch itself
    waker = threading.Timer(0.2, subject.cluster.wake)

    waker.start()
    subject.cluster.wait(FOR_EVER)

    waker.join()
    subject.ended(launch)


def test_a_scheduler_that_was_superseded_gives_no_orders(subject: Subject) -> None:
    cluster = subject.superseded()

    for order in orders(cluster, subject.attempt()):
        with pytest.raises(Superseded):
            order()
    with pytest.raises(Superseded):
        cluster.wait(0.0)


def test_a_cluster_in_memory_that_is_away_is_unavailable(tmp_path: Path) -> None:
    subject = InMemory(tmp_path)
    cluster = subject.unreachable()

    for order in orders(cluster, subject.attempt()):
        with pytest.raises(Unavailable, match="Ray is not reachable"):
            order()


# Ray alone


def test_an_attempt_waits_for_room_and_says_so(on_ray: OnRay) -> None:
    first, second = on_ray.lasting(), on_ray.attempt()
    on_ray.cluster.launch(first)
    on_ray.trains(first)

    on_ray.cluster.launch(second)
    status = on_ray.until(second, lambda status: bool(status.message))
    assert (status.phase, status.start) == (Phase.PLACING, 1)
    assert "waits for room in Ray" in status.message

    on_ray.cluster.end(first.name)
    on_ray.ended(first)
    on_ray.cluster.release(first.name)
    assert finished(on_ray.ended(second).exits, CPUS)


def test_what_is_released_at_work_is_ended_first(on_ray: OnRay) -> None:
    launch = on_ray.lasting()
    on_ray.cluster.launch(launch)
    on_ray.trains(launch)

    on_ray.cluster.release(launch.name)

    assert launch.name not in on_ray.attempts()
    on_ray.wait_until_free()
    on_ray.take_over()
    assert on_ray.attempts() == {}


def test_the_next_scheduler_finds_what_runs(on_ray: OnRay) -> None:
    launch = on_ray.lasting()
    on_ray.cluster.launch(launch)
    on_ray.trains(launch)

    on_ray.take_over()
    status = on_ray.attempts()[launch.name]
    assert (status.phase, status.start) == (Phase.RUNNING, 1)
    assert status.progress is not None

    on_ray.cluster.stop(launch.name, seconds=60.0)
    assert kinds(on_ray.ended(launch)) == {Exit.STOPPED}
    again = on_ray.lasting(name=launch.name, start=2)
    on_ray.cluster.launch(again)
    assert on_ray.until(again, lambda status: status.start == 2 and status.progress is not None)
    on_ray.cluster.end(launch.name)
    on_ray.ended(again)


def test_the_next_scheduler_launches_what_was_placed_alone(on_ray: OnRay) -> None:
    from service.backends import ray_calls

    launch = on_ray.attempt()
    ray_calls.create_group(launch.name, {"CPU": 1}, {}, CPUS)
    on_ray.take_over()

    found = on_ray.until(launch, lambda status: status.ended)
    assert (found.start, found.exits) == (0, ())
    on_ray.cluster.launch(launch)

    assert finished(on_ray.ended(launch).exits, CPUS)


def test_ranks_are_lost_with_their_agent_which_comes_again(on_ray: OnRay) -> None:
    launch = on_ray.lasting()
    on_ray.cluster.launch(launch)
    on_ray.trains(launch)

    (agent,) = on_ray.ray.agents()
    ranks = agent.children(recursive=True)
    agent.kill()
    status = on_ray.ended(launch)

    assert kinds(status) == {Exit.LOST}
    gone(ranks)
    failure = cause(status.exits)
    assert failure is not None
    assert "the host agent on" in failure.headline
    again = on_ray.attempt(name=launch.name, start=2)
    on_ray.cluster.launch(again)
    assert finished(on_ray.ended(again).exits, CPUS)


def test_an_agent_that_was_killed_for_good_is_made_anew(on_ray: OnRay) -> None:
    import ray

    from service.backends import ray_calls

    (node,) = on_ray.cluster.nodes()
    ray.kill(ray_calls.agent(node.id, 1), no_restart=True)

    launch = on_ray.attempt()
    on_ray.cluster.launch(launch)

    assert finished(on_ray.ended(launch).exits, CPUS)


def test_a_rank_has_a_thread_for_each_of_its_cpus_and_no_secret_of_ray(on_ray: OnRay) -> None:
    path = on_ray.folder / "environment"
    model = {"argument": str(path), "rank": 0}
    launch = on_ray.attempt("print environment", workers=1, cpus=2, model=model)

    on_ray.cluster.launch(launch)
    assert finished(on_ray.ended(launch).exits, 1)

    lines = path.read_text().splitlines()
    assert "OMP_NUM_THREADS=2" in lines
    assert not [line for line in lines if on_ray.ray.token in line or line.startswith("RAY_")]


def test_a_head_that_stands_still_is_away_until_it_goes_on(on_ray: OnRay) -> None:
    launch = on_ray.lasting()
    on_ray.cluster.launch(launch)
    on_ray.trains(launch)

    head = on_ray.ray.head()
    head.suspend()
    try:
        for order in (
            on_ray.cluster.attempts,
            on_ray.cluster.nodes,
            partial(on_ray.cluster.end, "unknown-1"),
        ):
            until(partial(raises_unavailable, order), "Ray is not said to be away")
    finally:
        head.resume()

    until(lambda: not raises_unavailable(on_ray.cluster.attempts), "Ray is said to be away")
    assert on_ray.attempts()[launch.name].phase is Phase.RUNNING


def raises_unavailable(order: Callable[[], object]) -> bool:
    try:
        order()
    except Unavailable:
        return True
    return False


def test_ray_names_the_gpus_of_each_bundle(on_ray: OnRay) -> None:
    from service.backends import ray_calls

    name = next(NAMES)
    ray_calls.create_group(name, {"CPU": 1, "GPU": 1}, {}, 2)
    on_ray.until(on_ray.attempt(name=name), lambda status: status.ended)

    told = [answer(ray_calls.gpus_of(name, bundle, 1)) for bundle in (0, 1)]

    assert sorted(told) == [("0",), ("1",)]


# On two machines, of which the last test kills one


@pytest.fixture(scope="module")
def second_machine(ray: SmallRay) -> None:
    ray.add_node(cpus=1)


@pytest.fixture
def on_two(second_machine: None, on_ray: OnRay) -> OnRay:  # noqa: ARG001
    until(lambda: len(on_ray.cluster.nodes()) == 2, "the second machine has not come")
    return on_ray


def test_a_start_that_was_launched_by_halves_is_ended_and_launched_again(on_two: OnRay) -> None:
    from service.backends import ray_calls

    launch = on_two.attempt(workers=3)
    ray_calls.create_group(launch.name, {"CPU": 1}, {}, 3)
    until(lambda: getattr(ray_calls.group(launch.name), "placed", False), "no room")
    group = ray_calls.group(launch.name)
    assert group is not None
    on_two.tell_first_host(launch, group.nodes)

    on_two.take_over()
    on_two.until(launch, lambda status: status.start == 0)
    on_two.cluster.end(launch.name)
    assert on_two.ended(launch).start == 0
    on_two.cluster.launch(launch)

    assert finished(on_two.ended(launch).exits, 3)


def test_a_gang_on_two_machines_loses_the_ranks_of_one_that_dies(on_two: OnRay) -> None:
    launch = on_two.lasting(workers=3)
    on_two.cluster.launch(launch)
    on_two.trains(launch)

    on_two.ray.kill_last_node()
    on_two.until(launch, lambda status: Exit.LOST in kinds(status))
    on_two.cluster.end(launch.name)
    status = on_two.ended(launch)

    (lost,) = (record for record in status.exits if record.kind is Exit.LOST)
    assert lost.message.endswith("is gone")
    assert lost.step >= 1
    assert cause(status.exits) == lost
    assert len(on_two.cluster.nodes()) == 1


# Without a connection: Ray reads its token once a process


def answer_of(code: str, **variables: str) -> str:
    """What a program says that tries to connect."""
    program = f"""
from service.backends.ray import RayCluster
from service.errors import Unavailable
try:
    {code}
except Unavailable as error:
    print("UNAVAILABLE", error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize("token", ["wrong" * 10, None])
def test_a_wrong_token_is_unavailable_with_advice(ray: SmallRay, token: str | None) -> None:
    said = answer_of(f"RayCluster({ray.address!r}, token={token!r}, fence=1, queue='test')")

    assert "UNAVAILABLE Ray is not reachable" in said
    assert "refuses the token (SYNCBN_RAY_TOKEN)" in said


def test_a_ray_that_is_away_is_unavailable_at_once() -> None:
    said = answer_of(f"RayCluster('127.0.0.1:{free_port()}', token=None, fence=1, queue='test')")

    assert "UNAVAILABLE Ray is not reachable: 127.0.0.1" in said
