from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from training.protocol import Progress
from training.tracking.tracker import Eta, Fanout, History, JsonLines, NullTracker


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_metrics_of_one_step_are_one_line_whenever_they_come(tmp_path: Path) -> None:
    tracker = JsonLines(tmp_path / "new" / "metrics.jsonl")
    tracker.log(1, 0, {"train_loss": 2.0, "learning_rate": 0.1})
    tracker.log(2, 0, {"train_loss": 1.0})
    tracker.log(2, 0, {"val_loss": 1.5})
    tracker.log(3, 1, {"train_loss": 0.5})
    tracker.close()

    assert lines(tracker.path) == [
        {"step": 1, "epoch": 0, "train_loss": 2.0, "learning_rate": 0.1},
        {"step": 2, "epoch": 0, "train_loss": 1.0, "val_loss": 1.5},
        {"step": 3, "epoch": 1, "train_loss": 0.5},
    ]


def test_a_step_can_be_read_as_soon_as_the_next_one_begins(tmp_path: Path) -> None:
    tracker = JsonLines(tmp_path / "metrics.jsonl")
    tracker.log(1, 0, {"train_loss": 2.0})
    tracker.log(2, 0, {"train_loss": 1.0})

    assert [row["step"] for row in lines(tracker.path)] == [1]
    assert tracker.history() == {"train_loss": [(1, 2.0), (2, 1.0)]}
    assert tracker.history(("val_", "norm/")) == {}
    tracker.close()


def test_what_was_logged_before_a_sync_is_in_the_file_whenever_the_process_ends(tmp_path: Path) -> None:
    tracker = JsonLines(tmp_path / "metrics.jsonl")
    tracker.sync()
    tracker.log(1, 0, {"train_loss": 2.0})
    tracker.log(2, 0, {"train_loss": 1.0})
    tracker.sync()
    assert lines(tracker.path)[1] == {"step": 2, "epoch": 0, "train_loss": 1.0}
    resumed = JsonLines(Path(shutil.copy(tracker.path, tmp_path / "killed.jsonl")))

    for one in (tracker, resumed):
        one.log(2, 0, {"val_loss": 1.5})
        one.log(3, 0, {"train_loss": 0.5})
        assert one.history() == {"train_loss": [(1, 2.0), (2, 1.0), (3, 0.5)], "val_loss": [(2, 1.5)]}
        one.close()

    assert tracker.path.read_bytes() == resumed.path.read_bytes()
    assert lines(tracker.path)[1:] == [
        {"step": 2, "epoch": 0, "train_loss": 1.0, "val_loss": 1.5},
        {"step": 3, "epoch": 0, "train_loss": 0.5},
    ]


