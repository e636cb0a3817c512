"""One thread for each shard of a rank: all run the same code on their own shards, one at a time.

A thread runs until it has to meet the others, at a layer whose statistics are over the whole batch or at a
call that is made once for all, or until its end; then it wakes the next one. So the code of a model need not
know of shards, and what torch keeps for each thread (whether gradients are recorded, autocast, hooks of saved
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
    thread goes on, perhaps in the thread of another shard. leave: called when all have ended.
    """

    def __init__(
        self, numbers: Sequence[int], enter: Callable[[int], None], leave: Callable[[], None]
    ) -> None:
        self._numbers, self._enter, self._leave = numbers, enter, leave
        self._threads = [_ShardThread(self, index) for index in range(len(numbers))]
        self._functions: list[Callable[[], Any]] = []
        self._by_ident: dict[int, int] = {}
        self._order = list(range(len(numbers)))
        """In which the shards go on in a round, which is over when each has arrived or ended."""
        self._gone_on = 0
        self._round_over = _locked()
        self._places: dict[int, str] = {}
        self._values: dict[int, Any] = {}
        self._waiting: set[int] = set()
        self._results: Sequence[Any] = ()
        self._latest = self._common = self._collectives = 0
        self._inference = False
        self._outside: Joint | None = None
        self._outside_error: Exception | None = None
        self._error: BaseException | None = None

    @property
    def running(self) -> int | None:
        """The index of the shard whose thread calls; None in any other thread."""
        return self._by_ident.get(_thread.get_ident())

    def run(self, functions: Sequence[Callable[[], T]]) -> list[T]:
        """Calls a function for each shard, each in its thread; returns what they return.

        Raises the first error of a function, and StepError if some of them end while others wait to meet.
        """
        assert self.running is None
        self._outside = self._outside_error = self._error = None
        self._inference = torch.is_inference_mode_enabled()
        self._functions = list(functions)
        self._order.sort()
        try:
            while self._round():
                self._check()
                self._call_outside()
                self._order.reverse()
        finally:
            self._functions = []
            self._leave()
        return [thread.result for thread in self._threads]

    def close(self) -> None:
        """Ends the threads, of which none runs, and forgets what they have computed."""
        for thread in self._threads:
            thread.end()
        # A tensor in it may hold its graph, and the graph this: Python does not see that it is a cycle.
        self._results, self._outside, self._outside_error = (), None, None
        self._values.clear()

    def meet(self, place: str, value: Any, joint: Joint) -> Any:
        """Returns this shard's part of joint(values of all shards of this rank, in their order).

        Call it in a shard's thread. place: in words, equal on all shards. joint: is called once, in the
        thread of one of the shards.
        """
        index = self._arrive(place, value)
        if self._gone_on == len(self._order) and self._may_go_on():
            # The last to arrive computes what all get, and is the first to go on: its data is in the cache.
            self._order.reverse()
            self._begin_round()
            self._go_on(self._next())
            internals.count_sequence_on(self._latest)
            self._results = joint(self._brought())
            self._collectives = internals.collectives_entered() or 0
            self._latest = self._common = internals.sequence_number()
        else:
            self._wait(index)
        return self._results[index]

    def meet_outside(self, place: str, value: Any, joint: Joint) -> Any:
        """The same, but joint is called where no shard runs: in the thread that called `run`.

        An error of joint is raised in all shards.
        """
        self._outside = joint
        index = self._arrive(place, value)
        self._wait(index)
        if self._outside_error is not None:
            raise self._outside_error
        return self._results[index]

    def _round(self) -> bool:
        """Lets all shards go on until each has arrived or ended; returns whether any has arrived."""
        self._begin_round()
        self._common, self._collectives = self._latest, internals.collectives_entered() or 0
        self._wake_next()
        self._round_over.acquire()
        if self._error is not None:
            self._abandon()
            error, self._error = self._error, None
            raise error
        return bool(self._places)

    def _begin_round(self) -> None:
        self._places.clear()
        self._gone_on = 0

    def _next(self) -> int:
        self._gone_on += 1
        return self._order[self._gone_on - 1]

    def _go_on(self, index: int) -> None:
        self._waiting.discard(index)
        if torch.is_inference_mode_enabled() == self._inference:
            self._enter(index)
        else:  # a shard that calls this may be within a mode of its own
            with torch.inference_mode(self._inference):
                self._enter(index)

    def _wake_next(self) -> None:
        """Called where a thread has arrived or ended: lets the next one go on, or ends the round."""
        if self._gone_on == len(self._order):
            self._round_over.release()
            return
        index = self._next()
        try:
            self._go_on(index)
        except Exception as error:
            self._fail(error)
        else:
            self._threads[index].wake()

    def _fail(self, error: BaseException) -> None:
        self._error = error
        self._round_over.release()

    def _arrive(self, place: str, value: Any) -> int:
        """Notes where the calling thread is, and what it has brought; returns the index of its shard."""
        index = self.running
        assert index is not None
        self._threads[index].check()
        self._places[index], self._values[index] = place, value
        self._latest = max(self._latest, internals.sequence_number())
        return index

    def _wait(self, index: int) -> None:
        """Lets the other shards go on until they have arrived, too."""
        self._waiting.add(index)
        if (error := self._communicated()) is not None:
            self._fail(error)
        else:
            self._wake_next()
        self._threads[index].wait()
        internals.count_sequence_on(self._common)

    def _end(self, error: BaseException | None) -> None:
        """Called by a thread whose function has ended."""
        error = error or self._communicated()
        if error is not None:
            self._fail(error)
        else:
            self._wake_next()

    def _communicated(self) -> StepError | None:
        """Returns an error if the thread that runs has entered collectives by itself."""
        if (internals.collectives_entered() or 0) == self._collectives:
            return None
        return StepError(
            "a step communicates with other workers by torch.distributed, but training.reproducible: bits "
            "runs it once for each of several shards; use sync_bn.global_mean in the step, do it in a hook "
            "of the epoch, or set training.reproducible to curve"
        )

    def _brought(self) -> list[Any]:
        values = [self._values[each] for each in range(len(self._numbers))]
        self._values.clear()
        return values

    def _call_outside(self) -> None:
        joint, self._outside = self._outside, None
        if joint is None:
            return
        self._leave()
        try:
            self._results = joint(self._brought())
        except Exception as error:
            self._outside_error = error

    def _may_go_on(self) -> bool:
        """Returns whether the last shard to arrive may compute what it has come for."""
        return self._outside is None and self._differing() is None and self._communicated() is None

    def _differing(self) -> list[str] | None:
        """Returns where the shards are, in words, unless all wait at the same place."""
        if len(self._places) == len(self._numbers) and len(set(self._places.values())) == 1:
            return None
        return [
            f"shard {number} at {self._places.get(index, 'the end of its step')}"
            for index, number in enumerate(self._numbers)
        ]

    def _check(self) -> None:
        """Raises StepError unless all threads wait at the same place."""
        where = self._differing()
        if where is not None:
            self._abandon()
            raise StepError(
                f"the shards of a batch are at different places ({'; '.join(where)}). Every shard must run "
                "the same layers that see the whole batch, and the same calls of optimizers and of "
                "manual_backward, equally often and in the same order: decide by what all shards know, such "
                "as the number of the batch"
            )

    def _abandon(self) -> None:
        while self._waiting:
            self._threads[self._waiting.pop()].abandon()
        self._values.clear()


