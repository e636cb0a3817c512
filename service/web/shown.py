"""How values are shown on pages: ages, durations, numbers, amounts, metrics."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from service.differences import SHOWN_DIGITS
from service.escapes import without_controls, without_sequences
from service.jobs.expected import ExpectedStart
from service.jobs.job import Job
from training.metric_names import main_metric

_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"))
_LONGEST_LINE = 300
_JOB_ID = re.compile(r"\b(j[0-9a-z]{20})\b")
_BYTES = ("bytes", "KiB", "MiB", "GiB", "TiB")


def duration(seconds: float | None) -> str:
    """
    >>> duration(4.2), duration(75), duration(3600), duration(200_000), duration(None)
    ('4 s', '1 min 15 s', '1 h', '2 d 7 h', '')
    """
    if seconds is None or not math.isfinite(seconds):
        return ""
    left = max(round(seconds), 0)
    for i, (size, unit) in enumerate(_UNITS):
        if left >= size:
            smaller, name = (*_UNITS, (1, "s"))[i + 1]
            rest = left % size // smaller
            return f"{left // size} {unit}" + (f" {rest} {name}" if rest else "")
    return f"{left} s"


def expected(start: ExpectedStart | None) -> str:
    """Returns when a job is expected to start, as "in about 12 min, when job X ends"; "" if unsaid."""
    if start is None:
        return ""
    now = datetime.now(UTC)
    start = start.shown(now)
    if start.at is None:
        is_soon = start.because.startswith("soon, ")
        return start.because if is_soon else f"no estimate: {start.because}"
    seconds = (start.at - now).total_seconds()
    exact = max(round(seconds / 5), 1) * 5 if seconds < 57.5 else round(seconds / 60) * 60
    return f"{'at the latest ' if start.at_latest else ''}in about {duration(exact)}, {start.because}"


def by_ids(text: str) -> list[tuple[str, str]]:
    """Returns a text in pieces, each with the id of the job that follows it; "" after the last one.

    >>> by_ids("soon, when job j1k0w1p4x22tpe84vgw3m ends")
    [('soon, when job ', 'j1k0w1p4x22tpe84vgw3m'), (' ends', '')]
    """
    pieces = _JOB_ID.split(text)
    return list(zip(pieces[::2], [*pieces[1::2], ""], strict=True))


def age(moment: datetime | None) -> str:
    """Returns how long ago it was; in seconds, minutes, hours or days."""
    if moment is None:
        return ""
    seconds = max((datetime.now(UTC) - moment).total_seconds(), 0)
    return next(
        (f"{int(seconds // size)} {unit}" for size, unit in _UNITS if seconds >= size), f"{int(seconds)} s"
    )


def moment(value: datetime | None) -> str:
    """Returns the moment for the attribute of an element `time`; the page shows it in its own time zone."""
    return value.astimezone(UTC).isoformat(timespec="seconds") if value else ""


def day_and_time(value: datetime | None) -> str:
    """
    >>> day_and_time(datetime(2026, 3, 4, 5, 6, tzinfo=UTC))
    '2026-03-04 05:06 UTC'
    """
    return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC") if value else ""


def to_the_second(value: datetime | None) -> str:
    """
    >>> to_the_second(datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC))
    '2026-03-04 05:06:07 UTC'
    """
    return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if value else ""


def number(value: float | None) -> str:
    """
    >>> number(0.123456), number(3.0), number(12_345_678.0), number(1.5e-7), number(None), number(math.nan)
    ('0.1235', '3', '1.235e+07', '1.5e-07', '', 'nan')
    """
    return "" if value is None else f"{value:.4g}"


def count(value: int | None) -> str:
    """
    >>> count(1234567)
    '1,234,567'
    """
    return "" if value is None else f"{value:,}"


def size(value: float | None) -> str:
    """
    >>> size(0), size(2048), size(3.5 * 2**30)
    ('0 bytes', '2.0 KiB', '3.5 GiB')
    """
    if value is None:
        return ""
    power = min(int(math.log2(value) // 10), len(_BYTES) - 1) if value >= 1 else 0
    return f"{value / 1024**power:.{1 if power else 0}f} {_BYTES[power]}"


def job_metric(job: Job) -> tuple[str, str] | None:
    """Returns the job's main metric and its latest value in words; None before the first."""
    metrics = job.progress.metrics if job.progress else {}
    name = main_metric(metrics, None if job.runs_script else job.spec["training"]["checkpoint"]["monitor"])
    if name is None:
        return None
    value = metrics[name]
    return name, number(value) if value is not None and math.isfinite(value) else "not finite"


def first_line(text: str) -> str:
    """Returns what a reason says without the stacks and ends of logs that follow, cut for a row of a table.

    >>> first_line("rank 0 failed: ValueError\\nno retry\\n\\nlast lines of the log:"), first_line("")
    ('rank 0 failed: ValueError', '')
    """
    line = text.partition("\n")[0]
    return line if len(line) <= _LONGEST_LINE else f"{line[: _LONGEST_LINE - 1]}…"


def plain(value: object) -> object:
    """Returns what a page shows of any value: a text without escape sequences and control characters.

    An error may quote what a program has printed for a terminal, and a mark of direction would turn around
    what follows it on the page.
    """
    if not isinstance(value, str) or value.isprintable():
        return value
    return type(value)(without_controls(without_sequences(value)))


def plural(amount: float, noun: str) -> str:
    """
    >>> plural(1, "worker"), plural(2.0, "GPU")
    ('1 worker', '2 GPUs')
    """
    return f"{amount:g} {noun}{'' if amount == 1 else 's'}"


def path_in_url(path: str) -> str:
    """
    >>> path_in_url("logs/a b?#%.csv")
    'logs/a%20b%3F%23%25.csv'
    """
    return quote(path)


def spec_value(value: object) -> str:
    """Returns a value of a spec on one line.

    >>> spec_value(0.1), spec_value("torch.optim.SGD"), spec_value([1, None]), spec_value(None)
    ('0.1', 'torch.optim.SGD', '[1, null]', '')
    """
    if value is None:
        return ""
    return value if isinstance(value, str) else as_json(value)


def as_json(value: object) -> str:
    """Returns JSON for an attribute that a script reads; escaped there as every text is."""
    return json.dumps(value, ensure_ascii=False)


def first_digits(digest: str) -> str:
    """Returns the first digits of the SHA-256 of weights."""
    return digest[:SHOWN_DIGITS]


FILTERS: dict[str, Callable[..., Any]] = {
    "duration": duration,
    "age": age,
    "by_ids": by_ids,
    "expected": expected,
    "moment": moment,
    "day_and_time": day_and_time,
    "to_the_second": to_the_second,
    "number": number,
    "count": count,
    "size": size,
    "first_line": first_line,
    "job_metric": job_metric,
    "plural": plural,
    "first_digits": first_digits,
    "path_in_url": path_in_url,
    "spec_value": spec_value,
    "json": as_json,
}
