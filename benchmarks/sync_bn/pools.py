"""The processes in which the parts measure."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from unittest.mock import patch

from testing.ranks import Ranks

LONGEST_SECONDS = 600.0  # for one call on the ranks

RanksOf = Callable[[int], Ranks]
"""Returns the pool of single-threaded ranks joined by gloo for a number of ranks."""


@contextmanager
def pools() -> Iterator[RanksOf]:
    """Starts ranks on first use and keeps them until the end."""
    # The profiler's library logs its own steps to stderr unless the level is above all of them.
    with patch.dict(os.environ, KINETO_LOG_LEVEL="99"), ExitStack() as stack:
        yield cache(lambda world_size: stack.enter_context(Ranks(world_size, LONGEST_SECONDS)))
