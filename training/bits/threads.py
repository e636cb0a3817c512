"""One thread for each shard of a rank: all run the same code on their own shards, one at a time.

A thread runs until it has to meet the others, at a layer whose statistics are over the whole batch or at a
call that is made once for all, or until its end; then the next one runs. So the code of a model need not know
of shards, and what torch keeps for each thread (whether gradients are recorded, autocast, hooks of saved
tensors) is that of its shard.

A backward pass has one thread: it runs all shards' operations in the reverse order of their numbers, which
torch counts in each thread. After a meeting all threads count on from a common number. So an operation has a
greater number than all before it, those of meetings included, whichever shards a rank has; and where several
gradients of a shard are added, as at the inputs of a dense block, they are in one order.
"""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from training import internals
from training.errors import StepError

T = TypeVar("T")
Joint = Callable[[list[Any]], Sequence[Any]]


_of_thread = threading.local()


def in_shard() -> bool:
    """Returns whether the calling thread runs the step of a shard."""
    return hasattr(_of_thread, "shard")


class _Abandoned(BaseException):
    """Ends a thread that waits for others of which one has failed."""


class ShardThreads:
    """The threads of a rank's shards, which live until `close`.

    numbers: those of the shards, for messages. enter: called with the index among this rank's shards before a
    thread goes on. leave: called when all have ended.
    """

    def __init__(
        self, numbers: Sequence[int], enter: Callable[[int], None], leave: Callable[[], None]
    ) -> None:
        self._numbers, self._enter, self._leave = numbers, enter, leave
        self._threads = [_ShardThread(self, index) for index in range(len(numbers))]
        self._by_ident: dict[int, int] = {}
        self._places: dict[int, str] = {}
        self._values: dict[int, Any] = {}
        self._waiting: set[int] = set()
        self._results: Sequence[Any] = ()
        self._sequence_number = self._own_collectives = 0
        self._outside: Joint | None = None
        self._failure: Exception | None = None

    @property
    def running(self) -> int | None:
        """The index of the shard whose thread calls; None in any other thread."""
        return self._by_ident.get(_thread.get_ident())

    def run(self, functions: Sequence[Callable[[], T]]) -> list[T]:
        """Calls a function for each shard, each in its thread; returns what they return.

        Raises the first error of a function, and StepError if some of them end while others wait to meet.
        """
        assert self.running is None
        self._outside = self._failure = None
        try:
            return self._run(functions)
        finally:
            self._leave()

    def _run(self, functions: Sequence[Callable[[], T]]) -> list[T]:
        self._places.clear()
        order = list(range(len(functions)))
        for index in order:
            self._resume(index, functions[index])
        while self._places:
            self._check()
            if self._outside is not None:
                self._call_outside()
            self._places.clear()
            # The last to arrive computes what all get, and is the first to go on: its data is in the cache.
            order.reverse()
            for index in order:
                self._resume(index, None)
        return [thread.result for thread in self._threads]

    def close(self) -> None:
        """Ends the threads, of which none runs, and forgets what they have computed."""
        for thread in self._threads:
            thread.end()
        # A tensor in it may hold its graph, and the graph this: Python does not see that it is a cycle.
        self._results, self._outside, self._failure = (), None, None
        self._values.clear()

    def meet(self, place: str, value: Any, joint: Joint) -> Any:
        """Returns this shard's part of joint(values of all shards of this rank, in their order).

        Call it in a shard's thread. place: in words, equal on all shards. joint: is called once, in the
        thread of one of the shards.
        """
        is_last = len(self._places) == len(self._numbers) - 1
        index = self._arrive(place, value)
        if is_last:
            entered = internals.collectives_entered() or 0
            self._results = joint(self._brought())
            self._own_collectives += (internals.collectives_entered() or 0) - entered
            self._sequence_number = internals.sequence_number()
        return self._results[index]

    def meet_outside(self, place: str, value: Any, joint: Joint) -> Any:
        """The same, but joint is called where no shard runs: in the thread that called `run`.

        An error of joint is raised in all shards.
        """
        self._outside = joint
        index = self._arrive(place, value)
        if self._failure is not None:
            raise self._failure
        return self._results[index]

    def _arrive(self, place: str, value: Any) -> int:
        """Lets the other shards run until they have arrived, too; returns the index of this one."""
        index = self.running
        assert index is not None
        self._places[index], self._values[index] = place, value
        self._waiting.add(index)
        self._sequence_number = max(self._sequence_number, internals.sequence_number())
        self._threads[index].wait()
        internals.count_sequence_on(self._sequence_number)
        return index

    def _brought(self) -> list[Any]:
        values = [self._values[each] for each in range(len(self._numbers))]
        self._values.clear()
        return values

    def _call_outside(self) -> None:
        joint, self._outside = self._outside, None
        assert joint is not None
        self._leave()
        try:
            self._results = joint(self._brought())
        except Exception as error:
            self._failure = error

    def _resume(self, index: int, function: Callable[[], Any] | None) -> None:
        self._waiting.discard(index)
        self._enter(index)
        thread = self._threads[index]
        self._own_collectives, entered = 0, internals.collectives_entered() or 0
        thread.go_on(function)
        error, thread.error = thread.error, None
        if (internals.collectives_entered() or 0) - entered != self._own_collectives and error is None:
            error = StepError(
                "a step communicates with other workers by torch.distributed, but training.reproducible: "
                "bits runs it once for each of several shards; use sync_bn.global_mean in the step, do it in "
                "a hook of the epoch, or set training.reproducible to curve"
            )
        if error is not None:
            self._abandon()
            raise error

    def _check(self) -> None:
        """Raises StepError unless all threads wait at the same place."""
        places = {self._places.get(index, "end of the step") for index in range(len(self._numbers))}
        if len(places) > 1:
            where = "; ".join(
                f"shard {number} at {self._places.get(index, 'the end of its step')}"
                for index, number in enumerate(self._numbers)
            )
            self._abandon()
            raise StepError(
                f"the shards of a batch are at different places ({where}). Every shard must run the same "
                "layers that see the whole batch, and the same calls of optimizers and of manual_backward, "
                "equally often and in the same order: decide by what all shards know, such as the number of "
                "the batch"
            )

    def _abandon(self) -> None:
        while self._waiting:
            self._threads[self._waiting.pop()].abandon()
        self._values.clear()


