"""One reader of a job's logs, whatever the ranks print and whenever it looks."""

from __future__ import annotations

import json
import tempfile
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api import log_events
from service.api.log_events import Follower, LogPosition
from service.api.sse import FULL
from service.backends.memory_tracking import FakeResults
from service.job_logs import JobLogs, View
from service.jobs.job import Job, State
from tests.service.examples import make_job
from tests.service.serving import sent_events
from training.protocol import log_file

RUNNING = replace(make_job(state=State.RUNNING), attempt=1, start=1)
Lines = dict[tuple[int, int], list[str]]


class Reader:
    """Looks when it is told to, and breaks off whenever it likes: a place is all that it keeps."""

    def __init__(self, storage: Path, job: Job = RUNNING, view: View | None = None) -> None:
        self.storage, self.job, self.view = storage, job, view or View()
        self.place = LogPosition()
        self.lines: Lines = {}
        self.portions: list[bytes] = []

    def look(self, *, portions: int = 1) -> bool:
        """Whether it has been told the end."""
        logs = JobLogs(str(self.storage), FakeResults())
        follower, ended = Follower(lambda: self.job, logs, self.view), False
        for _ in range(portions):
            events, self.place, ended = follower(LogPosition.parse(str(self.place)))
            self.portions.append(events)
            self._keep(events.decode())
        return ended

    def _keep(self, text: str) -> None:
        for name, id, data in sent_events(text):
            if name == "source":
                source = json.loads(data)
                assert source["attempt"] == LogPosition.parse(id).attempt
                self.lines.setdefault((source["attempt"], source["rank"]), [])
            elif name == "log":
                place = LogPosition.parse(id)
                assert place.source is not None
                self.lines[place.attempt, place.source].append(data)


def write(storage: Path, rank: int, content: bytes, *, attempt: int = 1) -> None:
    path = log_file(storage / RUNNING.id, attempt, rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(content)


PRINTED = st.tuples(
    st.integers(0, 2), st.lists(st.sampled_from([b"\n", b"ab", "é".encode(), b"c"]), max_size=20)
)
NEXT_ATTEMPT, LOOK = "the next attempt", "a look"


@given(happening=st.lists(st.one_of(PRINTED, st.just(NEXT_ATTEMPT), st.just(LOOK)), max_size=40))
def test_every_line_comes_once_and_in_order_whenever_a_reader_looks(
    happening: list[tuple[int, list[bytes]] | str],
) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        for name, small in (("FULL", 40), ("_TURN", 20)):
            patch.setattr(log_events, name, small)
        reader, printed = Reader(Path(folder)), dict[tuple[int, int], bytes]()
        for what in happening:
            if what == NEXT_ATTEMPT:
                reader.job = replace(reader.job, attempt=reader.job.attempt + 1)
            elif isinstance(what, str):
                reader.look()
            else:
                attempt, (rank, content) = reader.job.attempt, what
                write(reader.storage, rank, b"".join(content), attempt=attempt)
                printed[attempt, rank] = printed.get((attempt, rank), b"") + b"".join(content)
        reader.job = replace(reader.job, state=State.SUCCEEDED)
        while not reader.look():
            pass

    expected = {
        source: content.decode().removesuffix("\n").split("\n") for source, content in printed.items()
    }
    assert reader.lines == {source: lines for source, lines in expected.items() if printed[source]}


def test_an_unfinished_line_is_waited_for_until_the_attempt_is_over(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    write(tmp_path, 0, b"one\ntw")

    assert not reader.look()
    assert reader.lines == {(1, 0): ["one"]}
    reader.job = replace(RUNNING, state=State.QUEUED)
    assert not reader.look(), "it may be launched again"
    assert reader.lines == {(1, 0): ["one", "tw"]}


def test_an_attempt_that_began_after_the_job_was_looked_at_has_not_ended(tmp_path: Path) -> None:
    reader = Reader(tmp_path, replace(RUNNING, state=State.QUEUED), View(attempt=2))
    reader.place = LogPosition(attempt=2)

    assert not reader.look()


def test_what_a_reader_costs_does_not_depend_on_how_much_there_is(tmp_path: Path) -> None:
    reader = Reader(tmp_path, replace(RUNNING, state=State.SUCCEEDED))
    for rank in range(3):
        write(tmp_path, rank, b"a line\n" * 2_000_000)
    tracemalloc.start()

    assert not reader.look()

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * FULL
    assert FULL <= len(reader.portions[0]) < 2 * FULL


def test_a_line_without_end_comes_in_pieces(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    write(tmp_path, 0, b"x" * 10_000_000)

    reader.look(portions=100)

    assert max(map(len, reader.portions)) < 2 * FULL
    assert 9_900_000 < len("".join(reader.lines[1, 0])) <= 10_000_000


def test_a_rank_that_prints_without_end_does_not_hold_back_the_others(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    write(tmp_path, 0, b"noise\n" * 1_000_000)
    write(tmp_path, 1, b"important\n")

    reader.look(portions=2)

    assert reader.lines[1, 1] == ["important"]


@pytest.mark.parametrize("text", ["1:0", "1:4", "2:0,7", "3:1,2,3:2", "1:0:0"])
def test_a_place_is_read_as_it_was_written(text: str) -> None:
    assert str(LogPosition.parse(text)) == text
