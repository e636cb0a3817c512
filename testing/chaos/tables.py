"""The table of a run, as text. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_SHOWN = 20


def as_text(title: str, rows: Sequence[tuple[str, object]], findings: Mapping[str, Sequence[str]]) -> str:
    """Returns the rows, how many findings there are of each kind, and the first of them.

    >>> print(as_text("chaos", [("jobs", 2)], {"lost": ["j1 is not there"]}))
    chaos
      jobs       2
      lost       1
      lost: j1 is not there
    """
    rows = [*rows, *((name, len(found)) for name, found in findings.items())]
    width = max(len(name) for name, _ in rows)
    lines = [title, *(f"  {name:<{width}} {value!s:>7}" for name, value in rows)]
    for name, found in findings.items():
        lines += [f"  {name}: {what}" for what in found[:_SHOWN]]
    return "\n".join(lines)
