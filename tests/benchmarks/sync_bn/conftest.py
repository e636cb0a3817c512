from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.sync_bn.pools import RanksOf, pools


@pytest.fixture(scope="package")
def ranks_of() -> Iterator[RanksOf]:
    with pools() as ranks_of:
        yield ranks_of
