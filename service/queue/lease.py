"""Which scheduler works: one row, kept alive by its holder, taken over by another when it falls silent.

A standby looks at `number` and `beat`, and takes over when neither has changed for LEASE_SECONDS of its own
monotonic clock, or at once when the row is vacant. Nobody compares the clocks of two machines for that. The
number rises with each holder; orders carry it, so that those of an earlier one are refused.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Engine, exc, func, insert, select, update

from service.backends.cluster import Node
from service.errors import Unavailable
from service.queue import database
from service.queue.tables import UtcDateTime, scheduler

LEASE_SECONDS = 6.0
SILENCE_SECONDS = 15.0
"""A scheduler that has not been heard of for so long is said not to run."""

_THE_ROW = 1
_NOW = func.current_timestamp(type_=UtcDateTime())  # the database's clock: readers may have another one
_HOW_TO_START = "start one with `syncbn serve --role scheduler`"


@dataclass(frozen=True, kw_only=True)
class SchedulerRow:
    """What the scheduler has last said of itself.

    queue: a name that this queue alone has, made with it: several may share one Ray cluster.
    number: of all that have held the row, from 1. silent_seconds: since then. holder: in words, "" when the
    last one has stepped down. nodes: as Ray last named them. problem: why Ray does not answer, or "".
    """

    queue: str
    number: int
    beat: int
    seen_at: datetime
    silent_seconds: float = field(compare=False)
    holder: str
    nodes: tuple[Node, ...]
    problem: str

    @property
    def vacant(self) -> bool:
        """Whether nobody holds it: whoever stands by may take over at once."""
        return not self.holder


def check_heard(row: SchedulerRow | None) -> SchedulerRow:
    """The row of a scheduler that works. Raises Unavailable if there is none."""
    if row is None:
        raise Unavailable("the scheduler", f"no scheduler runs, and none ever has: {_HOW_TO_START}")
    if row.silent_seconds > SILENCE_SECONDS:
        silence = f"the last one has not been heard of for {_duration(row.silent_seconds)}"
        raise Unavailable("the scheduler", f"no scheduler runs, {silence}: {_HOW_TO_START}")
    return row


def machines(row: SchedulerRow | None) -> tuple[Node, ...]:
    """The machines of the cluster. Raises Unavailable if no scheduler works, or Ray does not answer it."""
    row = check_heard(row)
    if row.problem:
        raise Unavailable("Ray", row.problem.removeprefix("Ray is not reachable: "))
    return row.nodes


def _duration(seconds: float) -> str:
    """
    >>> _duration(23.4), _duration(600), _duration(86_400)
    ('23 s', '10 min', '24 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


class Lease:
    """The scheduler's row in the database. Every method raises `Unavailable` as those of `Store` do."""

    _engine: Engine

    def scheduler(self) -> SchedulerRow | None:
        """None: no scheduler has ever run on this database."""
        with database.reading(self._engine) as connection:
            row = connection.execute(select(scheduler, _NOW.label("now"))).one_or_none()
        if row is None:
            return None
        return SchedulerRow(
            queue=row.queue,
            number=row.number,
            beat=row.beat,
            seen_at=row.seen_at,
            silent_seconds=(row.now - row.seen_at).total_seconds(),
            holder=row.holder,
            nodes=tuple(Node(**node) for node in row.nodes),
            problem=row.problem,
        )

    def take_over(self, seen: SchedulerRow | None, holder: str) -> int | None:
        """Makes `holder` the scheduler; returns its number. None: somebody has moved since `seen`."""
        assert holder
        if seen is None:
            return 1 if self._create_scheduler(holder) else None
        # Race closed: two standbys that saw the same silence, or a holder that beats again in that moment.
        guards = [scheduler.c.number == seen.number, scheduler.c.beat == seen.beat]
        number = seen.number + 1
        return number if self._update_scheduler(guards, number=number, beat=0, holder=holder) else None

    def beat(self, number: int, *, nodes: Iterable[Node], problem: str) -> bool:
        """Says that the scheduler of that number works. False: another has taken over, or it stepped down."""
        # Race closed: a scheduler that stood still for longer than its lease and wakes up, and the last beat
        # of one that steps down: neither keeps another from taking over.
        guards = [scheduler.c.number == number, scheduler.c.holder != ""]
        return self._update_scheduler(
            guards, beat=scheduler.c.beat + 1, nodes=[asdict(node) for node in nodes], problem=problem
        )

    def step_down(self, number: int) -> None:
        """Leaves the row vacant. Harmless when another has taken over."""
        self._update_scheduler([scheduler.c.number == number], holder="")  # Race closed: as for a beat

    def _create_scheduler(self, holder: str) -> bool:
        first = {"number": 1, "beat": 0, "holder": holder, "nodes": [], "problem": ""}
        row = {"id": _THE_ROW, "queue": secrets.token_hex(8), **first}
        try:
            with database.writing(self._engine) as connection:
                connection.execute(insert(scheduler).values({**row, "seen_at": _NOW}))
        except exc.IntegrityError:
            return False  # Race closed: two schedulers on a new database. The primary key lets one in.
        return True

    def _update_scheduler(self, guards: Iterable[ColumnElement[bool]], **values: Any) -> bool:
        statement = update(scheduler).where(*guards).values({**values, "seen_at": _NOW})
        with database.writing(self._engine) as connection:
            return connection.execute(statement).rowcount == 1
