"""The page of figures, from results that are given."""

from __future__ import annotations

from typing import Any

from benchmarks import figures


def result(samples: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    return {
        "title": "A title",
        "samples": samples,
        "machine": {"cores": "2", "load before": "0.1", "load after": "1.2"},
    }


def test_a_figure_stands_beside_each_peer_with_the_ratio_of_medians() -> None:
    text = figures.text(
        {
            "startup": result({"submit to end, s": {"ours": [3.0, 1.0, 2.0], "bare Ray": [8.0]}}),
            "head": result({"memory, MiB": {"ours": [250.0], "bare Ray": [500.0], "before": [1000.0]}}),
            "logs": result({"missing, %": {"ours": [0.0], "bare Ray": [0.0]}}),
        }
    )

    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert [row.split(" | ")[:4] for row in rows] == [
        ["| submit to end", "2.00 s", "bare Ray: 8.00 s", "0.25"],
        ["| memory", "250 MiB", "bare Ray: 500 MiB", "0.50"],
        ["| memory", "250 MiB", "before: 1000 MiB", "0.25"],
        ["| missing", "0.00 %", "bare Ray: 0.00 %", "-"],
    ]
    assert "Machine: cores 2." in text
    assert "startup 0.1 and 1.2, head 0.1 and 1.2, logs" in text


def test_a_measure_without_a_peer_stands_alone() -> None:
    text = figures.text(
        {"answers": result({"GET, median, ms": {"ours": [4.0]}, "to its end, s": {"up": [1.0]}})}
    )

    link = "[A title](../../benchmarks/results/answers.md)"
    assert f"| GET, median | 4.00 ms |  |  | {link} |\n| up, to its end | 1.00 s |  |  | {link} |" in text


def test_the_page_is_that_of_the_results() -> None:
    assert figures.PAGE.read_text() == figures.text(figures.read())