class _ShardThread:
    def __init__(self, owner: ShardThreads, index: int) -> None:
        self._owner, self._index = owner, index
        self._go, self._given_up = _locked(), _locked()
        self._is_abandoned = self._is_started = self._is_ended = False
        self._cpu_threads = torch.get_num_threads()
        self.result: Any = None

    def wake(self) -> None:
        """Lets the thread call its function, or go on where it waits."""
        if not self._is_started:
            self._is_started = True
            threading.Thread(target=self._live, name=f"shard {self._index}", daemon=True).start()
        self._go.release()

    def wait(self) -> None:
        """Called in the thread: waits until it is woken."""
        self._go.acquire()
        self.check()

    def check(self) -> None:
        """Called in the thread: ends what it does if it has been abandoned."""
        if self._is_abandoned:
            raise _Abandoned

    def abandon(self) -> None:
        """Ends what the thread does, which waits."""
        self._is_abandoned = True
        self._go.release()
        self._given_up.acquire()
        self._is_abandoned = False

    def end(self) -> None:
        """Ends the thread, which has nothing to do."""
        self.result = None
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
            failure: BaseException | None = None
            try:
                self.result = self._owner._functions[self._index]()
            except BaseException as error:
                failure = error
            if self._is_abandoned:
                self._given_up.release()
            else:
                self._owner._end(failure)


def _locked() -> _thread.LockType:
    lock = _thread.allocate_lock()
    lock.acquire()
    return lock
