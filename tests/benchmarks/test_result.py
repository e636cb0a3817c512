"""The table and the files of a benchmark, from figures that are given."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from benchmarks.machine import describe
from benchmarks.result import Result, as_text, comparison, write

SAMPLES = {"time, s": {"ours": [3.0, 1.0, 2.0], "theirs": [4.0, 4.0, 8.0]}}


def test_comparison_gives_medians_ranges_and_the_ratio_of_medians() -> None:
    result = comparison("Times", SAMPLES, reference="theirs", notes=[])

    assert result.rows == [
        ("time, s", "ours", "2.00", "1.00", "3.00", "0.50"),
        ("time, s", "theirs", "4.00", "4.00", "8.00", "1.00"),
    ]


def test_a_reference_of_nothing_has_no_ratio() -> None:
    result = comparison("Times", {"time, s": {"ours": [1.0], "theirs": [1e-6]}}, reference="theirs", notes=[])

    assert [row[-1] for row in result.rows] == ["-", "-"]


def test_a_measure_without_the_reference_has_no_ratio_and_without_any_there_is_no_such_column() -> None:
    samples = {"time, s": {"ours": [1.0]}, "size": {"ours": [1.0], "theirs": [2.0]}}

    beside = comparison("Times", samples, reference="theirs", notes=[])
    alone = comparison("Times", samples, reference=None, notes=[])

    assert [row[-1] for row in beside.rows] == ["-", "0.50", "1.00"]
    assert alone.columns[-1] == "maximum"
    assert alone.rows[0] == ("time, s", "ours", "1.00", "1.00", "1.00")


def test_both_files_hold_the_table_the_command_and_the_machine(tmp_path: Path) -> None:
    samples = defaultdict(dict, SAMPLES)
    result = comparison("Times", samples, reference="theirs", notes=["A note."])

    write("times", result, command="python -m benchmarks times", machine={"CPU": "one"}, folder=tmp_path)

    facts = json.loads((tmp_path / "times.json").read_text())
    assert facts["samples"] == SAMPLES
    assert facts["machine"] == {"CPU": "one"}
    assert (tmp_path / "times.md").read_text() == (
        "# Times\n\n"
        "| measure | contestant | median | minimum | maximum | ratio to theirs |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| time, s | ours | 2.00 | 1.00 | 3.00 | 0.50 |\n"
        "| time, s | theirs | 4.00 | 4.00 | 8.00 | 1.00 |\n\n"
        "- A note.\n\n"
        "Command: `python -m benchmarks times`\n\n"
        "Machine: CPU one\n"
    )


PARTS = Result(
    title="All",
    notes=["A note on all."],
    parts=[
        Result(title="One", columns=("name", "ms"), rows=[("longer", "1"), ("b", "22")]),
        Result(title="Two", columns=("x",), rows=[("y",)], samples={"time": {"ours": [1.0]}}),
    ],
)


def test_parts_follow_under_headings_of_their_own(tmp_path: Path) -> None:
    write("all", PARTS, command="c", machine={"CPU": "one"}, folder=tmp_path)

    assert (tmp_path / "all.md").read_text() == (
        "# All\n\n- A note on all.\n\n"
        "## One\n\n| name | ms |\n| --- | --- |\n| longer | 1 |\n| b | 22 |\n\n"
        "## Two\n\n| x |\n| --- |\n| y |\n\n"
        "Command: `c`\n\nMachine: CPU one\n"
    )
    assert [part["title"] for part in json.loads((tmp_path / "all.json").read_text())["parts"]] == [
        "One",
        "Two",
    ]


def test_a_terminal_gets_columns_below_each_other() -> None:
    assert (
        as_text(PARTS) == "All\n\n- A note on all.\n\nOne\n\nname    ms\nlonger  1\nb       22\n\nTwo\n\nx\ny"
    )


def test_the_machine_is_described_without_its_name() -> None:
    facts = describe()

    assert facts.keys() >= {"CPU", "cores", "memory", "OS", "Python", "torch", "ray"}
    assert all(facts.values())
