"""How values are shown on pages: ages, durations, numbers, amounts, metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from service.differences import SHOWN_DIGITS
from service.jobs.expected import ExpectedStart

_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"))
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
    """Returns when a job is expected to start, as "in about 12 min, when job X ends"; "" if not known."""
    if start is None:
        return ""
    now = datetime.now(UTC)
    start = start.shown(now)
    if start.at is None:
        return start.because
    seconds = (start.at - now).total_seconds()
    exact = max(round(seconds / 5), 1) * 5 if seconds < 57.5 else round(seconds / 60) * 60
    return f"{'at the latest ' if start.at_latest else ''}in about {duration(exact)}, {start.because}"


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


def main_metric(metrics: Mapping[str, float | None]) -> tuple[str, float | None] | None:
    """Returns the metric to show where there is room for one, and its value.

    >>> main_metric({"learning_rate": 0.1, "train_loss": 2.0, "val_accuracy": 0.9})
    ('val_accuracy', 0.9)
    """
    names = [name for name in metrics if name != "learning_rate" and "/" not in name]
    order = ("val_accuracy", "val_", "test_", "train_loss", "train_", "")
    names.sort(key=lambda name: next(i for i, prefix in enumerate(order) if name.startswith(prefix)))
    return (names[0], metrics[names[0]]) if names else None


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
    "expected": expected,
    "moment": moment,
    "day_and_time": day_and_time,
    "to_the_second": to_the_second,
    "number": number,
    "count": count,
    "size": size,
    "main_metric": main_metric,
    "plural": plural,
    "first_digits": first_digits,
    "path_in_url": path_in_url,
    "spec_value": spec_value,
    "json": as_json,
}
