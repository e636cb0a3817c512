"""Counts rounds and machines for operators, and adds them to the totals in the database now and then."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from time import monotonic

from service.backends.cluster import Node
from service.errors import Unavailable
from service.jobs import measures
from service.jobs.measures import Addition
from service.queue.store import Store

log = logging.getLogger(__name__)

WRITE_SECONDS = 10.0


class Figures:
    """What a scheduler has counted since it last wrote. Rounds in which nothing was to do do not count.

    A crash loses what was not written yet, at most WRITE_SECONDS of it.
    """

    def __init__(self, store: Store, clock: Callable[[], float] = monotonic) -> None:
        self._store, self._clock = store, clock
        self._additions: list[Addition] = []
        self._hosts: frozenset[str] | None = None
        self._due = clock() + WRITE_SECONDS

    def is_due(self) -> bool:
        """Returns whether it is time to note the machines and to write."""
        return self._clock() >= self._due

    def round(self, seconds: float) -> None:
        """Counts a round."""
        self._additions += measures.observed(measures.ROUNDS, seconds, measures.ROUND_SECONDS)

    def failed_round(self) -> None:
        """Counts a round that failed."""
        self._additions.append(Addition(name=measures.ROUND_ERRORS))

    def start_error(self, which: str, seconds: float) -> None:
        """Counts by how much an estimate of a start was wrong. which: "first" or "last" before the start."""
        self._additions += measures.observed(
            measures.START_ERROR, seconds, measures.JOB_SECONDS, estimate=which
        )

    def hosts(self, nodes: Iterable[Node]) -> None:
        """Counts the machines that have joined or left since the last call."""
        now = frozenset(node.id for node in nodes)
        if self._hosts is not None:
            counted = ((measures.HOSTS_JOINED, now - self._hosts), (measures.HOSTS_LOST, self._hosts - now))
            self._additions += [Addition(name=name, value=len(ids)) for name, ids in counted if ids]
        self._hosts = now

    def write(self) -> None:
        """Writes what was counted, if anything was. Keeps it if the database does not answer."""
        self._due = self._clock() + WRITE_SECONDS
        try:
            self._store.add_totals(self._additions)
        except Unavailable as error:
            log.info("%s", error)
            self._additions = self._additions[-1_000:]
        else:
            self._additions.clear()
