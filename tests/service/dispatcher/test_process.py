"""The scheduler's turns at work, in threads of this process and in processes of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from service.backends.cluster import Cluster, Node
from service.backends.memory import MemoryCluster
from service.dispatcher.held_lease import HeldLease
from service.dispatcher.process import (
    Dispatch,
    SilenceTimer,
    Stuck,
    Term,
    command,
    may_take_over,
    run,
    stand_by,
)
from service.dispatcher.round_timer import RoundTimer
from service.errors import Unavailable
from service.identity import Identity, own_identity
from service.ports import free_port
from service.queue.lease import LEASE_SECONDS, SchedulerRow
from service.queue.store import Store
from service.settings import Settings
from training.protocol import Superseded

NODE = Node(id="a", address="10.0.0.1", cpus=2, gpus=0)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Closable(MemoryCluster):
    closed = False

    def close(self) -> None:
        self.closed = True


def row(**changes: object) -> SchedulerRow:
    """Of a scheduler on another machine."""
    first = SchedulerRow(
        queue="q",
        number=3,
        beat=7,
        seen_at=datetime.now(UTC),
        silent_seconds=0.0,
        holder="4@there/1/2",
        nodes=(),
        problem="",
    )
    return replace(first, **changes)  # type: ignore[arg-type]


def row_of(store: Store) -> SchedulerRow:
    found = store.scheduler()
    assert found is not None
    return found


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def idle(_: HeldLease, __: Cluster, over: threading.Event, ___: RoundTimer) -> None:
    """Instead of a dispatcher: nothing is to be done."""
    over.wait()


# Whose turn it is


def test_where_no_scheduler_is_at_work_whoever_stands_by_follows_at_once() -> None:
    assert may_take_over(None, SilenceTimer())
    assert may_take_over(row(holder=""), SilenceTimer())


def test_one_that_beats_is_never_followed() -> None:
    clock = Clock()
    silence = SilenceTimer(clock)

    for beat in range(5):
        assert not may_take_over(row(beat=beat), silence)
        clock.now += LEASE_SECONDS - 0.1


def test_one_that_has_been_silent_for_its_lease_is_followed() -> None:
    clock = Clock()
    silence = SilenceTimer(clock)
    assert not may_take_over(row(silent_seconds=1000.0), silence)  # the time of another machine says nothing
    clock.now += LEASE_SECONDS - 0.1
    assert not may_take_over(row(), silence)

    clock.now += 0.1

    assert may_take_over(row(), silence)


def test_another_holder_has_a_lease_of_its_own() -> None:
    clock = Clock()
    silence = SilenceTimer(clock)
    assert not may_take_over(row(), silence)
    clock.now += LEASE_SECONDS

    assert not may_take_over(row(number=4), silence)


def test_while_the_database_was_away_nobody_could_beat() -> None:
    clock = Clock()
    silence = SilenceTimer(clock)
    assert not may_take_over(row(), silence)
    clock.now += LEASE_SECONDS
    silence.forget()

    assert not may_take_over(row(), silence)


def test_one_of_this_machine_that_has_ended_is_followed_at_once() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        holder = str(Identity.of(process.pid))
        assert not may_take_over(row(holder=holder), SilenceTimer())
        process.kill()

    assert may_take_over(row(holder=holder), SilenceTimer())


def test_standing_by_ends_when_it_is_asked_to(sqlite_store: Store) -> None:
    sqlite_store.take_over(None, "another")
    stop = threading.Event()
    stop.set()

    assert stand_by(sqlite_store, "one", stop) is None
    assert row_of(sqlite_store).holder == "another"


# At work


class Working:
    """A term in a thread. Takes part in the queue's lease as number 1 if it is the first."""

    def __init__(
        self,
        store: Store,
        cluster: Closable | None = None,
        dispatch: Dispatch = idle,
    ) -> None:
        self.store, self.cluster, self.stop = store, cluster or Closable([NODE]), threading.Event()
        number = store.take_over(store.scheduler(), str(own_identity()))
        assert number is not None
        self.term = Term(number, store, lambda _: self.cluster, dispatch)
        self.thread = threading.Thread(target=self.term.run, args=(self.stop,))

    @contextmanager
    def running(self) -> Iterator[None]:
        self.thread.start()
        try:
            yield
        finally:
            self.stop.set()
            self.thread.join(60)
        assert not self.thread.is_alive()


