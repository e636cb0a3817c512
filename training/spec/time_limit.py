"""The section `time_limit` of a job specification."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from training.spec.parts import Part

_UNITS = {"w": 604_800, "d": 86_400, "h": 3600, "m": 60, "s": 1}
_DURATION = re.compile(r"(?:(\d+)w)?(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


def seconds_of(text: str) -> int | None:
    """Returns the seconds of a duration such as 2h, 90m or 1d12h; None if `text` is none.

    >>> seconds_of("2h"), seconds_of("1d12h"), seconds_of("2 hours")
    (7200, 129600, None)
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None or not any(match.groups()):
        return None
    return sum(int(number or 0) * size for number, size in zip(match.groups(), _UNITS.values(), strict=True))


def shown(seconds: float) -> str:
    """Returns a duration in the form that `seconds_of` reads, rounded to seconds.

    >>> shown(7200), shown(129_601)
    ('2h', '1d12h1s')
    """
    left, text = round(seconds), ""
    for unit, size in _UNITS.items():
        number, left = divmod(left, size)
        text += f"{number}{unit}" if number else ""
    return text or "0s"


def _parsed(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    seconds = seconds_of(value)
    if seconds is None:
        raise ValueError(
            f"{value!r} is not a duration; write for example 2h, 90m, 1d12h, or a number of seconds"
        )
    return seconds


Duration = Annotated[
    float,
    BeforeValidator(_parsed, json_schema_input_type=str | float),
    Field(gt=0, le=10 * 365 * 86_400, description="2h, 90m, 1d12h, or a number of seconds"),
]


class TimeLimit(Part):
    """How long a job may run, and how long it may wait. A duration alone is that of the run."""

    run: Duration | None = Field(
        default=None,
        description="Time with workers, over all attempts. After it the job saves a checkpoint and fails",
    )
    queue: Duration | None = Field(
        default=None, description="Time from submission to the first start. After it the job is cancelled"
    )

    @model_validator(mode="before")
    @classmethod
    def _of_the_run(cls, data: Any) -> Any:
        return data if isinstance(data, Mapping | TimeLimit) else {"run": data}
