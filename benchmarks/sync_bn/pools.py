"""The processes that the parts measure in."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from unittest.mock import patch

from testing.ranks import Ranks

LONGEST_SECONDS = 600.0  # for one call in the ranks

RanksOf = Callable[[int], Ranks]
"""Of one thread each, joined by gloo, by their number."""


@contextmanager
def pools() -> Iterator[RanksOf]:
    """Ranks are started when asked for, and stay until the end."""
    # The profiler's library tells its own steps on stderr unless the level is above them all.
    with patch.dict(os.environ, KINETO_LOG_LEVEL="99"), ExitStack() as stack:
        yield cache(lambda world_size: stack.enter_context(Ranks(world_size, LONGEST_SECONDS)))
