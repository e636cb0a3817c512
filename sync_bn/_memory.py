"""How a tensor lies in memory: what compiled passes, which read and write it by address, must know first."""

import torch
from torch import Tensor
from torch.nn import Parameter

_PLAIN = Tensor, Parameter
_CHANNELS_LAST = {2: torch.contiguous_format, 4: torch.channels_last, 5: torch.channels_last_3d}


def is_readable(values: Tensor) -> bool:
    """Whether `values` is a strided floating-point tensor of no subclass, which can be copied."""
    return type(values) in _PLAIN and values.layout is torch.strided and values.is_floating_point()


def is_dense(values: Tensor) -> bool:
    """Whether the memory at `data_ptr` holds `numel` plain numbers, if the strides leave no gaps."""
    return (
        type(values) in _PLAIN
        and values.layout is torch.strided
        and not values.is_neg()
        and not values._is_zerotensor()
        and values.untyped_storage().nbytes()
        >= (values.storage_offset() + values.numel()) * values.element_size()
    )


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of x, (N, C, ...), are next to each other, without gaps."""
    memory_format = _CHANNELS_LAST.get(x.dim())
    if memory_format is None:
        return x.movedim(1, -1).is_contiguous()
    return x.is_contiguous(memory_format=memory_format)


def like(x: Tensor, other: Tensor) -> Tensor:
    """Returns `other` with the dtype and strides of x; a copy only if they differ."""
    assert other.shape == x.shape
    if other.dtype == x.dtype and other.stride() == x.stride() and is_dense(other):
        return other
    return torch.empty_like(x).copy_(other)
