"""Requests that are refused at the door, in the audit log: counted, so that nobody can fill the database."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

import anyio.to_thread

from service.access.audit import Note
from service.errors import Unavailable
from service.queue.store import Store

SECONDS = 60.0
"""Refusals within this time after a first one share an entry."""
MOST_AT_ONCE = 20
"""Callers that are told apart within that time; refusals of further ones are counted together."""
SEVERAL = "several"
"""The address and the credential in the entry of callers that are not told apart."""

_log = logging.getLogger(__name__)


@dataclass
class _Group:
    """Refusals of one status to one caller. more: how many came after the first. latest: the last of them."""

    latest: Note
    more: int = 0


class Refusals:
    """The refusals of the last minute. Not thread-safe: belongs to the event loop that answers requests.

    The first one of a caller gets its entry at once, those that follow within a minute share a second entry.
    So a minute adds at most twice MOST_AT_ONCE + 3 entries. No answer waits for the database. Known
    limitation: a server that ends loses the counts of its last minute.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._groups: dict[tuple[str, str, int], _Group] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def note(self, note: Note, status: int) -> None:
        """Counts a refusal. status: as it is answered."""
        key = (note.address, note.credential, status)
        if key not in self._groups and len(self._groups) >= MOST_AT_ONCE:
            note.who, note.credential, note.address = "", SEVERAL, SEVERAL
            key = (SEVERAL, SEVERAL, status)
        if (group := self._groups.get(key)) is not None:
            group.latest, group.more = note, group.more + 1
            return
        self._groups[key] = _Group(note)
        task = asyncio.get_running_loop().create_task(self._write(key, note))
        self._tasks.add(task)  # the loop itself holds no reference to it
        task.add_done_callback(self._tasks.discard)

    async def _write(self, key: tuple[str, str, int], first: Note) -> None:
        status = key[2]
        try:
            await self._add(first, status, 1)
            await _the_time_is_over()
        finally:
            group = self._groups.pop(key)
        if group.more:
            await self._add(group.latest, status, group.more)

    async def _add(self, note: Note, status: int, count: int) -> None:
        try:
            await anyio.to_thread.run_sync(self._store.add_audit, note, status, count)
        except Unavailable as error:
            _log.warning(
                "not in the audit log: %d refusals, the last one %s, %d: %s", count, note, status, error
            )


async def _the_time_is_over() -> None:
    await asyncio.sleep(SECONDS)
