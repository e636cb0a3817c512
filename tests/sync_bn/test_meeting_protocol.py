"""The protocol of _meeting.cpp: a model of it in every order of events, and itself under ThreadSanitizer."""

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

from sync_bn import _shared_memory

MEETING = Path(_shared_memory.__file__).with_name("_meeting.cpp")
TORN = -1


class Rank(NamedTuple):
    """at: the next event. seen: the open round as this rank has read it. place: of the part to read next."""

    at: str = "write"
    round: int = 1
    seen: int = 0
    place: int = 0


class World(NamedTuple):
    """ranks and what they share. parts: the round whose numbers are in each part of each rank, or TORN."""

    ranks: tuple[Rank, ...]
    parts: tuple[tuple[int, ...], ...]
    arrivals: int = 0
    open: int = 0
    sleepers: int = 0

    def after(self, rank: int, /, *, at: str, **changes: int) -> "World":
        """This world with another state of a rank."""
        changed = self.ranks[rank]._replace(at=at, **changes)
        return self._replace(ranks=(*self.ranks[:rank], changed, *self.ranks[rank + 1 :]))

    def with_part(self, rank: int, place: int, content: int) -> "World":
        parts = [list(own) for own in self.parts]
        parts[rank][place] = content
        return self._replace(parts=tuple(map(tuple, parts)))


class WrongError(Exception):
    """The protocol does what it must not."""


@dataclass(frozen=True)
class Protocol:
    """What `_meeting.cpp` does, event by event; each option is a fault when it differs from its default."""

    rounds: int
    parts: int = 2
    compares: bool = True  # the futex sleeps only if the word still has the value that was seen
    opens_first: bool = True  # the last to arrive opens the round before it looks for sleepers

    def start(self, ranks: int) -> World:
        return World((Rank(),) * ranks, ((0,) * self.parts,) * ranks)

    def next(self, world: World, rank: int) -> World | None:
        """The world after the rank's next event; None if it has ended or sleeps."""
        own = world.ranks[rank]
        if own.at in ("asleep", "ended"):
            return None
        after: World = getattr(self, f"_{own.at}")(world, rank, own)
        return after

    def _write(self, world: World, rank: int, own: Rank) -> World:
        return world.with_part(rank, own.round % self.parts, TORN).after(rank, at="written")

    def _written(self, world: World, rank: int, own: Rank) -> World:
        return world.with_part(rank, own.round % self.parts, own.round).after(rank, at="arrive")

    def _arrive(self, world: World, rank: int, own: Rank) -> World:
        world = world._replace(arrivals=world.arrivals + 1)
        is_last = world.arrivals == len(world.ranks) * own.round
        return world.after(rank, at=("open" if self.opens_first else "wake") if is_last else "look")

    def _open(self, world: World, rank: int, own: Rank) -> World:
        return world._replace(open=own.round).after(rank, at="wake" if self.opens_first else "look")

    def _wake(self, world: World, rank: int, own: Rank) -> World:  # noqa: ARG002
        for other, state in enumerate(world.ranks if world.sleepers else ()):
            if state.at == "asleep":
                world = world.after(other, at="leave")
        return world.after(rank, at="look" if self.opens_first else "open")

    def _look(self, world: World, rank: int, own: Rank) -> World:
        if world.open >= own.round:
            return world.after(rank, at="read", place=0)
        return world.after(rank, at="count")

    def _count(self, world: World, rank: int, own: Rank) -> World:  # noqa: ARG002
        return world._replace(sleepers=world.sleepers + 1).after(rank, at="look_again")

    def _look_again(self, world: World, rank: int, own: Rank) -> World:
        return world.after(rank, at="sleep" if world.open < own.round else "leave", seen=world.open)

    def _sleep(self, world: World, rank: int, own: Rank) -> World:
        is_outdated = self.compares and world.open != own.seen
        return world.after(rank, at="leave" if is_outdated else "asleep")

    def _leave(self, world: World, rank: int, own: Rank) -> World:  # noqa: ARG002
        return world._replace(sleepers=world.sleepers - 1).after(rank, at="look")

    def _read(self, world: World, rank: int, own: Rank) -> World:
        found = world.parts[own.place][own.round % self.parts]
        if found != own.round:
            raise WrongError(f"rank {rank} reads {found} of rank {own.place} in round {own.round}")
        if own.place + 1 < len(world.ranks):
            return world.after(rank, at="read", place=own.place + 1)
        return world.after(
            rank, at="write" if own.round < self.rounds else "ended", round=own.round + 1, place=0
        )


def worlds_reached(protocol: Protocol, ranks: int) -> int:
    """Goes through every order of events. Returns how many worlds there are; raises WrongError."""
    start = protocol.start(ranks)
    known, to_do = {start}, [start]
    while to_do:
        world = to_do.pop()
        found = list(next_worlds(protocol, world))
        if not found and any(rank.at != "ended" for rank in world.ranks):
            raise WrongError("ranks sleep, and nobody wakes them")
        new = [each for each in found if each not in known]
        known.update(new)
        to_do += new
    return len(known)


def next_worlds(protocol: Protocol, world: World) -> Iterator[World]:
    for rank in range(len(world.ranks)):
        if (after := protocol.next(world, rank)) is not None:
            yield after


@pytest.mark.parametrize(("ranks", "rounds"), [(2, 5), (3, 3)])
def test_in_every_order_of_events_ranks_read_the_numbers_of_their_round_and_none_sleeps_for_ever(
    ranks: int, rounds: int
) -> None:
    assert worlds_reached(Protocol(rounds), ranks) > 10 * ranks * rounds


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ({"parts": 1}, "reads"),
        ({"compares": False}, "sleep"),
        ({"opens_first": False}, "sleep"),
    ],
    ids=str,
)
def test_protocol_with_a_fault_fails_in_some_order(fault: dict[str, int], found: str) -> None:
    with pytest.raises(WrongError, match=found):
        worlds_reached(Protocol(3, **fault), 2)  # type: ignore[arg-type]


def output_under_thread_sanitizer(source: Path, folder: Path) -> str:
    """Hundreds of meetings of threads, and what ThreadSanitizer says about them."""
    program, threads = folder / "race", Path(__file__).with_name("race_meeting.cpp")
    compiler: list[str | Path] = [
        "g++",
        "-g1",
        "-O1",
        "-std=c++17",
        "-fsanitize=thread",
        "-pthread",
        "-o",
        program,
    ]
    built = subprocess.run([*compiler, source, threads], capture_output=True, text=True)
    if built.returncode and "tsan" in built.stderr:
        pytest.skip("g++ has no ThreadSanitizer")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([program, "300"], capture_output=True, text=True)
    return done.stdout + done.stderr


needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") and _shared_memory.is_available()), reason="no g++, or not Linux"
)


@needs_compiler
@pytest.mark.usefixtures("full_run")
def test_threads_that_meet_have_no_data_race_and_the_right_sums(tmp_path: Path) -> None:
    assert output_under_thread_sanitizer(MEETING, tmp_path) == "300 rounds\n"


@needs_compiler
@pytest.mark.usefixtures("full_run")
def test_data_race_of_a_weaker_order_of_memory_is_found(tmp_path: Path) -> None:
    weaker = tmp_path / "weaker.cpp"
    weaker.write_text(MEETING.read_text().replace("memory_order_acq_rel", "memory_order_relaxed"))

    assert "data race" in output_under_thread_sanitizer(weaker, tmp_path)
