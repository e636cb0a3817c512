"""What is known of the classes that specs name, remembered as long as the files that it was read from stay.

The check of a class path reads and parses the modules along it, which takes a hundred times as long as all
else that is done for a submitted spec.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

from service.user_code.modules import ModuleSource, Stamp

Fact = TypeVar("Fact")


class KnownClasses(Generic[Fact]):
    """Facts by class path and code, each with the stamps of all that was read to learn it. Thread-safe.

    most: the number of facts that are kept; those that were not asked for longest are forgotten.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._facts: OrderedDict[tuple[str, ...], tuple[Fact, Mapping[str, Stamp]]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, class_path: str, sources: Sequence[ModuleSource], learn: Callable[[], Fact]) -> Fact:
        """Returns what `learn` returns, which reads from `sources`; without it if nothing there has changed.

        sources: those that `sources_of` returned for this request, since they hold the stamps of one moment.
        Nothing is remembered if it raises, or if a source has no identity.
        """
        key = (class_path, *(source.identity for source in sources if source.identity is not None))
        if len(key) <= len(sources):
            return learn()
        stamps = sources[-1].stamps
        with self._lock:
            if known := self._facts.get(key):
                self._facts.move_to_end(key)
        if known is not None and stamps.are(known[1]):
            return known[0]
        stamps.used.clear()
        known = learn(), dict(stamps.used)
        with self._lock:
            self._facts[key] = known
            self._facts.move_to_end(key)
            if len(self._facts) > self._most:
                self._facts.popitem(last=False)
        return known[0]
