"""Pages of a log by byte offset, and the search in it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import Refused
from service.job_logs import ArchivedLog
from service.web import log_pages
from service.web.log_pages import Found, LogPage, cleaned, matcher

CONTENT = st.lists(
    st.sampled_from([b"\n", b"a", b"bc", "é".encode(), "🚀".encode(), b"\xff", b"long line "])
).map(b"".join)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Portions that a short text fills."""
    monkeypatch.setattr(log_pages, "LINES", 3)
    monkeypatch.setattr(log_pages, "SEARCHED", 16)


def log_of(content: bytes) -> ArchivedLog:
    return ArchivedLog(attempt=1, content=content)


def offsets(content: bytes) -> list[int]:
    """Where the complete lines begin."""
    found, at = [], 0
    for line in content.split(b"\n")[:-1]:
        found.append(at)
        at += len(line) + 1
    return found


def forward(log: ArchivedLog) -> list[LogPage]:
    pages = [log_pages.page_after(log, 0)]
    while pages[-1].lines:
        pages.append(log_pages.page_after(log, pages[-1].end))
    return pages


def backward(log: ArchivedLog) -> list[LogPage]:
    pages = [log_pages.page_before(log, 2**53)]
    while pages[-1].start:
        assert pages[-1].lines or len(pages) == 1
        pages.append(log_pages.page_before(log, pages[-1].start))
    return pages


@settings(max_examples=50)
@given(CONTENT)
def test_all_lines_come_once_in_both_directions(content: bytes) -> None:
    log, expected = log_of(content), content.decode(errors="replace").split("\n")

    ahead, back = forward(log), backward(log)

    for pages in (ahead, back[::-1]):
        lines = [line for page in pages for line in page.lines]
        assert [line.text for line in lines] == expected[:-1]
        assert [line.at for line in lines] == offsets(content)
        assert all(len(page.lines) <= 3 for page in pages)
    assert ahead[-1].rest == back[0].rest == expected[-1]


@given(CONTENT, st.integers(0, 60))
def test_a_byte_is_on_the_first_line_of_its_page(content: bytes, at: int) -> None:
    page = log_pages.page_at(log_of(content), at)

    before = [each for each in (*offsets(content), content.rfind(b"\n") + 1) if each <= at]
    assert page.start == before[-1]


def test_a_line_longer_than_a_page_comes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"begin\n" + "é".encode() * 100_000 + b"\nend\n"
    log = log_of(content)
    monkeypatch.setattr(log_pages, "LINES", 1000)

    for pages in (forward(log), backward(log)[::-1]):
        texts = [line.text for page in pages for line in page.lines]
        assert "".join(texts) == content.decode().replace("\n", "")
        assert max(map(len, texts)) <= 2**16


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[1;31mred\x1b[0m text\x1b[K", "red text"),
        ("\x1b]0;title\x07after\x1b]8;;http://a\x1b\\link", "afterlink"),
        ("10 %\r20 %\r30 %\r\n", "30 %\n"),
        ("a\x00\x08b\tc\x7f\n", "ab\tc\n"),
        ("ä\x00\x08b\tc\x7f\x9b\n", "äb\tc\n"),
        ("safe\u202egnol\u2066", "safegnol"),
        ("\x1b[31", "31"),
        ("<b>&amp;", "<b>&amp;"),
    ],
)
def test_what_a_terminal_would_not_print_is_not_shown(text: str, shown: str) -> None:
    assert cleaned(text) == shown


def search(log: ArchivedLog, text: str, *, regex: bool = False, back: bool = False, at: int = 0) -> Found:
    """Goes on from portion to portion."""
    find, most = matcher(text, regex=regex), 1000
    step = log_pages.search_before if back else log_pages.search_after
    found = step(log, at, find)
    while found.at is None and not found.done and (most := most - 1):
        found = step(log, found.position, find)
    return found


@pytest.mark.parametrize("regex", [False, True])
@settings(max_examples=50)
@given(content=CONTENT, data=st.data())
def test_the_search_finds_the_next_and_the_previous_line(
    content: bytes, regex: bool, data: st.DataObject
) -> None:
    log, raw = log_of(content), content.split(b"\n")
    lines = [line.decode(errors="replace") for line in (raw if raw[-1] else raw[:-1])]
    begins = [*offsets(content), content.rfind(b"\n") + 1][: len(lines)]
    matching = [at for at, line in zip(begins, lines, strict=True) if "bc" in line]
    start = data.draw(st.sampled_from([0, *begins, len(content)]))

    ahead = search(log, "BC", regex=regex, at=start)
    back = search(log, "BC", regex=regex, back=True, at=start)

    # A line that is longer than a portion is searched in pieces.
    if all(len(line) < 16 for line in raw):
        assert ahead.at == min((at for at in matching if at >= start), default=None)
        assert back.at == max((at for at in matching if at < start), default=None)
    assert ahead.done or ahead.at is not None
    assert back.done or back.at is not None


def test_a_portion_is_bounded_and_says_how_far_it_went() -> None:
    log = log_of(b"0123456\n" * 10)

    found = log_pages.search_after(log, 0, matcher("nothing", regex=False))

    assert found == Found(at=None, position=16, done=False, size=80)


def test_an_expression_is_of_re2_and_a_wrong_one_is_refused() -> None:
    assert list(matcher("loss=[0-9.]+$", regex=True)(["x", "LOSS=0.5"])) == [1]
    assert list(matcher("(a+)+b", regex=True)(["a" * 100_000])) == []
    with pytest.raises(Refused, match="not a regular expression"):
        matcher("(a", regex=True)
    with pytest.raises(Refused):
        matcher(r"(a)\1", regex=True)
