"""What rank 0 makes for all ranks. If it raises an error instead, every rank raises one: none waits forever.

Only rank 0 asks a user's sampler for its order, or reads a user's stream: their state and random draws then
cannot differ between ranks, nor depend on their number.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from training.errors import BuildError, RankZeroFailed, message_of

T = TypeVar("T")


def is_rank_zero() -> bool:
    """Returns whether this is rank 0, or the only process."""
    return not dist.is_initialized() or dist.get_rank() == 0


def from_rank_zero(make: Callable[[], T]) -> T:
    """Returns what `make` returns on rank 0. Collective if there are several ranks: all must call it."""
    if not _several():
        return make()
    if dist.get_rank() == 0:
        return cast(T, _send(make, lambda answer: dist.broadcast_object_list([answer])))
    received: list[Any] = [None]
    dist.broadcast_object_list(received)
    return cast(T, _value(received[0]))


class Scatter:
    """Gives each rank its own part of what rank 0 makes. Collective: all ranks must make it and call it.

    Parts travel through gloo, because they are objects in the memory of the CPU.
    """

    def __init__(self) -> None:
        self._group: Any = None
        if _several() and dist.get_backend() != "gloo":
            self._group = dist.new_group(backend="gloo")  # every rank reaches this

    def __call__(self, make: Callable[[], Sequence[T]]) -> T:
        """Returns this rank's part; `make` is called on rank 0 alone and returns one for each rank."""
        if not _several():
            return make()[0]
        if dist.get_rank() == 0:
            return cast(T, _send(make, self._scatter, parts=True))
        return cast(T, _value(self._scatter(None)))

    def _scatter(self, answers: list[bytes] | None) -> bytes:
        received: list[Any] = [None]
        dist.scatter_object_list(received, answers, src=0, group=self._group)
        return cast(bytes, received[0])


def _several() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1


def _send(make: Callable[[], Any], send: Callable[[Any], object], *, parts: bool = False) -> Any:
    """Makes a value on rank 0 and sends it; sends an error too, before it raises it."""
    copies = dist.get_world_size() if parts else 1
    try:
        value = make()
        # Pickled here, because an error in the middle of a collective would leave the others waiting.
        answers = [_pickled((None, part)) for part in (value[1:] if parts else [value])]
    except BaseException as error:
        failure = _pickled((_for_others(error), None))
        send([failure] * copies if parts else failure)
        raise
    send([b"", *answers] if parts else answers[0])
    return value[0] if parts else value


def _for_others(error: BaseException) -> BuildError | str:
    return error if type(error) is BuildError else f"{type(error).__name__}: {message_of(error)}"


def _value(answer: bytes) -> Any:
    error, value = pickle.loads(answer)
    if isinstance(error, BuildError):
        raise error
    if error is not None:
        raise RankZeroFailed(error)
    return value


class _Pickler(pickle.Pickler):
    """Pickles a tensor's own numbers alone: torch pickles all of the storage that a slice is a view of."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is not Tensor or value.requires_grad or value.device.type != "cpu":
            return NotImplemented
        if value.layout is not torch.strided or value.is_quantized or value.is_conj() or value.is_neg():
            return NotImplemented
        if value.dtype in _KNOWN_TO_NUMPY:  # seven times as fast as torch
            return torch.from_numpy, (value.numpy(),)
        return value.clone().__reduce_ex__(pickle.HIGHEST_PROTOCOL)  # type: ignore[no-untyped-call]


_KNOWN_TO_NUMPY = {
    torch.bool,
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.float32, torch.float64, torch.complex64, torch.complex128),
}


def _pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(value)
    return buffer.getvalue()
