"""Processes forked from one that has imported what they need, so that only the first waits for torch.

    context = warm("torch")              # as multiprocessing.get_context(...)
    context.Process(target=function).start()

The fork server is the standard library's. It is another one than the host agent's, which is the module's own
and has an environment and imports that are under test.
"""

from __future__ import annotations

import os
from functools import cache, partial
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.process import BaseProcess
from typing import Any
from unittest.mock import patch

# The number of OpenMP threads is read while torch is imported.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


class WarmProcess(ForkServerProcess):
    def __init__(self, modules: tuple[str, ...], **options: Any) -> None:
        super().__init__(**options)
        self.modules = modules

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Any:  # noqa: N802 (multiprocessing's name)
        assert isinstance(process_obj, WarmProcess)
        server = _server(process_obj.modules)
        with (
            patch.dict(os.environ, ENVIRONMENT),
            patch.object(forkserver, "connect_to_new_process", server.connect_to_new_process),
        ):
            return ForkServerProcess._Popen(process_obj)


class WarmContext(ForkServerContext):
    """Its processes have `ENVIRONMENT`, and what else was in this process's when the first one started."""

    def __init__(self, modules: tuple[str, ...]) -> None:
        self.Process = partial(WarmProcess, modules)  # type: ignore[assignment, misc]


def warm(*modules: str) -> WarmContext:
    """Its server, one for each set of modules, ends with this process."""
    return WarmContext(modules)


@cache
def _server(modules: tuple[str, ...]) -> Any:
    server = forkserver.ForkServer()
    server.set_forkserver_preload(["pytest", *modules])  # each process imports the main module again
    return server
