"""Histories of metrics from the tracking server, in the lines of a spool, kept for those who ask next.

The server takes seconds for a long one. Whoever asks while it is being fetched waits for the same one.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from service.backends.tracking import Results
from service.jobs.job import Job, Run
from training.metric_names import is_detail, is_layer_detail
from training.protocol import Point

KEPT_BYTES = 64 << 20
FRESH_S = 10.0
"""For how long the history of a job that has not ended is not asked for again."""
_INFINITY = 1.7e308  # MLflow keeps the largest double for infinity

_WANTED: dict[str, Callable[[str], bool]] = {
    "curves": lambda name: not is_detail(name),
    "norm": is_layer_detail,
    "system": lambda name: is_detail(name) and not is_layer_detail(name),
}
KINDS = tuple(_WANTED)


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """A history. until: when it is too old (monotonic); ends: of what it is the history."""

    text: bytes
    until: float


class Histories:
    """The histories of runs by kind, at most KEPT_BYTES of them. Thread-safe."""

    def __init__(self, results: Results, clock: Callable[[], float] = time.monotonic) -> None:
        self._results, self._clock, self._lock = results, clock, threading.Lock()
        self._kept: OrderedDict[tuple[object, ...], _Kept] = OrderedDict()
        self._fetching: dict[tuple[object, ...], Future[bytes]] = {}

    def lines(self, job: Job, kind: str) -> bytes:
        """Returns `time step value name` lines, by name and step; b"" if the job has no run.

        kind: one of KINDS. Blocks for as long as the server takes. Raises Unavailable and Refused.
        """
        if job.run is None:
            return b""
        key = (job.run, kind, job.finished_at)  # a job that was retried ends at another time
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None and self._clock() < kept.until:
                self._kept.move_to_end(key)
                return kept.text
            mine = key not in self._fetching
            found = self._fetching.setdefault(key, Future())
        if mine:
            self._fetch(key, job.run, kind, found, ended=job.state.ended)
        return found.result()

    def _fetch(
        self, key: tuple[object, ...], run: Run, kind: str, found: Future[bytes], *, ended: bool
    ) -> None:
        begun = self._clock()
        try:
            names = filter(_WANTED[kind], self._results.names(run))
            text = b"".join(_lines(self._results.history(run, [name])) for name in names)
        except BaseException as error:
            with self._lock:
                del self._fetching[key]
            found.set_exception(error)
            return
        took = self._clock() - begun
        with self._lock:
            del self._fetching[key]
            until = math.inf if ended else self._clock() + max(FRESH_S, 10 * took)
            self._keep(key, _Kept(text=text, until=until))
        found.set_result(text)

    def _keep(self, key: tuple[object, ...], kept: _Kept) -> None:
        self._kept.pop(key, None)
        if len(kept.text) <= KEPT_BYTES // 4:
            self._kept[key] = kept
        while sum(len(each.text) for each in self._kept.values()) > KEPT_BYTES:
            self._kept.popitem(last=False)


def _lines(points: list[Point]) -> bytes:
    return "".join(
        f"{point.timestamp} {point.step} {_value(point.value)!r} {point.name}\n" for point in points
    ).encode()


def _value(value: float) -> float:
    return math.copysign(math.inf, value) if abs(value) >= _INFINITY else value
