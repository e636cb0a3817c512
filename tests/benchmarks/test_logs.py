"""How much of what was printed is in a log."""

from __future__ import annotations

import pytest

from benchmarks.logs import share_missing, whole_lines
from benchmarks.uploaded.printing import LINE_BYTES, line

PRINTED = [line(number).encode() for number in range(10)]


def test_every_line_is_another_one_of_the_same_length() -> None:
    assert {len(each) for each in PRINTED} == {LINE_BYTES}
    assert len(set(PRINTED)) == len(PRINTED)


def test_lines_are_put_together_from_blocks_that_end_anywhere() -> None:
    text = b"".join(PRINTED)
    blocks = [text[start : start + 37] for start in range(0, len(text), 37)]

    assert list(whole_lines([*blocks, b"cut off"])) == PRINTED


def test_lines_of_others_do_not_count() -> None:
    assert share_missing([b"rank 0 of 1\n", *PRINTED, b"done\n"], len(PRINTED)) == 0


def test_what_is_missing_is_a_share_of_what_was_printed() -> None:
    assert share_missing(PRINTED[:4] + PRINTED[5:], len(PRINTED)) == pytest.approx(0.1)


def test_other_lines_of_the_same_number_are_no_whole_log() -> None:
    with pytest.raises(RuntimeError, match="but others"):
        share_missing([*PRINTED[:9], PRINTED[3]], len(PRINTED))
