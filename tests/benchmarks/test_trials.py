"""Contestants that measure nothing, in turns."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from benchmarks.progress import Progress
from benchmarks.result import Options
from benchmarks.trials import in_turns, runs


@pytest.mark.parametrize(
    ("options", "order"),
    [(Options(repeats=2), "abababab"[:6]), (Options(repeats=2, quick=True), "abab")],
)
def test_each_has_its_turn_and_warm_ups_do_not_count(
    options: Options, order: str, capsys: pytest.CaptureFixture[str]
) -> None:
    turns: list[str] = []

    def contestant(name: str) -> Mapping[str, float]:
        turns.append(name)
        return {"turn": float(len(turns))}

    contestants = {name: (lambda name=name: contestant(name)) for name in "ab"}
    samples = in_turns(Progress("turns", runs(contestants, options)), contestants, options, rest=0.0)

    assert "".join(turns) == order
    counted = range(len(order) - 4, len(order))
    assert samples == {"turn": {"a": [counted[0] + 1, counted[2] + 1], "b": [counted[1] + 1, counted[3] + 1]}}
    assert f"turns {len(order)}/{len(order)}: b: turn" in capsys.readouterr().err


def test_a_measure_may_be_of_one_contestant_alone() -> None:
    contestants = {"a": lambda: {"x": 1.0}, "b": lambda: {"y": 2.0}}

    samples = in_turns(Progress("turns", 2), contestants, Options(repeats=1, quick=True), rest=0.0)

    assert samples == {"x": {"a": [1.0]}, "y": {"b": [2.0]}}
