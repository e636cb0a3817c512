"""Ways in which an (N, C, ...) tensor lies in memory; each returns the same values with other strides."""

from collections.abc import Callable

import torch
from torch import Tensor

Layout = Callable[[Tensor], Tensor]


def contiguous(x: Tensor) -> Tensor:
    return x.contiguous()


def channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def reversed_dims(x: Tensor) -> Tensor:
    backwards = tuple(reversed(range(x.dim())))
    return x.permute(backwards).contiguous().permute(backwards)


def sliced(x: Tensor) -> Tensor:
    return torch.cat([x, x], dim=-1)[..., : x.shape[-1]]


DENSE: list[Layout] = [contiguous, channels_last, reversed_dims]
ALL: list[Layout] = [*DENSE, sliced]
