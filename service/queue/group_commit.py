"""Writers that share a transaction: what arrives while one is being committed is committed with the next one.

A commit waits for the disk, however much it holds. One for each job would limit a queue to the disk's syncs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class GroupCommit(Generic[Item, Result]):
    """Writes items in a thread of its own, all that wait in one transaction. For one event loop.

    write: commits the items; returns for each its result, or why it is not committed. If it raises, none is.

    The thread hands over a group, not each item: whenever a thread wakes the event loop, it then waits for
    the interpreter's lock, which the loop holds for up to 5 ms.
    """

    def __init__(self, write: Callable[[Sequence[Item]], Sequence[Result | Exception]]) -> None:
        self._write = write
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._writing: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="commits")

    async def add(self, item: Item) -> Result:
        """Returns the item's result once it is committed. It is committed even if the caller is cancelled."""
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Result] = loop.create_future()
        self._waiting.append((item, result))
        if self._writing is None:
            # Not in the context of the request that happens to be the first.
            self._writing = loop.create_task(self._write_groups(), context=Context())
        return await result

    def close(self) -> None:
        """Returns once what is being committed is decided."""
        self._thread.shutdown()

    async def _write_groups(self) -> None:
        try:
            while self._waiting:
                group, self._waiting = self._waiting, []
                for (_, result), found in zip(group, await self._written(group), strict=True):
                    if result.done():  # its caller has gone
                        continue
                    if isinstance(found, Exception):
                        result.set_exception(found)
                    else:
                        result.set_result(found)
        finally:
            self._writing = None

    async def _written(
        self, group: Sequence[tuple[Item, asyncio.Future[Result]]]
    ) -> Sequence[Result | Exception]:
        items = [item for item, _ in group]
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._write, items)
        except Exception as error:
            return [error] * len(items)
