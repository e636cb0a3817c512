"""Ranks: a function runs in several processes, joined by gloo or NCCL, and a test reads as if it were local.

    with Ranks(3) as ranks:
        results = ranks.run(function, *args)  # function(rank, *args) in each; results in the order of ranks

The processes stay between calls, and are forked from one that has imported torch.
"""

import os
import pickle
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from multiprocessing import connection, parent_process
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, Self, TypeVar

import torch
import torch.distributed as dist

from testing.warm import warm

Result = TypeVar("Result")
Parameters = ParamSpec("Parameters")


class RankError(RuntimeError):
    """A rank raised an error, died, or did not answer in time; the message holds its number and traceback."""


class Rank(NamedTuple):
    process: BaseProcess
    pipe: Connection


class Ranks:
    """`world_size` processes of one thread each, in one group over loopback, started by the first `run`.

    After an error they are killed, because some may wait in a collective for the one that failed; the next
    `run` starts new ones. None outlives the `with` block, nor the process that started them.
    """

    def __init__(
        self,
        world_size: int,
        timeout_seconds: float = 60.0,
        preload: tuple[str, ...] = (),
        backend: str = "gloo",
    ) -> None:
        """preload: modules that they have imported when they start, besides torch and this package.

        backend: with "nccl", the rank is also the number of its GPU.
        """
        self.world_size = world_size
        self._backend = backend
        self._context = warm("torch.distributed", "sync_bn", *preload)
        self.timeout_seconds = timeout_seconds
        self._ranks: list[Rank] = []
        self._meeting_place: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(
        self,
        function: Callable[Concatenate[int, Parameters], Result],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> list[Result]:
        """function(rank, *args) in every rank: their results in order, or a RankError of the first to fail.

        The function is found by its name in a module; it, its arguments and results travel as pickles.
        """
        call = pickle.dumps((function, args, kwargs))
        try:
            self._start()
            for _, pipe in self._ranks:
                # A rank that died since the last call is reported by the reading side, with its exit code.
                with suppress(BrokenPipeError):
                    pipe.send_bytes(call)
            return self._answers()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Kill the ranks and wait until they are gone; may be called again."""
        for process, _ in self._ranks:
            process.kill()
        for process, pipe in self._ranks:
            process.join()
            pipe.close()
        self._ranks = []
        if self._meeting_place is not None:
            self._meeting_place.cleanup()
            self._meeting_place = None

    def _start(self) -> None:
        if self._ranks:
            return
        self._meeting_place = tempfile.TemporaryDirectory(prefix="ranks-")
        store = Path(self._meeting_place.name) / "store"
        for rank in range(self.world_size):
            ours, theirs = self._context.Pipe()
            args = (rank, self.world_size, store, self.timeout_seconds, self._backend, theirs)
            process = self._context.Process(target=_serve, args=args, daemon=True)
            process.start()
            theirs.close()
            self._ranks.append(Rank(process, ours))

    def _answers(self) -> list[Any]:
        deadline = time.monotonic() + self.timeout_seconds
        waiting = {pipe: rank for rank, (_, pipe) in enumerate(self._ranks)}
        results: dict[int, Any] = {}
        while waiting:
            ready = connection.wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                silent = sorted(waiting.values())
                raise RankError(f"ranks {silent} did not answer within {self.timeout_seconds} s")
            for pipe in ready:
                assert isinstance(pipe, Connection)
                rank = waiting.pop(pipe)
                results[rank] = self._answer(rank, pipe)
        return [results[rank] for rank in range(self.world_size)]

    def _answer(self, rank: int, pipe: Connection) -> Any:
        try:
            succeeded, result = pickle.loads(pipe.recv_bytes())
        except (EOFError, ConnectionError):
            process = self._ranks[rank].process
            process.join()
            raise RankError(f"rank {rank} died with exit code {process.exitcode}") from None
        if not succeeded:
            raise RankError(f"rank {rank} of {self.world_size} failed:\n{result}")
        return result


def _serve(
    rank: int, world_size: int, store: Path, timeout_seconds: float, backend: str, pipe: Connection
) -> None:
    """The life of a rank: join the others, then answer calls until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then kills its ranks.
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    if backend == "nccl":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        backend,
        init_method=store.as_uri(),
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_seconds),
    )
    dist.barrier()  # a rank that left the group at once would close connections that others still make
    while True:
        try:
            call = pipe.recv_bytes()
        except EOFError:
            return
        pipe.send_bytes(_answer_to(call, rank))


def _answer_to(call: bytes, rank: int) -> bytes:
    try:
        function, args, kwargs = pickle.loads(call)
        return pickle.dumps((True, function(rank, *args, **kwargs)))
    except BaseException:
        return pickle.dumps((False, traceback.format_exc()))


def _die_with_parent() -> None:
    # A rank that waits in a collective does not see its pipe close.
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
