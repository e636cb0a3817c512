from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import job_logs
from service.backends.memory_tracking import FakeResults
from service.errors import Unavailable
from service.job_logs import ArchivedLog, JobLogs, LogFile, View, lines_in, tail_offset
from service.jobs.job import Job, State
from training.protocol import log_file

CONTENT = st.lists(
    st.sampled_from([b"\n", b"\r", b"a", b"bc", "é".encode(), "🚀".encode(), b"\xff", b"\0"])
).map(b"".join)


@pytest.fixture
def results() -> FakeResults:
    return FakeResults()


def make_job(**changes: Any) -> Job:
    job: dict[str, Any] = {
        "id": "j1",
        "name": "net",
        "state": State.RUNNING,
        "spec": {},
        "created_at": datetime.now(UTC),
        "attempt": 1,
        "start": 1,
    }
    return Job(**{**job, **changes})


def write(storage: Path, attempt: int, rank: int, content: bytes = b"") -> Path:
    path = log_file(storage / "j1", attempt, rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def archived(content: bytes) -> ArchivedLog:
    return ArchivedLog(attempt=1, content=content)


# Lines


def read_lines(content: bytes, *, last: bool) -> tuple[list[str], int]:
    """As a reader does that comes again and again."""
    found, offset = [], 0
    while True:
        before, data = offset, content[offset : offset + job_logs.CHUNK + 1]
        for line, end in lines_in(data, last=last and len(data) <= job_logs.CHUNK):
            found.append(line)
            offset = before + end
        if offset == before:
            return found, offset


@given(content=CONTENT)
def test_lines_are_those_between_newlines_and_the_unfinished_one_comes_last(content: bytes) -> None:
    whole, ended = read_lines(content, last=False)
    every, end = read_lines(content, last=True)

    *expected, rest = content.decode(errors="replace").split("\n")
    assert whole == expected
    assert ended == content.rfind(b"\n") + 1
    assert every == expected + ([rest] if rest else [])
    assert end == len(content)


@given(content=CONTENT)
def test_a_long_line_comes_in_pieces_that_cut_no_character(content: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job_logs, "CHUNK", 4)
        pieces, end = read_lines(content, last=True)

    assert all(len(piece.encode(errors="replace").replace("\ufffd".encode(), b"?")) <= 4 for piece in pieces)
    assert "".join(pieces) == content.replace(b"\n", b"").decode(errors="replace")
    assert end == len(content)


def test_a_line_of_just_the_longest_size_is_one_line() -> None:
    assert list(lines_in(b"x" * job_logs.CHUNK + b"\n", last=False)) == [
        ("x" * job_logs.CHUNK, job_logs.CHUNK + 1)
    ]


# The end of a log


@given(content=CONTENT, lines=st.integers(min_value=0, max_value=9), chunk=st.integers(1, 9))
def test_a_tail_is_the_last_lines(content: bytes, lines: int, chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job_logs, "CHUNK", chunk)
        offset = tail_offset(archived(content), lines)

    every = content.removesuffix(b"\n").split(b"\n") if content else []
    expected = b"\n".join(every[max(len(every) - lines, 0) :])
    assert content[offset:].removesuffix(b"\n") == expected


def test_the_tail_of_a_large_log_costs_what_the_tail_is_long(tmp_path: Path) -> None:
    read: list[int] = []

    class Counted(LogFile):
        def read(self, offset: int, limit: int) -> bytes:
            read.append(limit)
            return super().read(offset, limit)

    path = write(tmp_path, 1, 0)
    with path.open("wb") as file:
        file.truncate(2**40)
        file.seek(0, os.SEEK_END)
        file.write(b"\none\ntwo\n")

    assert tail_offset(Counted(attempt=1, rank=0, path=path), 2) == 2**40 + 1
    assert sum(read) <= job_logs.CHUNK


# Where logs are


def test_an_attempts_logs_are_its_ranks_files_by_number(tmp_path: Path, results: FakeResults) -> None:
    for rank in (10, 2, 0):
        write(tmp_path, 1, rank)
    for name in ("rank-1.log.tmp", "rank-.log", "rank-01.log", "other"):
        (tmp_path / "j1/logs/attempt-1" / name).touch()
    logs = JobLogs(str(tmp_path), results)

    assert [log.rank for log in logs.of(make_job(), 1)] == [0, 2, 10]
    assert [log.rank for log in logs.of(make_job(), 1, rank=2)] == [2]
    assert logs.of(make_job(), 1, rank=1) == []


def test_the_latest_log_is_of_the_last_attempt_that_has_printed(tmp_path: Path, results: FakeResults) -> None:
    write(tmp_path, 1, 0, b"one")
    write(tmp_path, 2, 0, b"two")
    write(tmp_path, 2, 1)
    write(tmp_path, 3, 0)
    logs, job = JobLogs(str(tmp_path), results), make_job(attempt=4)

    assert logs.latest(job, View()) == 2
    assert logs.latest(job, View(rank=1)) is None
    assert logs.latest(job, View(attempt=1)) == 1
    assert logs.latest(job, View(attempt=3)) is None


def test_a_link_is_not_followed(tmp_path: Path, results: FakeResults) -> None:
    """Whoever trains may write here, and is not the one who may read what this process may."""
    secret = tmp_path / "secret"
    secret.write_text("password")
    path = write(tmp_path, 1, 0)
    path.unlink()
    path.symlink_to(secret)

    assert JobLogs(str(tmp_path), results).of(make_job(), 1) == []
    with pytest.raises(Unavailable):
        LogFile(attempt=1, rank=0, path=path).read(0, 10)


def test_a_pipe_in_the_place_of_a_log_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rank-0.log")

    with pytest.raises(Unavailable):
        LogFile(attempt=1, rank=0, path=tmp_path / "rank-0.log").read(0, 10)


def test_a_storage_that_is_not_there_is_not_an_empty_log(tmp_path: Path, results: FakeResults) -> None:
    logs = JobLogs(str(tmp_path / "not mounted"), results)

    with pytest.raises(Unavailable, match=r"the run folder is not reachable: .*not mounted: No such file"):
        logs.of(make_job(), 1)


def test_a_folder_that_cannot_be_read_is_not_an_empty_log(tmp_path: Path, results: FakeResults) -> None:
    (tmp_path / "j1").write_text("no folder")

    with pytest.raises(Unavailable, match="Not a directory"):
        JobLogs(str(tmp_path), results).of(make_job(), 1)


# Attempts of older versions


def archive(results: FakeResults, attempt: int, text: str) -> dict[str, Any]:
    run = results.ensure_run(job_id="j1", name="net", experiment="default")
    results.upload(run, f"logs/attempt-{attempt}.log", text)
    return {"experiment_id": run.experiment_id, "run_id": run.run_id}


def test_an_older_versions_log_is_the_archived_one(tmp_path: Path, results: FakeResults) -> None:
    run = archive(results, 1, "old\n")
    write(tmp_path, 2, 0, b"new\n")
    logs, job = JobLogs(str(tmp_path), results), make_job(attempt=2, **run)

    assert logs.of(job, 1) == [ArchivedLog(attempt=1, content=b"old\n")]
    assert logs.of(job, 1, rank=0) == []
    assert [log.rank for log in logs.of(job, 2)] == [0]


def test_an_archived_log_is_fetched_once(tmp_path: Path, results: FakeResults) -> None:
    run = archive(results, 1, "old\n")
    logs, job = JobLogs(str(tmp_path), results), make_job(state=State.PAUSED, start=0, **run)
    first = logs.of(job, 1)
    results.unreachable = True

    assert logs.of(job, 1) == first


def test_the_tracking_server_is_asked_only_for_what_may_be_so_old(
    tmp_path: Path, results: FakeResults
) -> None:
    run = archive(results, 1, "old\n")
    results.unreachable = True
    logs = JobLogs(str(tmp_path), results)

    assert logs.of(make_job(state=State.CANCELLED, **run), 1) == [], (
        "this version placed it, and it never ran"
    )
    assert logs.of(make_job(start=0, **run), 1) == [], "its log is not archived yet"
    with pytest.raises(Unavailable, match="MLflow"):
        logs.of(make_job(state=State.FAILED, start=0, **run), 1)
    write(tmp_path, 1, 0)
    assert logs.of(make_job(attempt=3, **run), 2) == [], "an earlier one has its own folder"


def test_a_folder_or_a_pipe_in_the_place_of_a_log_is_none(tmp_path: Path, results: FakeResults) -> None:
    folder, pipe, log = (write(tmp_path, 1, rank) for rank in range(3))
    folder.unlink()
    folder.mkdir()
    pipe.unlink()
    os.mkfifo(pipe)

    found = JobLogs(str(tmp_path), results).of(make_job(), 1)

    assert [each.path for each in found if isinstance(each, LogFile)] == [log]
