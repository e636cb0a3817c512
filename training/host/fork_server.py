"""Processes forked from one that has torch, lightning and our packages imported: the standard library's
fork server, started with an environment of its own.
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
    """One for each process that uses it; it ends with that process.

    environment: of the processes that it forks, until they change it. on_cluster: it imports what the
    runs of a cluster need.
    """

    def __init__(self, environment: Mapping[str, str], *, on_cluster: bool = True) -> None:
        self._environment = environment
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([PRELOAD_ON_CLUSTER, PRELOAD] if on_cluster else [PRELOAD])
        self._lock = threading.Lock()

    def warm_up(self) -> None:
        """Starts it, if it does not run, and blocks until everything is imported."""
        self.fork(_nothing).join()

    def fork(self, target: Callable[..., object], *arguments: Any) -> BaseProcess:
        """Calls `target` in a new process. Arguments are pickled; sockets and connections may be among them.

        Starts the server again if it was killed; then this blocks until everything is imported.
        """
        process = self._context.Process(target=target, args=arguments)
        with self._lock, _environment(self._environment), _no_main_module():
            forkserver.ensure_running()
            process.start()
        return process


def _nothing() -> None:
    """What is forked to see that it can be."""


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """The fork server gets the environment of the process that starts it, secrets included."""
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
    """A process that is forked imports the main module of the one that asks for it: here a command line, or
    a worker of Ray, which a rank has no use for.
    """
    own = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = own
