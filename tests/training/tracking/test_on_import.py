from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest

from training.tracking.on_import import on_import


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that nobody has imported; it is a package with a file beside its code."""
    folder = tmp_path / "imported_later"
    folder.mkdir()
    (folder / "__init__.py").write_text("value = 1\n")
    (folder / "part.py").write_text("value = 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, folder.name, raising=False)
    return folder.name


def test_the_call_comes_directly_after_the_import_and_once(module: str) -> None:
    seen: list[int] = []
    with on_import(module, lambda: seen.append(sys.modules[module].value)):
        assert seen == []
        assert import_module(f"{module}.part").value == 2
        assert import_module(module).__loader__ is import_module(module).__spec__.loader  # type: ignore[union-attr]

    assert seen == [1]


def test_a_module_that_is_there_already_is_not_waited_for() -> None:
    seen: list[str] = []
    with on_import("sys", lambda: seen.append("called")):
        assert seen == ["called"]


def test_after_the_context_nothing_is_called(module: str) -> None:
    before = list(sys.meta_path)
    with on_import(module, lambda: pytest.fail("called")):
        pass

    import_module(module)
    assert sys.meta_path == before