@pytest.fixture(autouse=True)
def quick_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.dispatcher.process.BEAT_SECONDS", 0.02)
    monkeypatch.setattr("service.dispatcher.process.LOOK_SECONDS", 0.02)


def test_beats_tell_what_machines_there_are_and_the_end_leaves_the_row_vacant(sqlite_store: Store) -> None:
    working = Working(sqlite_store)

    with working.running():
        until(lambda: row_of(sqlite_store).nodes == (NODE,))
        assert row_of(sqlite_store).problem == ""
        beat = row_of(sqlite_store).beat
        until(lambda: row_of(sqlite_store).beat > beat)

    assert row_of(sqlite_store).vacant
    assert working.cluster.closed


def test_while_ray_is_away_beats_say_so_and_keep_what_it_last_said(sqlite_store: Store) -> None:
    working = Working(sqlite_store)

    with working.running():
        until(lambda: row_of(sqlite_store).nodes == (NODE,))
        working.cluster.unreachable = True
        until(lambda: row_of(sqlite_store).problem.startswith("Ray is not reachable"))
        assert row_of(sqlite_store).nodes == (NODE,)
        working.cluster.unreachable = False
        until(lambda: row_of(sqlite_store).problem == "")


def test_a_ray_that_is_not_there_yet_is_waited_for(sqlite_store: Store) -> None:
    working = Working(sqlite_store)
    is_there = threading.Event()

    def connect(_: int) -> Closable:
        if not is_there.is_set():
            raise Unavailable("Ray", "nobody listens")
        return working.cluster

    working.term = Term(1, sqlite_store, connect, idle)
    working.thread = threading.Thread(target=working.term.run, args=(working.stop,))
    with working.running():
        until(lambda: row_of(sqlite_store).problem == "Ray is not reachable: nobody listens")
        is_there.set()
        until(lambda: row_of(sqlite_store).nodes == (NODE,))


def test_one_that_is_followed_stops_and_leaves_the_row_to_the_other(sqlite_store: Store) -> None:
    working = Working(sqlite_store)

    with working.running():
        until(lambda: row_of(sqlite_store).nodes == (NODE,))
        until(lambda: sqlite_store.take_over(row_of(sqlite_store), "another") is not None)
        until(lambda: not working.thread.is_alive())

    assert (row_of(sqlite_store).number, row_of(sqlite_store).holder) == (2, "another")


def test_one_whose_agents_obey_another_stops(sqlite_store: Store) -> None:
    def dispatch(*_: object) -> None:
        raise Superseded("by number 2")

    working = Working(sqlite_store, dispatch=dispatch)

    with working.running():
        until(lambda: not working.thread.is_alive())

    assert working.cluster.closed


