"""Runs a user's program in a rank, as `python PATH ARGS` would in a process that torchrun has started."""

from __future__ import annotations

import atexit
import builtins
import multiprocessing
import os
import socket
import sys
import threading
from contextlib import suppress
from datetime import timedelta
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType, TracebackType

from training.console import say
from training.errors import full_trace
from training.protocol import Order
from training.rank.children import ending_children
from training.rank.context import JOIN_SECONDS, apply_thread_count, own_address
from training.rank.reports import Reports
from training.spec import Script, parse_spec

_USAGE, _PARSERS = 2, {"argparse", "click", "jsonargparse", "typer"}


def run_script(order: Order, reports: Reports) -> BaseException | None:
    """Waits for all ranks, then runs the program to its end, its threads and functions at exit included.

    Every rank must call it, in a process that does nothing else. Returns what ended the program, printed as
    Python does: an exception, SystemExit among them, or None. Raises an error if the ranks do not meet.
    """
    script = parse_spec(order.spec).script
    assert script is not None
    assert order.rendezvous is not None
    apply_thread_count()
    _be_the_main_process()
    _draw_own_random_numbers()
    _meet(order.world_size, order.rendezvous)
    reports.joined()
    where = f"{socket.gethostname()} ({own_address(order.rendezvous)})"
    say(f"rank {os.environ['RANK']} of {order.world_size} on {where}")
    path = Path(script.path).resolve()
    raised: BaseException | None = None
    try:
        with ending_children():
            _run_as_main(path, script)
    except BaseException as error:
        raised = error.with_traceback(_of_the_program(error, path))
        _print(raised)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    return raised


def is_usage_error(error: SystemExit) -> bool:
    """Returns whether a library has ended the program because of its command line."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = str(trace.tb_frame.f_globals.get("__name__")) if trace is not None else ""
    return error.code == _USAGE and module.partition(".")[0] in _PARSERS


def _run_as_main(path: Path, script: Script) -> None:
    # Not by runpy, which takes __main__ away again before threads and functions at exit have ended.
    main = ModuleType("__main__")
    main.__file__, main.__builtins__ = str(path), builtins  # type: ignore[attr-defined]
    main.__loader__ = SourceFileLoader("__main__", str(path))
    # The second is multiprocessing's name for it in child processes that import it anew.
    sys.modules["__main__"] = sys.modules["__mp_main__"] = main
    sys.argv = [str(path), *script.args]
    sys.path.insert(0, str(path.parent))
    code = compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
    exec(code, main.__dict__)


def _be_the_main_process() -> None:
    """Undoes what shows that the fork server has forked this process."""
    from lightning_utilities.core.rank_zero import rank_zero_only

    multiprocessing.current_process().name = "MainProcess"
    multiprocessing.process._parent_process = None  # type: ignore[attr-defined]
    multiprocessing.set_start_method(None, force=True)
    # Lightning has read it when it was imported
    rank_zero_only.rank = int(os.environ["RANK"])  # type: ignore[attr-defined]


def _draw_own_random_numbers() -> None:
    """Seeds the generators anew, as in a new process; after a fork all ranks would draw the same numbers."""
    import numpy as np
    import torch

    np.random.seed()
    torch.default_generator.seed()


def _meet(world_size: int, rendezvous: str) -> None:
    """Waits until all ranks are there, at most JOIN_SECONDS, so that either all of them begin or none."""
    import torch.distributed as dist

    address, _, port = rendezvous.rpartition(":")
    store = dist.TCPStore(  # type: ignore[attr-defined]
        address, int(port), is_master=False, timeout=timedelta(seconds=JOIN_SECONDS)
    )
    if store.add("syncbn/ranks", 1) == world_size:
        store.set("syncbn/all", "")
    store.wait(["syncbn/all"])


def _of_the_program(error: BaseException, path: Path) -> TracebackType | None:
    """Returns the error's traceback from the program's first line on."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != str(path):
        trace = trace.tb_next
    return trace


def _print(error: BaseException) -> None:
    """Prints an uncaught exception as Python does at the end of a program."""
    if isinstance(error, SystemExit):
        if error.code is not None and not isinstance(error.code, int):
            with suppress(Exception):
                print(error.code, file=sys.stderr, flush=True)  # noqa: T201
        return
    try:
        sys.excepthook(type(error), error, error.__traceback__)
    except Exception:
        say(full_trace(error))
