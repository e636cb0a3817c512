from __future__ import annotations

import pytest

from benchmarks import progress as module
from benchmarks.progress import Progress, progress


def test_without_rich_there_are_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _name: None)

    with progress("measuring", 2) as shown:
        shown.doing("a")
        shown.done("a took long")

    assert type(shown) is Progress
    assert capsys.readouterr().err == "measuring: a\nmeasuring 1/2: a took long\n"


def test_with_rich_the_lines_are_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich", reason="the bar is drawn by rich")

    with progress("measuring", 2) as shown:
        shown.doing("a")
        shown.done("a took long")

    assert type(shown) is not Progress
    lines = [line.rstrip() for line in capsys.readouterr().err.splitlines()]
    assert {"measuring: a", "measuring 1/2: a took long"} <= set(lines)