def test_a_round_that_does_not_end_is_told_apart_and_keeps_the_row(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.dispatcher.process._SECONDS_TO_END", 0.1)
    released, stop = threading.Event(), threading.Event()
    stop.set()
    assert sqlite_store.take_over(None, "one") == 1

    def dispatch(*_: object) -> None:
        released.wait()

    term = Term(1, sqlite_store, lambda _: Closable([NODE]), dispatch)
    with pytest.raises(Stuck):
        term.run(stop)

    assert not row_of(sqlite_store).vacant
    released.set()


def test_a_round_that_hangs_ends_the_term(sqlite_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.dispatcher.process._SECONDS_TO_END", 0.1)
    monkeypatch.setattr("service.dispatcher.process.LONGEST_ROUND_SECONDS", 0.3)
    released = threading.Event()
    assert sqlite_store.take_over(None, "one") == 1

    def dispatch(_: HeldLease, __: Cluster, ___: threading.Event, timer: RoundTimer) -> None:
        for _round in range(3):  # none of these takes long
            with timer.round():
                pass
        with timer.round():
            released.wait()

    term = Term(1, sqlite_store, lambda _: Closable([NODE]), dispatch)
    with pytest.raises(Stuck):
        term.run(threading.Event())

    beat = row_of(sqlite_store).beat
    assert not row_of(sqlite_store).vacant  # this process has to end first: its round may still give orders
    assert beat > 0
    released.set()


def test_a_dispatcher_that_fails_is_followed_by_another_under_a_new_number(sqlite_store: Store) -> None:
    stop, numbers = threading.Event(), list[int]()

    def connect(number: int) -> Closable:
        numbers.append(number)
        return Closable([NODE])

    def dispatch(_: HeldLease, __: Cluster, over: threading.Event, ___: RoundTimer) -> None:
        if len(numbers) < 3:
            raise RuntimeError("a bug")
        stop.set()
        over.wait()

    run(sqlite_store, stop, connect, dispatch)

    assert numbers == [1, 2, 3]
    assert row_of(sqlite_store).vacant


# As processes, without a Ray


@pytest.fixture
def settings(sqlite_store: Store) -> Settings:
    """Of a Ray that is away."""
    url = sqlite_store._engine.url.render_as_string()
    return Settings(database_url=url, ray_address=f"127.0.0.1:{free_port()}")


@pytest.fixture
def begin(settings: Settings, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    begun: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        with (tmp_path / f"scheduler-{len(begun)}.log").open("wb") as log:
            environment = os.environ | settings.variables()
            begun.append(subprocess.Popen(command(), env=environment, stdout=log, stderr=log))
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.wait()


def holds(store: Store, process: subprocess.Popen[bytes]) -> bool:
    found = store.scheduler()
    return found is not None and found.holder == str(Identity.of(process.pid))


def test_one_works_another_stands_by_and_follows_it_when_it_is_killed(
    sqlite_store: Store, begin: Callable[[], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    first = begin()
    until(lambda: holds(sqlite_store, first))
    second = begin()
    until(lambda: b"standing by, number 1 is at work" in (tmp_path / "scheduler-1.log").read_bytes())
    until(lambda: row_of(sqlite_store).problem.startswith("Ray is not reachable: 127.0.0.1:"))

    first.kill()
    first.wait()

    until(lambda: holds(sqlite_store, second))
    assert row_of(sqlite_store).number == 2


def test_one_that_stands_still_is_followed_and_stands_by_when_it_wakes_up(
    sqlite_store: Store, begin: Callable[[], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    first = begin()
    until(lambda: holds(sqlite_store, first))
    with (
        sqlite_store._engine.begin() as connection
    ):  # one that stood still while it writes would lock all out
        connection.exec_driver_sql("UPDATE scheduler SET beat = beat")
        first.send_signal(signal.SIGSTOP)
    second = begin()

    until(lambda: holds(sqlite_store, second))
    first.send_signal(signal.SIGCONT)

    until(lambda: b"standing by, number 2 is at work" in (tmp_path / "scheduler-0.log").read_bytes())
    second.terminate()
    until(lambda: holds(sqlite_store, first))
    assert row_of(sqlite_store).number >= 3


def test_one_that_is_asked_to_end_leaves_the_row_vacant(
    sqlite_store: Store, begin: Callable[[], subprocess.Popen[bytes]]
) -> None:
    process = begin()
    until(lambda: holds(sqlite_store, process))

    process.terminate()

    assert process.wait(120) == 0
    assert row_of(sqlite_store).vacant


def test_one_without_a_database_says_so_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "not.db").write_text("no database, but more than a hundred characters of text" * 20)
    settings = Settings(database_url=f"sqlite:///{tmp_path / 'not.db'}")

    done = subprocess.run(command(), env=os.environ | settings.variables(), capture_output=True, text=True)

    assert done.returncode == 2
    assert done.stderr == "error: the database cannot be used: file is not a database\n"


def test_with_its_parent_it_ends(sqlite_store: Store, settings: Settings) -> None:
    environment = os.environ | settings.variables()
    with subprocess.Popen(command(with_parent=True), env=environment, stdin=subprocess.PIPE) as process:
        until(lambda: holds(sqlite_store, process))
        assert process.stdin is not None

        process.stdin.close()

        assert process.wait(120) == 0
        assert not psutil.pid_exists(process.pid)
    assert row_of(sqlite_store).vacant
