"""What is asked for on the command line, with a benchmark that measures nothing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import __main__ as command_line
from benchmarks import figures
from benchmarks.result import Options, comparison


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Options]]:
    """The benchmarks that were run, with their options."""
    runs: list[tuple[str, Options]] = []

    def load(module: str) -> SimpleNamespace:
        def measure(options: Options) -> object:
            runs.append((module, options))
            return comparison("Nothing", {"x": {"a": [1.0]}}, reference="a", notes=[])

        return SimpleNamespace(measure=measure)

    monkeypatch.setattr(command_line, "import_module", load)
    return runs


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    monkeypatch.setattr(command_line, "write", lambda name, *_, **__: names.append(name))
    monkeypatch.setattr(figures, "write", lambda: names.append("the page of figures"))
    return names


def test_without_names_all_run_three_times(asked: list[tuple[str, Options]], written: list[str]) -> None:
    assert command_line.main([]) == 0

    assert asked == [(f"benchmarks.{name}", Options(repeats=3)) for name in command_line.BENCHMARKS]
    assert written == [*command_line.BENCHMARKS, "the page of figures"]


def test_an_earlier_version_is_a_checkout_of_this_project(
    asked: list[tuple[str, Options]], written: list[str], tmp_path: Path
) -> None:
    (tmp_path / "training").mkdir()

    command_line.main(["verify", "--before", str(tmp_path)])

    assert asked == [("benchmarks.verify", Options(before=tmp_path))]
    assert written == ["verify", "the page of figures"]


def test_an_earlier_version_runs_with_its_kernels_or_not_at_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("training", "sync_bn"):
        (tmp_path / folder).mkdir()
    (tmp_path / "sync_bn" / "_kernels.cpp").touch()

    with pytest.raises(SystemExit, match="2"):
        command_line.main(["verify", "--before", str(tmp_path)])

    assert "has no compiled kernels" in capsys.readouterr().err


def test_a_quick_run_writes_nothing(asked: list[tuple[str, Options]], written: list[str]) -> None:
    assert command_line.main(["tracking", "--quick"]) == 0

    assert asked == [("benchmarks.tracking", Options(repeats=1, quick=True))]
    assert written == []


@pytest.mark.parametrize(
    "wrong", [["nothing"], ["--repeats", "0"], ["--repeats", "x"], ["--before", "nowhere"]]
)
def test_a_wrong_argument_is_named(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command_line.main(wrong)

    assert f"got {wrong[-1]}" in capsys.readouterr().err
