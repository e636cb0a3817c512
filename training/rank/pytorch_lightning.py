"""Makes `pytorch_lightning`, the other name of Lightning's package, mean `lightning.pytorch` in this process.

The two distributions have the same code, but classes of their own: the Trainer of one takes no module of
the other. Projects import either.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_NAMES = {"pytorch_lightning": "lightning.pytorch", "lightning_fabric": "lightning.fabric"}


def alias_pytorch_lightning() -> None:
    """Makes later imports of `pytorch_lightning` give `lightning.pytorch`. Idempotent."""
    if not any(isinstance(finder, _Alias) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Alias())


class _Alias(MetaPathFinder, Loader):
    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002 - the import system's signature
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname.partition(".")[0] in _NAMES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        top, dot, rest = spec.name.partition(".")
        module = import_module(f"{_NAMES[top]}{dot}{rest}")
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state  # the import system has set that of the other name
