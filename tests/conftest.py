"""Deals tests out to processes (pytest -n 2 --dist loadgroup): those of a real stack to one, in their order,
the others by file.
"""

from __future__ import annotations

import pytest


@pytest.hookimpl(tryfirst=True)  # xdist reads the mark in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        group = "e2e" if "e2e" in item.path.parts else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))
