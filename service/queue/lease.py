"""The scheduler's lease: one row, kept alive by its holder's heartbeat, taken over when the beat stops.

A standby watches `number` and `beat`. It takes over when neither has changed for LEASE_SECONDS of its own
monotonic clock, or at once when the row is vacant. Clocks of different machines are never compared for this.
The row holds the queue's clock, too, which its holder moves on by its monotonic clock.
`number` rises with each holder. It is the fencing token: every write of a scheduler (`Store.as_scheduler`)
and every order carries it, and database and agents refuse those of an older one.
"""

from __future__ import annotations

import math
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from time import monotonic
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Float, bindparam, exc, func, insert, select, update

from service.backends.cluster import Node
from service.errors import Unavailable
from service.queue import database
from service.queue.tables import UtcDateTime, scheduler
from training.protocol import Superseded
from training.versions import own_versions

LEASE_SECONDS = 6.0
SILENCE_SECONDS = 15.0
"""A scheduler whose last heartbeat is older than this is reported as not running."""

_THE_ROW = 1
_NOW = func.current_timestamp(type_=UtcDateTime())  # the database's clock: a reader's clock may differ
# Races closed by its conditions: a scheduler that was suspended for longer than its lease and wakes up, and
# the last beat of one that is stepping down. Neither delays another from taking over. Built once, because an
# idle scheduler does little else.
_BEAT = (
    update(scheduler)
    .where(scheduler.c.number == bindparam("of"), scheduler.c.holder != "")
    .values(
        beat=scheduler.c.beat + 1,
        nodes=bindparam("now_nodes"),
        problem=bindparam("now_problem"),
        seen_at=_NOW,
        clock=func.coalesce(bindparam("now_clock", type_=Float), scheduler.c.clock),
    )
)
# Race closed: a scheduler that was suspended for longer than its lease, and writes when it wakes up. The lock
# on the row lasts until the writer's transaction ends, so no other takes over between this and the commit.
# SQLite has one writer at a time and needs no lock on a row.
_HELD = (
    select(scheduler.c.number)
    .where(scheduler.c.number == bindparam("of"), scheduler.c.holder != "")
    .with_for_update(read=True)
)
HOW_TO_START = "start one with `syncbn serve --role scheduler`"


@dataclass(frozen=True, kw_only=True)
class SchedulerRow:
    """The scheduler's row, as last written by its holder.

    queue: a unique name of this queue, because several queues may share one Ray cluster.
    number: the holder's number, from 1 (the fencing token). beat: its heartbeats so far. seen_at: the time of
    the last heartbeat; silent_seconds: its age (`Silence`). holder: the holder's process, "" after it has
    stepped down. nodes: the machines as Ray last listed them. problem: why Ray does not answer, or "".
    clock: the queue's clock: for how many seconds schedulers have been at work so far. It stands still while
    none is, and no step of a wall clock moves it.
    versions: of the holder's Python and packages; none of an older version.
    """

    queue: str
    number: int
    beat: int
    seen_at: datetime
    silent_seconds: float = field(compare=False)
    holder: str
    nodes: tuple[Node, ...]
    problem: str
    clock: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def vacant(self) -> bool:
        """Whether no scheduler holds the lease: a standby may take over at once."""
        return not self.holder