def test_a_resumed_run_does_not_repeat_steps(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = JsonLines(path)
    for step in (1, 2, 3):
        first.log(step, 0, {"train_loss": float(step)})
    first.close()

    second = JsonLines(path)
    for step in (2, 3, 4):
        second.log(step, 0, {"train_loss": float(step)})
    assert second.history() == {"train_loss": [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]}
    second.close()

    assert [row["step"] for row in lines(path)] == [1, 2, 3, 4]


def test_an_interruption_before_the_metrics_of_an_epoch_does_not_lose_them(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = JsonLines(path)
    first.log(1, 0, {"train_loss": 1.0})
    first.log(2, 0, {"train_loss": 2.0})
    first.close()  # ended while it validated

    second = JsonLines(path)
    second.log(2, 0, {"train_loss": 2.0})
    second.log(2, 0, {"val_loss": 0.5})
    second.close()

    assert lines(path)[1:] == [{"step": 2, "epoch": 0, "train_loss": 2.0, "val_loss": 0.5}]


def test_opening_a_file_and_closing_it_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = JsonLines(path)
    first.log(1, 0, {"train_loss": 1.0})
    first.close()
    before = path.read_bytes()

    JsonLines(path).close()

    assert path.read_bytes() == before


@pytest.mark.parametrize("torn", ['{"step": 3, "epo', '{"step": 3, "epoch": 0, "train_loss": 3.0}'])
def test_half_a_line_left_by_a_crash_is_written_over(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = [{"step": step, "epoch": 0, "train_loss": float(step)} for step in (1, 2)]
    path.write_text("".join(json.dumps(row) + "\n" for row in whole) + torn)

    tracker = JsonLines(path)
    for step in (2, 3, 4):
        tracker.log(step, 0, {"train_loss": float(step)})
    tracker.close()

    assert [row["step"] for row in lines(path)] == [1, 2, 3, 4]


def test_what_is_not_a_number_is_null_in_the_file_and_nan_in_the_history(tmp_path: Path) -> None:
    tracker = JsonLines(tmp_path / "metrics.jsonl")
    tracker.log(1, 0, {"val_loss": math.nan, "train_loss": math.inf})
    tracker.log(2, 0, {"val_loss": 1.0})

    assert "NaN" not in tracker.path.read_text()
    assert lines(tracker.path) == [{"step": 1, "epoch": 0, "val_loss": None, "train_loss": None}]
    (step, value), last = tracker.history()["val_loss"]
    tracker.close()
    assert (step, last) == (1, (2, 1.0))
    assert math.isnan(value)


class Recorder(NullTracker):
    """Keeps the names of what was called."""

    def __init__(self, history: History | None = None, *, fails_to_close: bool = False) -> None:
        self.calls: list[str] = []
        self._history, self._fails = history or {}, fails_to_close

    def log(self, *_: object) -> None:
        self.calls.append("log")

    def progress(self, _progress: Progress) -> None:
        self.calls.append("progress")

    def tags(self, tags: Mapping[str, str]) -> None:
        self.calls += tags

    def sync(self) -> None:
        self.calls.append("sync")

    def history(self, prefixes: tuple[str, ...] = ("",)) -> History:
        return {name: points for name, points in self._history.items() if name.startswith(prefixes)}

    def artifact(self, path: Path) -> None:
        self.calls.append(path.name)

    def best(self, points: Mapping[str, tuple[int, float]]) -> None:
        self.calls += points

    def model(self, _model: nn.Module, example: Any, step: int) -> None:
        self.calls.append(f"model {example} {step}")

    def close(self, *, wait: bool = True) -> None:
        self.calls.append("close" if wait else "close in a hurry")
        if self._fails:
            raise TimeoutError


def test_a_fanout_hands_everything_to_all() -> None:
    trackers = [Recorder(), Recorder({"a": [(1, 2.0)]})]
    fanout = Fanout(trackers)

    fanout.log(1, 0, {})
    fanout.progress(Progress(step=1, total_steps=2, epoch=0, eta_seconds=None))
    fanout.tags({"tag": "value"})
    fanout.sync()
    fanout.artifact(Path("figure.png"))
    fanout.best({"val_loss": (1, 0.5)})
    fanout.model(nn.Identity(), 3, 9)
    fanout.close(wait=False)

    assert [tracker.calls for tracker in trackers] == [
        ["log", "progress", "tag", "sync", "figure.png", "val_loss", "model 3 9", "close in a hurry"]
    ] * 2
    assert fanout.history() == {"a": [(1, 2.0)]}
    assert fanout.history(("b", "c")) == {}
    assert Fanout([]).history() == {}


def test_a_tracker_that_fails_to_close_does_not_keep_the_others_open() -> None:
    trackers = [Recorder(fails_to_close=True), Recorder(), Recorder(fails_to_close=True)]

    with pytest.raises(TimeoutError):
        Fanout(trackers).close()

    assert [tracker.calls for tracker in trackers] == [["close"]] * 3


def test_time_left_is_unknown_at_first_and_follows_the_pace() -> None:
    eta = Eta(100)

    assert eta.at(1, 0, now=10.0).eta_seconds is None
    assert eta.at(2, 0, now=12.0) == Progress(step=2, total_steps=100, epoch=0, eta_seconds=196.0)
    for step in range(3, 100):
        eta.at(step, 0, now=12.0 + 0.5 * (step - 2))
    assert eta.at(100, 0, now=61.5).eta_seconds == 0.0


def test_a_slow_start_is_forgotten() -> None:
    eta = Eta(1000)
    eta.at(1, 0, now=0.0)
    eta.at(2, 0, now=60.0)
    for step in range(3, 203):
        left = eta.at(step, 0, now=60.0 + step).eta_seconds

    assert left is not None
    assert left == pytest.approx(798, rel=0.01)


def test_a_resumed_run_counts_from_where_it_stands() -> None:
    eta = Eta(100)
    eta.at(51, 3, now=0.0)

    assert eta.at(52, 3, now=1.0).eta_seconds == 48.0


def test_without_a_known_end_there_is_no_time_left() -> None:
    eta = Eta(None)
    eta.at(1, 0, now=0.0)

    assert eta.at(2, 0, now=1.0) == Progress(step=2, total_steps=None, epoch=0, eta_seconds=None)
