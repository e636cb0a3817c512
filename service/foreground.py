"""What every command of the service that runs in the foreground does: end on signals, say what went wrong."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from service.errors import Refused, ServiceError

if TYPE_CHECKING:
    from service.queue.store import Store


def stop_on_signals() -> threading.Event:
    """Set by SIGINT and SIGTERM. For the main thread."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


@contextmanager
def errors_told() -> Iterator[list[Exception]]:
    """Errors that a user can do something about go to stderr, and into the list."""
    failed: list[Exception] = []
    try:
        yield failed
    except ServiceError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        failed.append(error)


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


def open_store(url: str) -> Store:
    """The queue in the database at `url`, its tables up to date.

    Raises Refused for a file that is no database, a driver that is not installed, and tables of a newer
    version; Unavailable for a database that does not answer.
    """
    from sqlalchemy.exc import DatabaseError

    from service.queue.store import Store

    try:
        store = Store(url)
        store.migrate()
    except DatabaseError as error:
        raise Refused(f"the database cannot be used: {error.orig}") from error
    except ImportError as error:
        raise Refused(f"the database cannot be used: {error}; pip install 'syncbn[postgres]'") from error
    return store
