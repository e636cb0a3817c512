"""What is asked for on the command line, with a benchmark that measures nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from benchmarks import __main__ as command_line
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
    return names


def test_without_names_all_run_three_times(asked: list[tuple[str, Options]], written: list[str]) -> None:
    assert command_line.main([]) == 0

    assert asked == [(f"benchmarks.{name}", Options(repeats=3)) for name in command_line.BENCHMARKS]
    assert written == [*command_line.BENCHMARKS]


def test_a_quick_run_writes_nothing(asked: list[tuple[str, Options]], written: list[str]) -> None:
    assert command_line.main(["tracking", "--quick"]) == 0

    assert asked == [("benchmarks.tracking", Options(repeats=1, quick=True))]
    assert written == []


@pytest.mark.parametrize("wrong", [["nothing"], ["--repeats", "0"], ["--repeats", "x"]])
def test_a_wrong_argument_is_named(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command_line.main(wrong)

    assert f"got {wrong[-1]}" in capsys.readouterr().err
