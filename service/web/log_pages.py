"""Pages of a log by byte offset, and the search for a line; each reads a bounded part of the file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from service.errors import Refused
from service.escapes import without_controls, without_sequences
from service.job_logs import CHUNK, Log, lines_in
from training.spec import Problem

LINES = 1000
"""Maximum number of lines in a page; its bytes are at most CHUNK."""
SEARCHED = 1 << 22
"""Maximum number of bytes that one search reads."""

Matcher = Callable[[Sequence[str]], Iterable[int]]
"""Returns the indices of the lines that match, in order."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line as it is shown. at: its offset in the log."""

    at: int
    text: str


@dataclass(frozen=True, kw_only=True)
class LogPage:
    """Lines that follow each other, from byte `start` to byte `end` of a log of `size` bytes.

    rest: what follows the last line at the end of the log, a line that is not complete yet.
    """

    lines: list[Line]
    start: int
    end: int
    size: int
    rest: str = ""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search has found. at: the offset of the line; None: nothing yet.

    position: up to where it has searched. done: whether that is the end, or the beginning, of the log.
    """

    at: int | None
    position: int
    done: bool
    size: int


def page_after(log: Log, offset: int) -> LogPage:
    """Returns the page that begins at this offset, which is that of a line."""
    size = log.size()
    return _page(log.read(offset, CHUNK + 1), offset, size)


def page_before(log: Log, offset: int) -> LogPage:
    """Returns the page that ends at this offset: that of a line, or the size of the log."""
    size = log.size()
    end = min(offset, size)
    start = max(end - CHUNK, 0)
    data = log.read(start, end - start)
    skipped = _to_first_line(data) if start else 0
    skipped = max(skipped, _last_lines(data))
    # A page that does not end with a newline has the beginning of a long line.
    return _page(data[skipped:], start + skipped, size, last=end < size)


def page_at(log: Log, offset: int) -> LogPage:
    """Returns the page that begins with the line to which this byte belongs."""
    size = log.size()
    offset = min(offset, size)
    start = max(offset - CHUNK, 0)
    data = log.read(start, offset - start)
    if newline := data.rfind(b"\n") + 1:
        begin = start + newline
    else:
        begin = start + (_whole_character(data) if start else 0)
    return page_after(log, begin)


def cleaned(text: str) -> str:
    """Returns lines as a terminal would show them in the end, as plain text.

    Without escape sequences, control characters, and what a carriage return overwrites. Keeps the number of
    lines.

    >>> cleaned("\\x1b[31mred\\x1b[0m\\n 10 %\\r 20 %\\r\\n")
    'red\\n 20 %\\n'
    """
    text = without_sequences(text)
    if "\r" in text:
        text = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    return without_controls(text)


def matcher(text: str, *, regex: bool) -> Matcher:
    """Returns what finds a text, or a regular expression of RE2, in lines; neither heeds the case.

    RE2, because it takes time in proportion to the text for every expression. Raises Refused for one that is
    not valid.
    """
    if not regex:
        wanted = text.casefold()
        return lambda lines: (i for i, line in enumerate(lines) if wanted in line.casefold())
    # Only whoever searches so waits for the import.
    import pyarrow
    import pyarrow.compute

    def found(lines: Sequence[str]) -> Iterable[int]:
        array = pyarrow.array(lines, type=pyarrow.string())
        matches = pyarrow.compute.match_substring_regex(array, pattern=text, ignore_case=True)
        return (i for i, is_match in enumerate(matches.to_pylist()) if is_match)

    try:
        found([""])
    except pyarrow.ArrowInvalid as error:
        why = str(error).removeprefix("Invalid regular expression: ")
        problem = Problem(key="text", message=f"is not a regular expression (of RE2): {why}")
        raise Refused(f"{text!r} {problem.message}", [problem]) from None
    return found


def search_after(log: Log, offset: int, find: Matcher) -> Found:
    """Searches a portion from this offset on, which is that of a line, for the first match."""
    size = log.size()
    data = log.read(offset, SEARCHED)
    if offset + len(data) < size:
        # The last line is searched with the next portion; a longer one in pieces.
        data = data[: data.rfind(b"\n") + 1] or data
    end = offset + len(data)
    index = next(iter(find(_lines(data))), None)
    at = None if index is None else offset + _offset(data, index)
    return Found(at=at, position=end, done=end >= size, size=size)


def search_before(log: Log, offset: int, find: Matcher) -> Found:
    """Searches a portion up to this offset, which is that of a line or the size, for the last match."""
    size = log.size()
    end = min(offset, size)
    start = max(end - SEARCHED, 0)
    data = log.read(start, end - start)
    skipped = _to_first_line(data) if start else 0
    data, start = data[skipped:], start + skipped
    indices = list(find(_lines(data)))
    at = start + _offset(data, indices[-1]) if indices else None
    return Found(at=at, position=start, done=start == 0, size=size)


def _page(data: bytes, start: int, size: int, *, last: bool = False) -> LogPage:
    lines, end = [], 0
    for text, after in islice(lines_in(data, last=last), LINES):
        lines.append(Line(at=start + end, text=cleaned(text)))
        end = after
    is_last = start + len(data) >= size and len(data) - end <= CHUNK and data.find(b"\n", end) < 0
    rest = cleaned(data[end:].decode(errors="replace")) if is_last else ""
    return LogPage(lines=lines, start=start, end=start + end, size=size, rest=rest)


def _lines(data: bytes) -> list[str]:
    """Returns the lines. What follows the last newline is a line if it is not empty."""
    lines = cleaned(data.decode(errors="replace")).split("\n")
    return lines if lines[-1] else lines[:-1]


def _offset(data: bytes, index: int) -> int:
    """Returns the offset of the line with this index."""
    offset = 0
    for _ in range(index):
        offset = data.index(b"\n", offset) + 1
    return offset


def _last_lines(data: bytes) -> int:
    """Returns where the last LINES lines begin; what follows the last newline is none of them."""
    position = len(data)
    for _ in range(LINES + 1):
        if (position := data.rfind(b"\n", 0, position)) < 0:
            return 0
    return position + 1


def _to_first_line(data: bytes) -> int:
    """Returns where the first line begins that is complete; where the first character does if none is."""
    begin = data.find(b"\n") + 1
    return begin if 0 < begin < len(data) else _whole_character(data)


def _whole_character(data: bytes) -> int:
    """Returns where the first character begins."""
    return next((i for i, byte in enumerate(data[:4]) if byte & 0xC0 != 0x80), 0)
