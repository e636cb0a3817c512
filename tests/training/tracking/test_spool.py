from __future__ import annotations

import math
import resource
import shutil
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testing.warm import warm
from tests.training.worlds import PRELOAD
from training.protocol import Point
from training.tracking import spool as module
from training.tracking.spool import Spool


def point(step: int, name: str = "train_loss") -> Point:
    return Point(name, 1 / step, 1_700_000_000_000 + step, step)


def taken(spool: Spool, most: int = 7) -> list[Point]:
    """Everything, acknowledged as it goes."""
    found: list[Point] = []
    while (batch := spool.peek(most)).points:
        found += batch.points
        spool.acknowledge(batch)
    return found


@contextmanager
def opened(path: Path | None) -> Iterator[Spool]:
    spool = Spool(path)
    try:
        yield spool
    finally:
        spool.close()


@contextmanager
def files_no_longer_than(size: int) -> Iterator[None]:
    """The kernel refuses what goes beyond, after writing what fits: as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(params=["in a file", "in memory"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "run" / "spool" if request.param == "in a file" else None


def test_points_come_out_as_they_went_in_until_they_are_acknowledged(path: Path | None) -> None:
    given = [point(step) for step in range(1, 51)]
    given += [Point("val loss/ä b", value, 5, 50) for value in (math.inf, -math.inf, 1e-310, 0.1 + 0.2)]
    with opened(path) as spool:
        for one in given:
            spool.append(one)

        assert len(spool) == 54
        assert spool.peek(9) == spool.peek(9)
        assert spool.peek(9).points == given[:9]
        assert taken(spool) == given
        assert len(spool) == 0
        spool.append(Point("val_loss", math.nan, 6, 51))
        (last,) = taken(spool)
        assert math.isnan(last.value)


def test_what_was_not_acknowledged_is_there_after_a_restart_with_the_time_it_had(tmp_path: Path) -> None:
    with opened(tmp_path / "spool") as first:
        for step in range(1, 21):
            first.append(point(step))
        first.append(point(20, "val_loss"))
        first.acknowledge(first.peek(8))

    with opened(tmp_path / "spool") as second:
        assert len(second) == 13
        assert second.last_steps == {"train_loss": 20, "val_loss": 20}
        second.append(point(21))
        assert taken(second) == [
            *(point(step) for step in range(9, 21)),
            point(20, "val_loss"),
            point(21),
        ]


@pytest.mark.parametrize("note", [None, b"", b"17\n", b"99999999\n", b"nothing"])
def test_where_it_is_not_known_what_was_acknowledged_all_is_sent_again(
    tmp_path: Path, note: bytes | None
) -> None:
    given = [point(step) for step in range(1, 21)]
    with opened(tmp_path / "spool") as first:
        for one in given:
            first.append(one)
        assert taken(first) == given
    noted = tmp_path / "spool.sent"
    noted.unlink()
    if note is not None:
        noted.write_bytes(note)

    with opened(tmp_path / "spool") as second:
        assert len(second) == 20
        assert taken(second) == given


@pytest.mark.parametrize(
    "torn", ["1700000000003 3 0.3", "1700000000003 3 0.3 train_loss", "17", "\0" * 40, "\0\0\n3 4 5.0 x\n"]
)
def test_half_a_line_left_by_a_crash_is_cut_off(tmp_path: Path, torn: str) -> None:
    with opened(tmp_path / "spool") as first:
        first.append(point(1))
        first.append(point(2))
    with (tmp_path / "spool").open("a") as file:
        file.write(torn)

    with opened(tmp_path / "spool") as second:
        assert second.last_steps == {"train_loss": 2}
        second.append(point(3))
        assert taken(second) == [point(1), point(2), point(3)]


def test_a_full_disk_costs_no_point_and_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "spool"
    with opened(path) as spool:
        spool.append(point(1))
        spool.flush()
        with files_no_longer_than(path.stat().st_size + 20):  # half a line fits
            for step in range(2, 12):
                spool.append(point(step))
                spool.sync()
            assert path.read_text().count("\n") == 1
            assert path.read_text().endswith("\n")
            for expected in (point(1), point(2)):  # from the file, then past it
                batch = spool.peek(1)
                assert batch.points == [expected]
                spool.acknowledge(batch)
            waiting = spool.peek(3)
            assert waiting.points == [point(step) for step in (3, 4, 5)]

        spool.sync()  # there is room again, while MLflow is being sent these three

        assert path.read_text().count("\n") == 10
        spool.acknowledge(waiting)
        assert taken(spool) == [point(step) for step in range(3, 12)]  # some a second time, but none missing
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_where_no_file_can_be_made_points_stay_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with opened(tmp_path / "file" / "spool") as spool:
        spool.append(point(1))
        spool.sync()

        assert taken(spool) == [point(1)]
    assert "kept in memory" in caplog.text


def test_the_file_is_emptied_when_it_is_large_and_all_was_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TRUNCATE_BYTES", 1000)
    path = tmp_path / "spool"
    with opened(path) as spool:
        for step in range(1, 101):
            spool.append(point(step))
        first = spool.peek(99)
        spool.acknowledge(first)
        assert path.stat().st_size > 1000
        spool.acknowledge(spool.peek(99))
        assert path.stat().st_size == 0

        for step in range(1, 101):  # as long as those before
            spool.append(point(step))
        spool.sync()
    with opened(path) as spool:
        assert taken(spool) == [point(step) for step in range(1, 101)]


def test_points_that_wait_for_days_wait_in_the_file_and_not_in_memory(tmp_path: Path) -> None:
    with opened(tmp_path / "spool") as spool:
        tracemalloc.start()
        for step in range(1, 50_001):
            spool.append(point(step))
            if step % 1000 == 0:
                spool.flush()
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()

        assert len(spool) == 50_000
        assert held < 500_000  # bytes: less than 10 a point


def _log_until_killed(path: Path, synced: Connection) -> None:
    spool = Spool(path)
    step = 0
    while True:
        for _ in range(500):
            step += 1
            spool.append(point(step))
        spool.sync()
        synced.send(step)


def test_a_kill_costs_nothing_that_was_synced(tmp_path: Path) -> None:
    context = warm(*PRELOAD)
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_log_until_killed, args=(tmp_path / "spool", there))
    process.start()
    there.close()
    seen = [here.recv() for _ in range(20)]
    process.kill()
    process.join()
    while here.poll():
        try:
            seen.append(here.recv())
        except EOFError:
            break

    with opened(tmp_path / "spool") as spool:
        found = taken(spool, 999)
    assert len(found) >= seen[-1]
    assert found == [point(step) for step in range(1, len(found) + 1)]


@given(
    st.lists(st.sampled_from(["log", "log", "log", "flush", "send", "lose the answer", "crash"]), max_size=60)
)
def test_whatever_happens_every_point_arrives_once_and_in_order(events: list[str]) -> None:
    steps, received = 0, list[Point]()
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = folder / "0" / "spool"
        spool = Spool(path)
        for number, event in enumerate([*events, "end"], start=1):
            if event == "log":
                steps += 1
                spool.append(point(steps))
            elif event == "flush":
                spool.flush()
            elif event in {"send", "lose the answer"}:
                batch = spool.peek(2)
                received += [one for one in batch.points if one not in received]  # MLflow keeps one of equals
                if event == "send":
                    spool.acknowledge(batch)
            elif event == "crash":  # the files as they are at this moment are what the next process finds
                path = shutil.copytree(path.parent, folder / str(number)) / "spool"
                spool.close()
                spool = Spool(path)
                for step in range(spool.last_steps.get("train_loss", 0) + 1, steps + 1):
                    spool.append(point(step))  # computed again
        received += [one for one in taken(spool) if one not in received]
        spool.close()

    assert received == [point(step) for step in range(1, steps + 1)]
