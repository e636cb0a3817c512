"""Runs a function when a module has been imported, by anyone in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


@contextmanager
def on_import(name: str, call: Callable[[], None]) -> Iterator[None]:
    """Calls `call` at once if the module `name` is imported already, otherwise directly after its import.

    So nobody who does not use the module pays for its import. `call` runs in the thread that imports, before
    any other thread can use the module. After the context it is not called any more.
    """
    if name in sys.modules:
        call()
        yield
        return
    finder = _Finder(name, call)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        with suppress(ValueError):  # it has removed itself
            sys.meta_path.remove(finder)


class _Finder(MetaPathFinder):
    """Finds the module with the other finders, and has its loader make the call."""

    def __init__(self, name: str, call: Callable[[], None]) -> None:
        self._name, self._call = name, call

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        found = find_spec(fullname)
        if found is not None and found.loader is not None:
            found.loader = _Loader(found.loader, self._call)
        return found


class _Loader(Loader):
    def __init__(self, loader: Loader, call: Callable[[], None]) -> None:
        self._loader, self._call = loader, call

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        assert spec is not None
        spec.loader = module.__loader__ = self._loader  # for those that read the module's resources
        self._loader.exec_module(module)
        self._call()
