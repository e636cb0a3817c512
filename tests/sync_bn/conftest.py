from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from testing.ranks import Ranks

RanksOf = Callable[[int], Ranks]


@pytest.fixture(scope="session")
def ranks_of() -> Iterator[RanksOf]:
    """ranks_of(world_size): the ranks of that number, kept for the whole session."""
    with ExitStack() as stack:
        started: dict[int, Ranks] = {}

        def ranks_of(world_size: int) -> Ranks:
            if world_size not in started:
                started[world_size] = stack.enter_context(Ranks(world_size))
            return started[world_size]

        yield ranks_of