class Silence:
    """For how long a scheduler has been silent, as this process sees it. Thread-safe.

    It is measured by the monotonic clock from when the row was seen to change. The database's clock only says
    when between two looks it changed, so a step of that clock is forgotten with the next heartbeat.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._beat: tuple[int, int] | None = None
        self._since, self._looked_at = 0.0, -math.inf

    def seconds(self, beat: tuple[int, int], *, age: float) -> float:
        """Returns the seconds since the latest beat. beat: its scheduler's number and its own, just read.

        age: the age of the beat by the database's clock.
        """
        with self._lock:
            now = self._clock()
            if beat != self._beat:
                self._beat, self._since = beat, now - min(max(age, 0.0), now - self._looked_at)
            self._looked_at = now
            return now - self._since


def check_heard(row: SchedulerRow | None, how_to_start: str = HOW_TO_START) -> SchedulerRow:
    """Returns the row. Raises Unavailable if no scheduler is running, with `how_to_start` one."""
    if row is not None and absence(row) is None:
        return row
    raise Unavailable("the scheduler", f"{absence(row)}: {how_to_start}")


def absence(row: SchedulerRow | None) -> str | None:
    """Returns in words that no scheduler is running; None if one is."""
    if row is None:
        return "no scheduler runs, and none ever has"
    if row.silent_seconds > SILENCE_SECONDS:
        return f"no scheduler runs, the last one has not been heard from for {_duration(row.silent_seconds)}"
    return None


def machines(row: SchedulerRow | None) -> tuple[Node, ...]:
    """Returns the machines of the cluster.

    Raises Unavailable if no scheduler is running, or if Ray does not answer the scheduler.
    """
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


def hold(connection: Connection, number: int) -> None:
    """Makes a transaction one of scheduler `number`: nobody takes over from it before the transaction ends.

    Raises Superseded if it does not hold the lease.
    """
    if connection.execute(_HELD, {"of": number}).first() is None:
        raise Superseded(f"scheduler number {number} does not hold the lease any more")


class Lease:
    """The scheduler's row in the database. Every method raises `Unavailable` as `Store`'s methods do."""

    _engine: Engine
    _silence: Silence

    def scheduler(self) -> SchedulerRow | None:
        """Returns the row; None if no scheduler has ever run on this database."""
        with database.reading(self._engine) as connection:
            row = connection.execute(select(scheduler, _NOW.label("now"))).one_or_none()
        if row is None:
            return None
        return SchedulerRow(
            queue=row.queue,
            number=row.number,
            beat=row.beat,
            seen_at=row.seen_at,
            silent_seconds=self._silence.seconds(
                (row.number, row.beat), age=(row.now - row.seen_at).total_seconds()
            ),
            holder=row.holder,
            nodes=tuple(Node(**node) for node in row.nodes),
            problem=row.problem,
            clock=row.clock,
            versions=row.versions,
        )

    def take_over(self, seen: SchedulerRow | None, holder: str) -> int | None:
        """Makes `holder` the scheduler and returns its number; None if the row has changed since `seen`."""
        assert holder
        if seen is None:
            return 1 if self._create_scheduler(holder) else None
        # Race closed: two standbys that saw the same silence, or a holder that beats again at that moment.
        guards = [scheduler.c.number == seen.number, scheduler.c.beat == seen.beat]
        number = seen.number + 1
        return (
            number
            if self._update_scheduler(guards, number=number, beat=0, holder=holder, versions=own_versions())
            else None
        )

    def beat(self, number: int, *, nodes: Iterable[Node], problem: str, clock: float | None = None) -> bool:
        """Writes a heartbeat of scheduler `number`; returns False if it no longer holds the lease.

        clock: what the queue's clock shows; None: as before.
        """
        values = {
            "of": number,
            "now_nodes": [asdict(node) for node in nodes],
            "now_problem": problem,
            "now_clock": clock,
        }
        with database.writing(self._engine) as connection:
            return connection.execute(_BEAT, values).rowcount == 1

    def step_down(self, number: int) -> None:
        """Makes the row vacant. Does nothing if another scheduler has taken over."""
        self._update_scheduler([scheduler.c.number == number], holder="")  # Race closed: as in `beat`

    def _create_scheduler(self, holder: str) -> bool:
        first = {
            "number": 1,
            "beat": 0,
            "holder": holder,
            "nodes": [],
            "problem": "",
            "versions": own_versions(),
        }
        row = {"id": _THE_ROW, "queue": secrets.token_hex(8), **first}
        try:
            with database.writing(self._engine) as connection:
                connection.execute(insert(scheduler).values({**row, "seen_at": _NOW}))
        except exc.IntegrityError:
            return False  # Race closed: two schedulers on a new database; the primary key lets one in.
        return True

    def _update_scheduler(self, guards: Iterable[ColumnElement[bool]], **values: Any) -> bool:
        statement = update(scheduler).where(*guards).values({**values, "seen_at": _NOW})
        with database.writing(self._engine) as connection:
            return connection.execute(statement).rowcount == 1
