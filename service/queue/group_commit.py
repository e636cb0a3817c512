"""Writers that share a transaction: what arrives while one is being committed is committed with the next one.

A commit waits for the disk, however much it holds. One for each job would limit a queue to the disk's syncs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from service.errors import Unavailable

Item = TypeVar("Item")
Result = TypeVar("Result")


class GroupCommit(Generic[Item, Result]):
    """Writes items in a thread of its own, all that wait in one transaction. Thread-safe.

    write_all: commits all of the items and returns their results, or none of them and raises.
    write_one: commits an item whose group could not be committed, for which another item may be the reason.
    """

    def __init__(
        self,
        write_all: Callable[[Sequence[Item]], Sequence[Result]],
        write_one: Callable[[Item], Result],
    ) -> None:
        self._write_all, self._write_one = write_all, write_one
        self._waiting: list[tuple[Item, Future[Result]]] = []
        self._busy, self._lock = False, threading.Lock()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="commits")

    def add(self, item: Item) -> Future[Result]:
        """Returns the item's result to be, which is there once it is committed. Does not block."""
        result = Future[Result]()
        result.set_running_or_notify_cancel()  # it is committed, even if nobody waits for it any more
        with self._lock:
            self._waiting.append((item, result))
            starts, self._busy = not self._busy, True
        if starts:
            self._writer.submit(self._write)
        return result

    def close(self) -> None:
        """Returns once everything that was added is decided."""
        self._writer.shutdown()

    def _write(self) -> None:
        while group := self._next():
            try:
                found = self._write_all([item for item, _ in group])
            except Unavailable as error:
                for _, result in group:
                    result.set_exception(error)
            except Exception:
                for item, result in group:
                    self._decide(item, result)
            else:
                for (_, result), value in zip(group, found, strict=True):
                    result.set_result(value)

    def _next(self) -> list[tuple[Item, Future[Result]]]:
        with self._lock:
            group, self._waiting = self._waiting, []
            self._busy = bool(group)
        return group

    def _decide(self, item: Item, result: Future[Result]) -> None:
        try:
            result.set_result(self._write_one(item))
        except Exception as error:
            result.set_exception(error)
