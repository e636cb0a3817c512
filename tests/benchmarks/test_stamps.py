"""Times of steps, from stamps that are given."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.stamps import Stamp, first_after, read, seconds_by_step, seconds_of_a_save


def stamps(*moments: tuple[int, float, int]) -> list[Stamp]:
    return [Stamp(*moment) for moment in moments]


def test_a_line_that_is_being_written_is_not_read_yet(tmp_path: Path) -> None:
    (tmp_path / "stamps").write_text("1 10.5 2\n2 11.25 2\n3 12.0")

    assert read(tmp_path / "stamps") == stamps((1, 10.5, 2), (2, 11.25, 2))
    assert read(tmp_path / "none") == []


def test_a_step_lasts_until_the_next_begins_but_for_where_training_started_again() -> None:
    lost_and_made_again = stamps((1, 0, 2), (2, 1, 2), (3, 3, 2), (3, 50, 2), (4, 51, 2))
    resized = stamps((4, 51, 2), (5, 90, 1), (6, 92, 1))

    assert seconds_by_step(lost_and_made_again, after=1) == {2: 2, 3: 1}
    assert seconds_by_step(resized) == {5: 2}


def test_a_save_is_what_the_steps_that_have_one_take_longer() -> None:
    seconds = {step: 1.5 if step % 3 == 0 else 1.0 for step in range(1, 10)}

    assert seconds_of_a_save(seconds, every=3) == pytest.approx(0.5)


def test_the_first_step_after_a_moment_may_have_to_be_one_of_so_many_workers() -> None:
    found = stamps((1, 1, 2), (2, 2, 2), (3, 3, 1))

    assert first_after(found, 1.0) == found[1]
    assert first_after(found, 1.0, workers=1) == found[2]
    assert first_after(found, 3.0) is None
