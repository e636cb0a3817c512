"""Helpers for the service's foreground commands: stop on signals, print errors, open the database."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from service import logs
from service.errors import Refused, ServiceError, Unavailable

if TYPE_CHECKING:
    from service.queue.store import Store


def stop_on_signals() -> threading.Event:
    """Returns an event that SIGINT and SIGTERM set. Call it in the main thread."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


@contextmanager
def reported_errors() -> Iterator[list[Exception]]:
    """Catches a ServiceError in the context, prints it to stderr and appends it to the yielded list."""
    errors: list[Exception] = []
    try:
        yield errors
    except ServiceError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        errors.append(error)


def print_line(text: str) -> None:
    """Prints to stdout and flushes it; as a log record if this process logs JSON."""
    print(logs.printed(text), flush=True)  # noqa: T201


def open_store(url: str) -> Store:
    """Opens the queue in the database at `url` and brings its tables up to date.

    Raises Refused if the file is not a database, the driver is not installed, or a newer version made the
    tables; Unavailable if the database does not answer.
    """
    from sqlalchemy.exc import DatabaseError

    from service.queue.store import Store

    try:
        store = Store(url)
        store.migrate()
    except DatabaseError as error:
        raise Refused(f"the database cannot be used: {error.orig}") from error
    except Unavailable as error:
        if type(error.__cause__) is not DatabaseError:  # its subclasses say that the database is away
            raise
        raise Refused(f"the database cannot be used: {error.detail}") from error
    except ImportError as error:
        raise Refused(f"the database cannot be used: {error}; pip install 'syncbn[postgres]'") from error
    return store
