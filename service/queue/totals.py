"""Totals for operators: numbers that only grow, by name and labels. Schedulers add to them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping

from sqlalchemy import Connection, func, select
from sqlalchemy.dialects import postgresql, sqlite

from service.jobs.measures import DEVICE_SECONDS, Addition
from service.queue import database
from service.queue.tables import totals
from service.queue.writes import Writes

MOST_SERIES = 500
"""Maximum number of users and experiments, together, with totals of their own; further ones share "other"."""
_OTHER = {"user": "other", "experiment": "other"}


class StoredTotals(Writes):
    """The totals in the database. Every method raises `Unavailable` as `Store`'s methods do."""

    def add_totals(self, additions: Iterable[Addition]) -> None:
        """Adds to the totals, in a transaction of its own. Raises Superseded as every scheduler's write."""
        if found := list(additions):
            with self._writing() as connection:
                add(connection, found)

    def totals(self) -> list[Addition]:
        """Returns all totals."""
        with database.reading(self._engine) as connection:
            rows = connection.execute(select(totals).order_by(totals.c.name, totals.c.labels)).all()
        return [Addition(name=row.name, value=row.value, labels=json.loads(row.labels)) for row in rows]


def add(connection: Connection, additions: Iterable[Addition]) -> None:
    """Adds to the totals in the connection's transaction."""
    sums: dict[tuple[str, str], float] = defaultdict(float)
    for each in additions:
        sums[each.name, _written(_bounded(connection, each))] += each.value
    # Sorted: the fixed lock order prevents deadlocks between two schedulers.
    rows = [{"name": name, "labels": labels, "value": sums[name, labels]} for name, labels in sorted(sums)]
    if not rows:
        return
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = insert(totals)
    # Race closed: two schedulers that add at once. The addition is done in the statement.
    grown = {"value": totals.c.value + statement.excluded.value}
    connection.execute(statement.on_conflict_do_update(index_elements=["name", "labels"], set_=grown), rows)


def _bounded(connection: Connection, addition: Addition) -> Mapping[str, str]:
    """Returns the labels, or those that further users and experiments share."""
    if addition.name != DEVICE_SECONDS:
        return addition.labels
    same_name = totals.c.name == DEVICE_SECONDS
    known = select(totals.c.name).where(same_name, totals.c.labels == _written(addition.labels))
    if connection.execute(known).first() is not None:
        return addition.labels
    number = connection.execute(select(func.count()).where(same_name)).scalar_one()
    return addition.labels if number < MOST_SERIES else {**addition.labels, **_OTHER}


def _written(labels: Mapping[str, str]) -> str:
    return json.dumps(dict(labels), sort_keys=True)
