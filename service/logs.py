"""Log records as lines of text or JSON, with the ids of the request and the job that they are about.

Libraries log through the standard library too, so one formatter on the root handler covers all of them.
"""

from __future__ import annotations

import enum
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

_about: ContextVar[Mapping[str, Any]] = ContextVar(
    "what the log records are about", default=MappingProxyType({})
)

OWN = "service"
"""The logger of this package. In JSON its lines include those of level info."""


class LogFormat(enum.StrEnum):
    """The format of log lines."""

    TEXT = "text"
    JSON = "json"


@contextmanager
def about(**ids: Any) -> Iterator[None]:
    """Adds ids to the log records that this thread or task makes in the context."""
    token = _about.set({**_about.get(), **ids})
    try:
        yield
    finally:
        _about.reset(token)


def request_id() -> str:
    """Returns the id of the request that is being answered; "" outside of requests."""
    return str(_about.get().get("request_id", ""))


def configure(log_format: LogFormat, *, text_prefix: str = "") -> None:
    """Sends all log records of this process to stderr. Called once, at the entry point.

    text_prefix: begins each line of text.
    """
    handler = logging.StreamHandler(sys.stderr)
    is_json = log_format is LogFormat.JSON
    handler.setFormatter(JsonFormatter() if is_json else TextFormatter(text_prefix))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger(OWN).setLevel(logging.INFO if is_json else logging.WARNING)


def printed(text: str) -> str:
    """Returns a line for stdout: the text, or as a record if this process logs JSON."""
    formatters = [handler.formatter for handler in logging.getLogger().handlers]
    formatter = next((each for each in formatters if isinstance(each, JsonFormatter)), None)
    if formatter is None:
        return text
    record = logging.LogRecord(OWN, logging.INFO, "", 0, "%s", (text.strip(),), None)
    return formatter.format(record)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the ids, and `error` with a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_ids(record),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """A line for people: the prefix, the message, and the ids that are not in it."""

    def __init__(self, prefix: str = "") -> None:
        super().__init__(f"{prefix}%(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - of the standard library
        line = super().formatMessage(record)
        ids = [f"{name}={value}" for name, value in _ids(record).items() if str(value) not in line]
        return f"{line} ({' '.join(ids)})" if ids else line


def _ids(record: logging.LogRecord) -> dict[str, Any]:
    return {**_about.get(), **getattr(record, "about", {})}


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
