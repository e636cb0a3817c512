"""The fork server: forks processes that have torch, lightning and our packages already imported.

It is the standard library's, started with an environment of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any

PRELOAD, PRELOAD_ON_CLUSTER = "training.host.warm", "training.host.warm_cluster"


class ForkServer:
    """The fork server of this process, which ends with this process.

    environment: the initial environment of the processes that it forks.
    on_cluster: also preload what runs on a cluster need (`training.host.warm_cluster`).
    """

    def __init__(self, environment: Mapping[str, str], *, on_cluster: bool = True) -> None:
        self._environment = environment
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([PRELOAD_ON_CLUSTER, PRELOAD] if on_cluster else [PRELOAD])
        self._lock = threading.Lock()

    def warm_up(self) -> None:
        """Starts the server if it does not run, and blocks until everything is imported."""
        self.fork(_nothing).join()

    def fork(self, target: Callable[..., object], *arguments: Any) -> BaseProcess:
        """Calls `target` in a new process. Arguments are pickled; they may include sockets and connections.

        Starts the server again if it was killed, and then blocks until everything is imported.
        """
        process = self._context.Process(target=target, args=arguments)
        with self._lock, _environment(self._environment), _no_main_module():
            forkserver.ensure_running()
            process.start()
        return process


def _nothing() -> None:
    """Does nothing: `warm_up` forks it to wait for the server."""


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Replaces `os.environ` while the fork server starts, which inherits all of it, secrets included."""
    own = dict(os.environ)
    _replace_environment(variables)
    try:
        yield
    finally:
        _replace_environment(own)


def _replace_environment(variables: Mapping[str, str]) -> None:
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    os.environ.update(variables)


@contextmanager
def _no_main_module() -> Iterator[None]:
    """Hides the main module (a command line or a Ray worker), which a forked process would import."""
    own = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = own
