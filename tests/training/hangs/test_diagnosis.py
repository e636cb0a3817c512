"""The diagnosis of a hang from the ranks' files."""

from __future__ import annotations

from pathlib import Path

from sync_bn import _shared_memory
from training.hangs.diagnosis import Hang, hang_report
from training.hangs.rank_files import HangReport, Position, PositionFile, RankFiles
from training.hangs.stack_traces import Frame
from training.run_dir import RunFolder

ENV = "/env/lib/python3.11/site-packages"
USER = Frame("/code/net.py", 12, "forward", "y = wait()")
LIGHTNING = Frame(f"{ENV}/lightning/pytorch/loops/fit_loop.py", 210, "advance", "self.run()")
ALL_REDUCE = Frame(f"{ENV}/torch/distributed/distributed_c10d.py", 2800, "all_reduce", "work.wait()")
ENGINE = Frame(f"{ENV}/torch/autograd/graph.py", 800, "_engine_run_backward", "return run()")
LOADER = Frame(f"{ENV}/torch/utils/data/dataloader.py", 1200, "_try_get_data", "data = get()")


def position(rank: int, *, step: int = 7, collectives: int | None = None) -> Position:
    return Position(
        rank=rank,
        world_size=3,
        host="node",
        pid=100 + rank,
        thread=0xABC,
        step=step,
        doing="train batch 6",
        collectives=collectives,
        limit=30.0,
    )


def report(folder: Path, rank: int, *stack: Frame, step: int = 7, collectives: int | None = None) -> None:
    where = position(rank, step=step, collectives=collectives)
    RankFiles(folder).report(HangReport(position=where, seconds=31.4, stack=stack))


def write_position(folder: Path, where: Position, dump: str = "") -> None:
    file = RankFiles(folder).position_file(where.rank)
    opened = PositionFile(file)
    opened.write(where)
    opened.close()
    file.write_bytes(file.read_bytes() + dump.encode())


def found(folder: Path) -> Hang:
    hang = hang_report(folder)
    assert hang is not None
    return hang


def sentence(folder: Path) -> str:
    return found(folder).message.splitlines()[0]


def test_places_alone_are_no_hang(tmp_path: Path) -> None:
    for rank in range(3):
        write_position(tmp_path, position(rank))

    assert hang_report(tmp_path) is None
    assert hang_report(tmp_path / "none") is None


def test_the_rank_behind_in_collectives_is_to_blame_wherever_it_stands(tmp_path: Path) -> None:
    report(tmp_path, 0, USER, ALL_REDUCE, collectives=40)
    report(tmp_path, 1, LIGHTNING, ENGINE, collectives=39)
    report(tmp_path, 2, LIGHTNING, collectives=40)  # on a GPU, a rank blocks where it reads a value

    assert (found(tmp_path).rank, found(tmp_path).step) == (1, 7)
    assert sentence(tmp_path) == (
        "rank 1 made no progress for 31 s at step 7 (train batch 6): stuck at graph.py:800 in "
        "_engine_run_backward (return run()); "
        "rank 0 waited for it at step 7 (train batch 6) at net.py:12 in forward (y = wait()); "
        "rank 2 waited for it at step 7 (train batch 6) at fit_loop.py:210 in advance (self.run())"
    )


def test_of_ranks_with_as_many_collectives_the_one_that_does_not_wait_is_to_blame(tmp_path: Path) -> None:
    report(tmp_path, 0, USER, ALL_REDUCE, collectives=40)
    report(tmp_path, 1, LIGHTNING, ENGINE, collectives=40)
    report(tmp_path, 2, LIGHTNING, LOADER, collectives=40)

    assert found(tmp_path).rank == 2
    assert "stuck at dataloader.py:1200 in _try_get_data (data = get())" in sentence(tmp_path)


def test_a_rank_that_adds_in_shared_memory_waits(tmp_path: Path) -> None:
    report(tmp_path, 0, USER, Frame(_shared_memory.__file__, 150, "meet", "status = self._meet()"))
    report(tmp_path, 1, LIGHTNING, LOADER)
    report(tmp_path, 2, USER, ALL_REDUCE)

    assert found(tmp_path).rank == 1


def test_of_ranks_that_all_wait_the_one_in_an_earlier_step_is_to_blame(tmp_path: Path) -> None:
    report(tmp_path, 0, USER, ALL_REDUCE)
    report(tmp_path, 1, USER, ALL_REDUCE, step=6)
    report(tmp_path, 2, USER, ALL_REDUCE)

    assert (found(tmp_path).rank, found(tmp_path).step) == (1, 6)


def test_nobody_is_blamed_for_a_collective_that_all_have_entered(tmp_path: Path) -> None:
    for rank in range(3):
        report(tmp_path, rank, USER, ALL_REDUCE, collectives=40)

    assert found(tmp_path).rank is None
    assert sentence(tmp_path).startswith("no rank made progress for 31 s: ranks 0, 1, 2 waited at step 7")
    assert "they wait in the same collective" in sentence(tmp_path)


def test_several_that_are_stuck_alike_are_named_together(tmp_path: Path) -> None:
    report(tmp_path, 0, USER, collectives=40)
    report(tmp_path, 1, USER, ALL_REDUCE, collectives=41)
    report(tmp_path, 2, USER, collectives=40)

    assert found(tmp_path).rank is None
    assert sentence(tmp_path).startswith(
        "ranks 0, 2 made no progress for 31 s at step 7 (train batch 6): stuck"
    )
    assert "; rank 1 waited for them at step 7" in sentence(tmp_path)


def test_a_rank_that_wrote_nothing_at_all_is_named(tmp_path: Path) -> None:
    report(tmp_path, 0, USER, ALL_REDUCE, collectives=2)
    report(tmp_path, 1, USER, ALL_REDUCE, collectives=2)

    assert found(tmp_path).rank == 2
    assert found(tmp_path).step == 7
    assert sentence(tmp_path).startswith("rank 2 did not answer, last heard of before its first sign of life")


def test_the_thread_that_trains_is_found_in_a_dump(tmp_path: Path) -> None:
    dump = """Timeout (0:00:31)!
Thread 0x0000000000000def (most recent call first):
  File "/env/lib/python3.11/threading.py", line 320 in wait

Thread 0x0000000000000abc (most recent call first):
  File "/env/lib/python3.11/re/__init__.py", line 166 in match
  File "/code/net.py", line 9 in parse
"""
    report(tmp_path, 0, USER, ALL_REDUCE, step=8)
    write_position(tmp_path, position(1), dump)
    report(tmp_path, 2, USER, ALL_REDUCE, step=8)

    assert (found(tmp_path).rank, found(tmp_path).step) == (1, 8)  # its own step may be a second old
    assert sentence(tmp_path).startswith(
        "rank 1 made no progress, last heard of at step 7 (train batch 6): stuck at net.py:9 in parse"
    )
    assert '  File "/code/net.py", line 9, in parse\n  File "/env' in found(tmp_path).message


def test_what_an_earlier_start_reported_means_nothing_to_the_next(tmp_path: Path) -> None:
    first, second = (RunFolder(path=tmp_path, start=start) for start in (1, 2))
    first.hang.mkdir(parents=True)
    report(first.hang, 0, USER)

    assert hang_report(first.hang) is not None
    assert hang_report(second.hang) is None
