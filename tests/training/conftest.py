from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.training.worlds import Worlds

# A machine that is busy with something else is no reason to fail.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(scope="session")
def worlds() -> Iterator[Worlds]:
    """worlds.run(world_size, function, ...): in processes that stay for the whole session."""
    with Worlds() as worlds:
        yield worlds
