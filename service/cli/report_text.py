"""A report as Markdown, and as one HTML file that needs no other. Pure."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from html import escape

from service.cli.sweep_report import Block, Code, Heading, Paragraph, Picture, Rows

_STYLE = """
body { font-family: system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid #ddd; padding: .3rem .8rem; text-align: left }
img { max-width: 100% }
pre { background: #f6f6f6; overflow-x: auto; padding: 1rem }
""".strip()
_MARKED = re.compile(r"([\\`*_{}\[\]<>|#])")


def markdown(blocks: Iterable[Block]) -> str:
    """Returns the report without its figures, which are in the HTML file."""
    shown = [block for block in blocks if not isinstance(block, Picture)]
    parts = [
        _markdown(block)
        for block, after in zip(shown, [*shown[1:], None], strict=True)
        if not (isinstance(block, Heading) and block.level > 1 and isinstance(after, Heading | None))
    ]
    return "\n\n".join(parts) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading():
            return f"{'#' * block.level} {_escaped(block.text)}"
        case Paragraph():
            return _escaped(block.text)
        case Rows():
            return "\n".join(
                [_line(block.columns), _line(["---"] * len(block.columns)), *map(_cells, block.rows)]
            )
        case Code():
            return f"```yaml\n{block.text}\n```"
        case Picture():
            return ""


def _cells(row: Sequence[str]) -> str:
    return _line(list(map(_escaped, row)))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    return _MARKED.sub(r"\\\1", text)


def html(blocks: Iterable[Block], title: str) -> str:
    """Returns the report with its figures as one file."""
    head = f'<meta charset="utf-8">\n<title>{escape(title)}</title>\n<style>\n{_STYLE}\n</style>'
    body = "\n".join(map(_html, blocks))
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'


def _html(block: Block) -> str:
    match block:
        case Heading():
            return f"<h{block.level}>{escape(block.text)}</h{block.level}>"
        case Paragraph():
            return f"<p>{escape(block.text)}</p>"
        case Rows():
            rows = [_row("th", block.columns), *(_row("td", row) for row in block.rows)]
            return "\n".join(["<table>", *rows, "</table>"])
        case Code():
            return f"<pre>{escape(block.text)}</pre>"
        case Picture():
            data = base64.b64encode(block.png).decode()
            return f'<img alt="{escape(block.title)}" src="data:image/png;base64,{data}">'


def _row(kind: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{kind}>{escape(cell)}</{kind}>' for cell in cells)}</tr>"
