"""What the tests of the commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

FAILURE: dict[str, Any] = {
    "type": "ValueError",
    "message": "bad shape",
    "rank": 1,
    "log_tail": "Traceback\nValueError: bad shape\n",
}


class Result(Protocol):
    exit_code: int

    @property
    def stdout(self) -> str: ...

    @property
    def stderr(self) -> str: ...


Syncbn = Callable[..., Result]
