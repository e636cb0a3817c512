"""A parser of server-sent events (WHATWG HTML, section 9.2)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Event:
    """One server-sent event. `data` is empty for an event that only carries an id."""

    name: str
    id: str
    data: str


OPEN = Event(name="open", id="", data="")
"""Stands for the beginning of a stream, before its first event."""


def events(chunks: Iterable[str]) -> Iterator[Event]:
    """Yields each complete event of a response's text; an event cut off by a lost connection is dropped.

    An event with an id and no data is yielded too: it gives a position in the stream.
    """
    fields: dict[str, str] = {}
    data: list[str] = []
    for line in _lines(chunks):
        if line:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                data.append(value)
            elif name:  # an empty name is a comment: the server's heartbeat
                fields[name] = value
            continue
        if data or "id" in fields:
            yield Event(name=fields.get("event", "message"), id=fields.get("id", ""), data="\n".join(data))
        fields, data = {}, []


def _lines(chunks: Iterable[str]) -> Iterator[str]:
    """Splits at newlines only: str.splitlines would also split at a form feed or a Unicode separator."""
    rest = ""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split("\n")
        yield from (line.removesuffix("\r") for line in lines)
