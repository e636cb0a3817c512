"""How many jobs there are by state, and why those in the queue wait: for operators, by indexed aggregates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, case, func, select, type_coerce
from sqlalchemy.types import NullType

from service.jobs.job import ACTIVE, State
from service.jobs.waiting_reasons import CLASSES, NAMES, OTHER
from service.queue import database
from service.queue.tables import jobs, scheduler


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Numbers of jobs. states: of every state. waiting: of queued jobs, by class of their reason."""

    states: Mapping[State, int]
    waiting: Mapping[str, int]


_CLASS = case(*((jobs.c.reason.like(pattern), name) for name, pattern in CLASSES), else_=OTHER)
_STATES = select(jobs.c.state, func.count()).group_by(jobs.c.state)  # from the index on states alone
_WAITING = select(_CLASS, func.count()).where(jobs.c.state == State.QUEUED).group_by(_CLASS)
_MACHINES = select(
    scheduler.c.number, type_coerce(scheduler.c.nodes, NullType()), scheduler.c.problem
)  # as the driver returns it: it is only compared
_ACTIVE_IDS = select(jobs.c.id).where(jobs.c.state.in_(ACTIVE)).order_by(jobs.c.id)


class StoredCounts:
    """The numbers of jobs. Every method raises `Unavailable` as `Store`'s methods do."""

    _engine: Engine

    def counts(self) -> Counts:
        """Returns the numbers of jobs; a state or class without any has zero."""
        with database.reading(self._engine) as connection:
            states = _states(connection)
            waiting: dict[str, int] = {row[0]: row[1] for row in connection.execute(_WAITING)}
        return Counts(
            states=states,
            waiting={name: waiting.get(name, 0) for name in NAMES},
        )

    def count_states(self) -> dict[State, int]:
        """Returns how many jobs there are of every state. Cheaper than `counts`."""
        with database.reading(self._engine) as connection:
            return _states(connection)

    def machines_text(self) -> str:
        """Returns another text whenever what the scheduler knows of its machines has changed."""
        with database.reading(self._engine) as connection:
            return str(tuple(connection.execute(_MACHINES).first() or ()))

    def active_ids(self, limit: int | None = None) -> list[str]:
        """Returns the ids of the oldest jobs that hold a share of the cluster; `limit` at most if given."""
        with database.reading(self._engine) as connection:
            return list(connection.execute(_ACTIVE_IDS.limit(limit)).scalars())


def _states(connection: Connection) -> dict[State, int]:
    found: dict[State, int] = {State(name): number for name, number in connection.execute(_STATES)}
    return {state: found.get(state, 0) for state in State}
