from __future__ import annotations

from pathlib import Path

import pytest

from service.queue.store import Store
from tests.service.api.rest_fuzz import fuzzed


@pytest.mark.parametrize("with_key", [False, True])
def test_every_route_answers_what_it_documents(sqlite_store: Store, tmp_path: Path, with_key: bool) -> None:
    with fuzzed(sqlite_store, tmp_path / "runs") as target:
        for path, method in target.paths():
            target.check(path, method, with_key=with_key, examples=2 if with_key else 1, seed=0)