class _ShardThread:
    def __init__(self, owner: ShardThreads, index: int) -> None:
        self._owner, self._index = owner, index
        self._go, self._back = _locked(), _locked()
        self._function: Callable[[], Any] | None = None
        self._is_abandoned = self._is_started = self._is_ended = False
        self._cpu_threads = torch.get_num_threads()
        self.result: Any = None
        self.error: BaseException | None = None

    def go_on(self, function: Callable[[], Any] | None) -> None:
        """Lets the thread call `function`, or go on where it waits, until it waits again or has ended."""
        if not self._is_started:
            self._is_started = True
            threading.Thread(target=self._live, name=f"shard {self._index}", daemon=True).start()
        if function is not None:
            self._function = function
        self._go.release()
        self._back.acquire()

    def wait(self) -> None:
        """Called in the thread: lets the caller of `go_on` go on until it calls it again."""
        self._back.release()
        self._go.acquire()
        if self._is_abandoned:
            raise _Abandoned

    def abandon(self) -> None:
        """Ends what the thread does."""
        self._is_abandoned = True
        self._go.release()
        self._back.acquire()
        self._is_abandoned = False
        self.error = None

    def end(self) -> None:
        """Ends the thread, which has nothing to do."""
        self.result = self.error = None
        if self._is_started:
            self._is_ended = True
            self._go.release()

    def _live(self) -> None:
        self._owner._by_ident[_thread.get_ident()] = _of_thread.shard = self._index
        torch.set_num_threads(self._cpu_threads)  # OpenMP counts them for each thread that computes
        # One cache serves all threads, and the first that leaves its autocast empties it: how often a weight
        # that is used twice is rounded would depend on which shards this rank has.
        torch.set_autocast_cache_enabled(False)
        while True:
            self._go.acquire()
            if self._is_ended:
                return
            function, self._function = self._function, None
            assert function is not None
            try:
                self.result = function()
            except BaseException as error:
                self.error = error
            del function
            self._back.release()


def _locked() -> _thread.LockType:
    lock = _thread.allocate_lock()
    lock.acquire()
    return lock
