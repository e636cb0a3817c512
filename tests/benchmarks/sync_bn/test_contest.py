from __future__ import annotations

import pytest
import torch

from benchmarks.sync_bn.cases import Case, every_format
from benchmarks.sync_bn.contest import Contest, Timed

CONTEST = Contest(title="Who", ours="we", peers=("they",), beside=("more",), goals={"they": 0.5})


def timed(shape: str, group: str, ours: float, theirs: float) -> Timed:
    """Three rounds, one of them disturbed."""
    samples = {"we": [ours, ours, 99.0], "they": [theirs, 99.0, theirs], "more": [1.0, 1.0, 1.0]}
    return Timed(shape=shape, group=group, milliseconds=samples)


def test_rows_have_medians_and_their_ratio_and_each_group_a_geometric_mean() -> None:
    result = CONTEST.table(
        [timed("small", "A", 1.0, 4.0), timed("large", "A", 4.0, 4.0), timed("small", "B", 3.0, 2.0)], []
    )

    assert result.columns == ["input", "group", "we, ms", "they, ms", "ratio", "more, ms"]
    assert result.rows == [
        ("small", "A", "1.00", "4.00", "0.25", "1.00"),
        ("large", "A", "4.00", "4.00", "1.00", "1.00"),
        ("small", "B", "3.00", "2.00", "1.50", "1.00"),
        ("geometric mean", "A", "", "", "0.50", ""),
        ("geometric mean", "B", "", "", "1.50", ""),
    ]


def test_a_goal_is_said_to_be_met_by_as_many_as_meet_it() -> None:
    groups = {"A": 1.0, "B": 0.5, "C": 6.0}
    result = CONTEST.table([timed("small", group, ours, 4.0) for group, ours in groups.items()], ["A note."])

    assert result.notes == [
        "A note.",
        "Goal: at most 0.5 × they. Met by 2 of 3 geometric means, of which the highest is 1.50, and by 2 "
        "of 3 inputs.",
    ]


def test_a_contest_is_held_over_every_case(capsys: pytest.CaptureFixture[str]) -> None:
    cases = [Case(batch=1, channels=2, side=3), Case(batch=4, channels=2, side=3)]

    rows = CONTEST.hold(cases, lambda case: {"we": [case.batch], "they": [2.0], "more": [0.0]})

    assert [(row.shape, row.group) for row in rows] == [
        ("(1, 2, 3, 3)", "float32 contiguous"),
        ("(4, 2, 3, 3)", "float32 contiguous"),
    ]
    assert [row.ratio("we", "they") for row in rows] == [0.5, 2.0]
    assert "Who 2/2: 2.00 × they" in capsys.readouterr().err


def test_every_shape_comes_in_every_format_with_a_batch_that_memory_allows() -> None:
    cases = list(every_format([(8, 4), (2048, 112)]))

    assert len(cases) == 8
    assert {case.batch for case in cases if case.channels == 8} == {16}
    assert all(case.bytes / case.dtype.itemsize <= 13_000_000 for case in cases)
    assert {case.tensor(seed=0).dtype for case in cases[::2]} == {torch.float32, torch.bfloat16}
    assert cases[2].tensor(seed=0).is_contiguous(memory_format=torch.channels_last)
