"""The ranks of a group add numbers: those of a host in shared memory, the hosts by messages of the group.

Ranks of one host add in the order of the ranks. Then the first rank of each host sends the host's sums to
that of the first host, which adds them in the order of the hosts and sends the total back. So all ranks get
the same bits, in every run on the same hosts.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from sync_bn import _shared_memory
from sync_bn._handshake import DesynchronizedError, difference_message, listed
from sync_bn._shared_memory import Kind, MeetingFailed, RanksDiffer, SharedMemory

KINDS = {torch.float64: Kind.DOUBLES, torch.int64: Kind.INTEGERS}
_DESYNCHRONIZED, _LOST = "D", "L"
"""The first letter of a verdict: which error it is."""
_TAG = 1929527138  # of messages between hosts, unlike that of any other program
_TEXT_BYTES = 1024
_DEFAULT_TIMEOUT = 1800.0


class Places(NamedTuple):
    """Where the ranks of a group are.

    ranks: the global number of each rank of the group. hosts: the ranks of the group on each host. rank: this
    one's number in the group.
    """

    ranks: Sequence[int]
    hosts: Sequence[Sequence[int]]
    rank: int

    @property
    def own_host(self) -> Sequence[int]:
        """The ranks of this host."""
        return next(host for host in self.hosts if self.rank in host)

    @property
    def leads(self) -> bool:
        """Whether this rank is the first of its host."""
        return self.own_host[0] == self.rank


class Meeting:
    """The ranks of one group. memory: of those on this host; None if this rank is alone there."""

    def __init__(self, places: Places, memory: SharedMemory | None) -> None:
        self._places, self._memory = places, memory
        self._leaders = [places.ranks[host[0]] for host in places.hosts]
        self._own_host = [places.ranks[rank] for rank in places.own_host]
        self._capacity = _shared_memory.capacity()
        self._verdict = ""
        self._last_words: list[dist.Work] = []
        self._entered, self._messages = 0, 0

    def add(self, numbers: Tensor, group: dist.ProcessGroup, what: str) -> None:
        """Adds in place. See `_sums.add`."""
        if self._verdict:
            raise _error(self._verdict)
        assert numbers.is_contiguous()
        self._entered += 1
        try:
            if numbers.numel() <= self._capacity:
                self._add(numbers, group, what)
            else:
                for piece in torch.split(numbers.view(-1), self._capacity):
                    self._add(piece, group, what)
        except BaseException as error:
            # The other ranks wait for this one, or are about to.
            if not self._verdict:
                self._fail(f"{_LOST}Rank {dist.get_rank()} has left {what}: {type(error).__name__}: {error}")
                self._tell_hosts(group)
            raise

    @property
    def is_on_one_host(self) -> bool:
        """Whether all ranks of the group are on one host."""
        return len(self._leaders) == 1

    @property
    def uncounted(self) -> int:
        """The number of sums that this rank has entered, without those that the group counts as messages.

        With the group's own count it is the same on all ranks that have entered equally many collectives.
        """
        return self._entered - self._messages

    def close(self) -> None:
        """Gives back the memory."""
        if self._memory is not None:
            self._memory.close()

    def _add(self, numbers: Tensor, group: dist.ProcessGroup, what: str) -> None:
        if self._memory is not None:
            self._meet(self._memory, KINDS[numbers.dtype], numbers, group, what)
        if len(self._leaders) == 1:
            return
        if self._places.leads:
            self._add_hosts(numbers, group, f"{what}, {numbers.numel()} numbers")
        if self._memory is not None:
            self._meet(self._memory, Kind.OF_THE_FIRST, numbers, group, what)

    def _meet(
        self, memory: SharedMemory, kind: Kind, numbers: Tensor, group: dist.ProcessGroup, what: str
    ) -> None:
        check = partial(self._check_others, memory, group, what, monotonic())
        try:
            memory.meet(kind, numbers.data_ptr(), numbers.numel(), what, check)
        except MeetingFailed as failed:
            raise _error(str(failed)) from None
        except RanksDiffer as differ:
            text = difference_message(dict(zip(self._own_host, differ.whats, strict=True)))
            text = text or f"The ranks do not add equally many numbers in {what}"
            raise _error(memory.fail(_DESYNCHRONIZED + text)) from None

    def _check_others(self, memory: SharedMemory, group: dist.ProcessGroup, what: str, begun: float) -> None:
        """Raises if a rank of this host has ended, or is too late."""
        while_waiting = f"while rank {dist.get_rank()} waited to enter\n  {what}"
        if ended := memory.ended():
            text = f"Rank {self._listed(ended)} has ended, or left the process group, {while_waiting}"
            raise _error(memory.fail(_LOST + text))
        timeout = _timeout(group)
        if monotonic() - begun > timeout:
            # None is absent if one was stopped after it had come and before it told the others.
            absent = memory.absent() or [rank for rank in range(memory.ranks) if rank != memory.rank]
            text = (
                f"Rank {self._listed(absent)} did not arrive within {timeout:g} s, the timeout of the "
                f"process group, {while_waiting}\n"
                "It may have skipped the layer, failed, or be busy with a long operation."
            )
            raise _error(memory.fail(_LOST + text))

    def _listed(self, ranks: Sequence[int]) -> str:
        return listed([self._own_host[rank] for rank in ranks])

    def _add_hosts(self, numbers: Tensor, group: dist.ProcessGroup, operation: str) -> None:
        """Adds the sums of the hosts. Entered by the first rank of each host, all of which reach it.

        A text goes before the numbers, because gloo does not see whether two ranks send equally many. It is
        the operation with a "=", or the verdict of a host whose ranks have failed.
        """
        first, *others = self._leaders
        if first == dist.get_rank():
            texts = {rank: _text(self._received(_as_tensor(""), rank, group)) for rank in others}
            verdict = _verdict_of({first: f"={operation}", **texts})
            if not verdict:
                for rank in others:
                    numbers += self._received(torch.empty_like(numbers), rank, group)
            answers = [self._sent(_as_tensor(verdict), rank, group) for rank in others]
            if not verdict:
                answers += [self._sent(numbers, rank, group) for rank in others]
                for answer in answers:
                    answer.wait()
            else:
                self._last_words = answers  # a host that has failed may never receive them
        else:
            told = [self._sent(_as_tensor(f"={operation}"), first, group), self._sent(numbers, first, group)]
            verdict = _text(self._received(_as_tensor(""), first, group))
            if not verdict:
                for each in told:
                    each.wait()
                self._received(numbers, first, group)
        if verdict:
            raise _error(self._fail(verdict))

    def _tell_hosts(self, group: dist.ProcessGroup) -> None:
        """Sends the verdict of this host where the next text is expected from it."""
        if len(self._leaders) > 1 and self._places.leads:
            first, *others = self._leaders
            with suppress(RuntimeError):  # what is lost is the connection
                self._last_words = [
                    self._sent(_as_tensor(self._verdict), rank, group)
                    for rank in (others if first == dist.get_rank() else [first])
                ]

    def _sent(self, tensor: Tensor, rank: int, group: dist.ProcessGroup) -> dist.Work:
        self._messages += 1
        work = dist.isend(tensor, rank, group, _TAG)
        assert work is not None
        return work

    def _received(self, tensor: Tensor, rank: int, group: dist.ProcessGroup) -> Tensor:
        self._messages += 1
        dist.recv(tensor, rank, group, _TAG)
        return tensor

    def _fail(self, verdict: str) -> str:
        """Ends the meeting for the ranks of this host. Returns the verdict that counts, the first one."""
        self._verdict = verdict if self._memory is None else self._memory.fail(verdict)
        return self._verdict


def _verdict_of(texts: Mapping[int, str]) -> str:
    """Returns the verdict of a host that has failed, or about operations that differ; "" if there is none."""
    for text in texts.values():
        if not text.startswith("="):
            return text
    difference = difference_message({rank: text[1:] for rank, text in texts.items()})
    return difference and _DESYNCHRONIZED + difference


def _error(verdict: str) -> Exception:
    kind, text = verdict[:1], verdict[1:]
    return DesynchronizedError(text) if kind == _DESYNCHRONIZED else dist.DistBackendError(text)


def _timeout(group: dist.ProcessGroup) -> float:
    try:
        return float(group._get_backend(torch.device("cpu")).options._timeout.total_seconds())
    except (AttributeError, RuntimeError):  # not every backend has one
        return _DEFAULT_TIMEOUT


def _as_tensor(text: str) -> Tensor:
    content = text.encode()[:_TEXT_BYTES].ljust(_TEXT_BYTES, b"\0")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _text(tensor: Tensor) -> str:
    return bytes(tensor.tolist()).rstrip(b"\0").decode(errors="replace")
