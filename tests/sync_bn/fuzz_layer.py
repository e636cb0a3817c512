"""Thousands of odd calls of the layer, for a process in which the loops are checked by AddressSanitizer.

    LD_PRELOAD=libasan.so python fuzz_layer.py LIBRARY CALLS

What does not fit is left to torch or refused by an exception. A read or write outside a tensor's memory ends
the process.
"""

import random
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from sync_bn import SyncBatchNorm, _native


class Tagged(Tensor): ...


def channels_last(t: Tensor) -> Tensor:
    return t.to(memory_format=torch.channels_last) if t.dim() == 4 else t


CHANGES: list[Callable[[Tensor], Any]] = [
    *[lambda t: t] * 8,
    channels_last,
    Tensor.contiguous,
    Tensor.double,
    Tensor.bfloat16,
    Tensor.half,
    lambda t: t[..., ::2],
    lambda t: t[:1],
    lambda t: t[:0],
    lambda t: t.flatten(),
    lambda t: t.reshape(-1)[:1].expand(t.shape) if t.numel() else t,
    lambda t: t.reshape(-1).repeat(2)[: t.numel()].view(t.shape) if t.numel() else t,
    lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    lambda t: t.as_subclass(Tagged),
    lambda t: torch._neg_view(t),
    lambda t: t.to("meta"),
    lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype),
]


def odd(t: Tensor) -> Any:
    return random.choice(CHANGES)(t.detach())


def parameter(channels: int, *, device: str = "cpu") -> Any:
    size = random.choice([channels] * 12 + [channels - 1, channels + 3, 1, 0])
    made = odd(torch.rand(size, device=device))
    return random.choice([nn.Parameter(made)] * 6 + [None]) if made.is_floating_point() else None


def layer_with_odd_parts(channels: int) -> SyncBatchNorm:
    layer = SyncBatchNorm(channels, activation=random.choice([None, None, "relu", "leaky_relu", "silu"]))
    layer.momentum = random.choice([0.1, None])
    for name in ("weight", "bias"):
        if random.random() < 0.2:
            setattr(layer, name, parameter(channels))
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        if random.random() < 0.1:
            given = parameter(channels)
            setattr(layer, name, None if given is None else given.detach())
    return layer


def hooks() -> Any:
    if random.random() < 0.6:
        return nullcontext()
    pack, unpack = random.choice(CHANGES), random.choice(CHANGES)
    return torch.autograd.graph.saved_tensors_hooks(lambda t: pack(t.detach()), lambda t: unpack(t))


def call() -> None:
    channels = random.choice([3, 16, 17, 33])
    rest = random.choice([(4, 4), (3, 2), (16,), (17,), (), (2, 3, 5)])
    x = torch.randn(random.choice([1, 2, 5]), channels, *rest)
    dz = odd(torch.randn(x.shape))
    x = odd(x)
    x = x.requires_grad_() if x.is_floating_point() else x
    residual = odd(torch.randn(x.shape)) if random.random() < 0.3 else None
    layer = layer_with_odd_parts(channels)
    with patch.object(SyncBatchNorm, "_is_plain", lambda _: False), hooks():
        y = layer(x, residual)
    gradient = dz if dz.shape == y.shape else torch.ones_like(y)
    torch.autograd.grad(y, [x], gradient.to(y.dtype))


def main(library: str, calls: int) -> None:
    torch.set_num_threads(1)
    random.seed(0)
    torch.manual_seed(0)
    with patch("sync_bn._native.find_spec") as found:
        found.return_value.origin = library
        _native._LIBRARY = _native._load()
    assert _native.is_built()
    done = refused = 0
    with patch("sync_bn._function.dist.all_reduce"), patch("sync_bn._handshake.policy.steps", 0):
        for _ in range(calls):
            try:
                call()
                done += 1
            except (RuntimeError, ValueError, IndexError, NotImplementedError, TypeError):
                refused += 1
    assert done > calls / 4, f"{refused} of {calls} were refused"


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
