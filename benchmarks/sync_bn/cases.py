"""The inputs: the shapes of ResNet-50, in two layouts and two dtypes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

# Channels and side of every distinct input of a BatchNorm layer in ResNet-50 at 224 × 224 (He et al.
# 2015, table 1; the stride is in the 3 × 3 convolution, as in torchvision).
RESNET50 = (
    (64, 112),
    (64, 56),
    (256, 56),
    (128, 56),
    (128, 28),
    (512, 28),
    (256, 28),
    (256, 14),
    (1024, 14),
    (512, 14),
    (512, 7),
    (2048, 7),
)
TINY = ((32, 6), (16, 5))
LARGEST_BATCH, MOST_ELEMENTS = 16, 13_000_000


@dataclass(frozen=True, kw_only=True)
class Case:
    """One input, which is sent to the ranks."""

    batch: int
    channels: int
    side: int
    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.contiguous_format

    @property
    def shape(self) -> str:
        return f"({self.batch}, {self.channels}, {self.side}, {self.side})"

    @property
    def format(self) -> str:
        layout = "contiguous" if self.memory_format == torch.contiguous_format else "channels_last"
        return f"{str(self.dtype).removeprefix('torch.')} {layout}"

    @property
    def bytes(self) -> int:
        return self.batch * self.channels * self.side**2 * self.dtype.itemsize

    def tensor(self, seed: int, device: str = "cpu") -> Tensor:
        """Returns standard normal values."""
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(self.batch, self.channels, self.side, self.side, generator=generator)
        return values.to(device, self.dtype).contiguous(memory_format=self.memory_format)


def every_format(
    shapes: Iterable[tuple[int, int]],
    batch: int | None = None,
    dtypes: Iterable[torch.dtype] = (torch.float32, torch.bfloat16),
) -> Iterator[Case]:
    """Returns each shape in each format. Without `batch`: 16 samples, fewer above 13 million elements."""
    layouts = (torch.contiguous_format, torch.channels_last)
    for dtype, layout, (channels, side) in product(dtypes, layouts, shapes):
        samples = batch or min(LARGEST_BATCH, MOST_ELEMENTS // (channels * side**2))
        yield Case(batch=samples, channels=channels, side=side, dtype=dtype, memory_format=layout)
