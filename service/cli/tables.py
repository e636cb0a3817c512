"""Tables of one line a row, as wide as the terminal: columns of less worth go, then long cells are cut."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

Cell = str | Text
_GAP = 2  # cells between two columns
_WORD = 12  # cells; less of a cell says nothing
_MEASURED = 500  # characters: measuring the width of each takes time
_BOLD = Style(bold=True)
_UNSURE = dict.fromkeys((*range(65024, 65040), *range(127995, 128000)))
"""Selectors of variants and colours of skin, which terminals draw in different widths: they are left out."""


class Cut(enum.Enum):
    """Which part of a long cell goes."""

    END = "end"
    MIDDLE = "middle"
    BEGIN = "begin"


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table.

    worth: of two columns, the one that is worth less goes first; of equal ones the last. least: cells to
    which its content may be cut; None: never cut. cut: which part goes then.
    """

    name: str
    worth: int = 0
    least: int | None = None
    cut: Cut = Cut.END


class Table:
    """Rows under a header. On a terminal each row is one line, and none is wider than the terminal.

    In a pipe every column is there and no cell is cut.
    """

    def __init__(self, columns: Sequence[Column], rows: Iterable[Sequence[Cell]]) -> None:
        self._columns = columns
        self._rows = [[_single_line(cell) for cell in row] for row in rows]
        cells = zip(*self._rows, strict=True) if self._rows else ((),) * len(columns)
        self._natural = [
            max([cell_len(column.name), *(_width(_sure(str(cell))) for cell in below)])
            for column, below in zip(columns, cells, strict=True)
        ]

    def hidden(self, screen: Console) -> list[str]:
        """Returns the names of the columns with content for which the screen has no room."""
        shown = {number for number, _ in self._fitted(screen.width, screen.is_terminal)}
        return [
            column.name
            for number, column in enumerate(self._columns)
            if number not in shown and self._has_content(number)
        ]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = self._fitted(options.max_width, console.is_terminal)
        yield from self._line([Text(column.name, _BOLD) for column in self._columns], widths, console)
        for row in self._rows:
            yield from self._line(row, widths, console)

    def _line(
        self, row: Sequence[Cell], widths: Sequence[tuple[int, int]], console: Console
    ) -> Iterator[Segment]:
        last = max((place for place, (number, _) in enumerate(widths) if str(row[number])), default=-1)
        for place, (number, width) in enumerate(widths[: last + 1]):
            cell = row[number]
            text = str(cell)
            if console.is_terminal:
                text = shortened(text, width, self._columns[number].cut)
            style = console.get_style(cell.style) if isinstance(cell, Text) else None
            yield Segment(text, style)
            if place < last:
                yield Segment(" " * (width - cell_len(text) + _GAP))
        yield Segment.line()

    def _fitted(self, available: int, on_terminal: bool) -> list[tuple[int, int]]:
        """Returns the columns that are shown, by number from 0, and how wide each is."""
        numbers = [n for n in range(len(self._columns)) if not on_terminal or self._has_content(n)]
        while len(numbers) > 2 and self._total(numbers) > available:
            numbers.remove(min(reversed(numbers), key=lambda n: self._columns[n].worth))
        widths = {n: self._least(n) for n in numbers}
        self._narrow_last(widths, available)
        spare = available - sum(widths.values()) - _GAP * (len(widths) - 1)
        while spare > 0 and (short := [n for n in widths if widths[n] < self._natural[n]]):
            share = max(1, spare // len(short))
            for n in short:
                more = min(share, spare, self._natural[n] - widths[n])
                widths[n] += more
                spare -= more
        return [(n, min(width, available)) for n, width in widths.items()]

    def _narrow_last(self, widths: dict[int, int], available: int) -> None:
        """Cuts the lesser of two columns that have no room to what is left; drops it if that is little."""
        if len(widths) != 2 or self._total(list(widths)) <= available:
            return
        lesser = min(reversed(widths), key=lambda n: self._columns[n].worth)
        room = available - _GAP - sum(width for n, width in widths.items() if n != lesser)
        if self._columns[lesser].least is not None and room >= _WORD:
            widths[lesser] = room
        else:
            del widths[lesser]

    def _total(self, numbers: Sequence[int]) -> int:
        return sum(map(self._least, numbers)) + _GAP * (len(numbers) - 1)

    def _least(self, number: int) -> int:
        column = self._columns[number]
        if column.least is None:
            return self._natural[number]
        return min(self._natural[number], max(column.least, cell_len(column.name)))

    def _has_content(self, number: int) -> bool:
        return not self._rows or any(str(row[number]) for row in self._rows)


def shortened(text: str, width: int, cut: Cut = Cut.END) -> str:
    """Returns the text in at most `width` cells, with … where some of it is left out."""
    text = _sure(text)
    if _width(text) <= width:
        return text
    if width < 2:
        return "…"[:width]
    if cut is Cut.END:
        return f"{_begin(text[: _MEASURED + width], width - 1)}…"
    if cut is Cut.BEGIN:
        return f"…{_end(text, width - 1)}"
    end = (width - 1) // 2
    return f"{_begin(text, width - 1 - end)}…{_end(text, end)}"


def _begin(text: str, width: int) -> str:
    return set_cell_size(text, width).rstrip()


def _end(text: str, width: int) -> str:
    """Returns the last characters that fit; none that joins the one before it comes first."""
    begin = len(text)
    while begin and cell_len(text[begin - 1 :]) <= width:
        begin -= 1
    while begin < len(text) and not cell_len(text[begin]):
        begin += 1
    return text[begin:].lstrip()


def _single_line(cell: Cell) -> Cell:
    if isinstance(cell, Text):
        return cell
    if not cell.isprintable():
        cell = "".join(char if char.isprintable() else " " for char in cell)
    return cell.strip()


def _sure(text: str) -> str:
    """Returns the text without what terminals draw in different widths."""
    return text if text.isascii() else text.translate(_UNSURE)


def _width(text: str) -> int:
    """Returns the cells of a text; beyond what a terminal can show, its characters."""
    return len(text) if text.isascii() else cell_len(text[:_MEASURED]) + len(text[_MEASURED:])
