"""Notices: whoever changes the queue wakes the scheduler, which therefore need not look all the time.

On PostgreSQL these are LISTEN and NOTIFY, on SQLite a named pipe beside the database. A notice says only that
something has changed. One may get lost, because the process dies between its commit and the notice, or nobody
listens: the scheduler looks every few seconds all the same.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, Protocol

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from service.errors import Unavailable
from training.backoff import Backoff

log = logging.getLogger(__name__)

CHANNEL = "syncbn_queue"
_SECONDS_BETWEEN = 0.05
"""Of the notices of one process on PostgreSQL: each costs the server as much as several new jobs."""

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
# In a transaction of its own that waits for no disk: NOTIFY in those of the writers would make all commits
# wait for one another.
_NOTIFY = f"BEGIN; SET LOCAL synchronous_commit = off; NOTIFY {CHANNEL}; COMMIT"


class Source(Protocol):
    """Where notices arrive."""

    def fileno(self) -> int:
        """Returns the file descriptor that can be read when a notice has arrived."""

    def drain(self) -> None:
        """Reads all notices that have arrived. Raises Unavailable or OSError if the source is gone."""


class Notices(Protocol):
    """The notices of one database."""

    def send(self) -> None:
        """Tells who listens that the queue has changed. Does not block and does not fail. Thread-safe."""

    def opened(self) -> AbstractContextManager[Source]:
        """Listens for as long as the context lasts. Raises Unavailable or OSError."""

    def close(self) -> None:
        """Returns once no notice is being sent any more, and sends no further one."""


def notices_of(engine: Engine) -> Notices:
    """Returns the notices of the engine's database."""
    if engine.dialect.name == "postgresql":
        return _Notifications(engine)
    return _Pipe(f"{engine.url.database}-wake")


class _Pipe:
    """A named pipe, whose reader is the scheduler at work."""

    def __init__(self, path: str) -> None:
        self._path = path

    def send(self) -> None:
        # Without a reader, or with a full pipe, this fails at once.
        with suppress(OSError):
            pipe = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.write(pipe, b"\0")
            finally:
                os.close(pipe)

    def close(self) -> None:
        """There is nothing to wait for."""

    @contextmanager
    def opened(self) -> Iterator[Source]:
        with suppress(FileExistsError):
            os.mkfifo(self._path, 0o600)
        # For writing, too: without a writer a pipe could always be read.
        pipe = os.open(self._path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            yield _PipeEnd(pipe)
        finally:
            os.close(pipe)


class _PipeEnd:
    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def fileno(self) -> int:
        return self._pipe

    def drain(self) -> None:
        with suppress(BlockingIOError):  # a scheduler that was superseded may have read it
            os.read(self._pipe, 65_536)


class _Notifications:
    """LISTEN and NOTIFY. A thread sends, so that no writer waits for it; many notices become one."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._asked, self._lock = threading.Event(), threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def send(self) -> None:
        self._asked.set()
        if self._thread is None:
            with self._lock:
                if self._thread is None and not self._closed.is_set():
                    self._thread = threading.Thread(target=self._keep_sending, name="notices", daemon=True)
                    self._thread.start()

    def _keep_sending(self) -> None:
        while True:
            self._asked.wait()
            self._asked.clear()
            if self._closed.is_set():
                return
            try:
                with self._engine.connect() as connection:
                    connection.exec_driver_sql(_NOTIFY)
            except SQLAlchemyError as error:
                log.info("no notice could be sent: %s", error)
            self._closed.wait(_SECONDS_BETWEEN)

    def close(self) -> None:
        with self._lock:
            self._closed.set()
        self._asked.set()
        if self._thread is not None:
            self._thread.join()  # not for long: every call of the database has a deadline

    @contextmanager
    def opened(self) -> Iterator[Source]:
        try:
            with self._engine.connect() as connection:
                connection.exec_driver_sql(f"LISTEN {CHANNEL}")
                yield _Notified(connection.connection.driver_connection)
                connection.exec_driver_sql(f"UNLISTEN {CHANNEL}")
        except SQLAlchemyError as error:
            raise Unavailable("the database", str(error)) from error


class _Notified:
    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def fileno(self) -> int:
        number: int = self._connection.fileno()
        return number

    def drain(self) -> None:
        import psycopg

        try:
            for _ in self._connection.notifies(timeout=0):
                pass
        except psycopg.Error as error:
            raise Unavailable("the database", str(error)) from error


class Listener:
    """Calls `heard` in its own thread after each change of the queue; also when changes may have been missed.

    listens: whether it hears of changes now. Without it the scheduler has to look often.
    """

    def __init__(self, notices: Notices, heard: Callable[[], object]) -> None:
        self._notices, self._heard = notices, heard
        self._stopping, self._stop_signal = socket.socketpair()
        self.listens = False

    def run(self) -> None:
        """Blocks until `stop` is called."""
        backoff = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)
        with self._stopping:
            while True:
                try:
                    with self._notices.opened() as source:
                        self.listens = True
                        backoff.reset()
                        self._heard()
                        if self._listen(source):
                            return
                except (Unavailable, OSError) as error:
                    log.info("not listening for changes of the queue: %s", error)
                finally:
                    self.listens = False
                if _ready(self._stopping, seconds=backoff.next()):
                    return

    def _listen(self, source: Source) -> bool:
        """Returns True once `stop` is called. Raises Unavailable or OSError if the source is gone."""
        while True:
            if self._stopping in _ready(source, self._stopping):
                return True
            source.drain()
            self._heard()

    def stop(self) -> None:
        self._stop_signal.close()


def _ready(*sources: Source | socket.socket, seconds: float | None = None) -> list[Source | socket.socket]:
    """Returns the sources that can be read. Blocks until there is one, at most for these seconds."""
    ready: list[Source | socket.socket] = select.select(sources, [], [], seconds)[0]
    return ready
