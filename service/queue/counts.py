"""How many jobs there are by state, and why those in the queue wait: for operators, by indexed aggregates."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from sqlalchemy import Engine, case, func, select

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
_MOMENT = (
    select(jobs.c.id, jobs.c.reason, jobs.c.progress).where(jobs.c.state.in_(ACTIVE)).order_by(jobs.c.id)
)
_ACTIVE = select(jobs.c.id, jobs.c.reason, jobs.c.progress).where(jobs.c.state.in_(ACTIVE))
_MACHINES = select(scheduler.c.number, scheduler.c.nodes, scheduler.c.problem)
_ACTIVE_IDS = select(jobs.c.id).order_by(jobs.c.id)


class StoredCounts:
    """The numbers of jobs. Every method raises `Unavailable` as `Store`'s methods do."""

    _engine: Engine

    def counts(self) -> Counts:
        """Returns the numbers of jobs; a state or class without any has zero."""
        with database.reading(self._engine) as connection:
            states: dict[State, int] = {State(name): number for name, number in connection.execute(_STATES)}
            waiting: dict[str, int] = {row[0]: row[1] for row in connection.execute(_WAITING)}
        return Counts(
            states={state: states.get(state, 0) for state in State},
            waiting={name: waiting.get(name, 0) for name in NAMES},
        )

    def moment(self) -> Hashable:
        """Returns a value that is another one whenever a running job or a machine has changed."""
        with database.reading(self._engine) as connection:
            active = tuple(
                f"{row.id} {row.reason} {row.progress}"
                for row in connection.execute(_ACTIVE.order_by(jobs.c.id))
            )
            return active, str(connection.execute(_MACHINES).first())

    def active_ids(self, limit: int) -> list[str]:
        """Returns the ids of the oldest jobs that hold a share of the cluster, at most `limit`."""
        with database.reading(self._engine) as connection:
            query = _ACTIVE_IDS.where(jobs.c.state.in_(ACTIVE)).limit(limit)
            return list(connection.execute(query).scalars())
