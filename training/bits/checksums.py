"""Checksums of all bits of tensors, and the tensors in nested values."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from training.internals import is_wrapped

Checksum = tuple[torch.dtype, torch.Size, int]

_PART, _FACTOR = 2**20, 0x5851F42D4C957F2D
"""Words that are summed at once, which take 8 MiB meanwhile."""


def checksum(tensor: Tensor) -> Checksum:
    """Returns the dtype and shape of a tensor, and a number for all its bits; 0 for a sparse one."""
    plain = tensor.detach()
    if not is_readable(plain):
        return plain.dtype, plain.shape, 0
    flat = plain.as_subclass(Tensor).resolve_conj().resolve_neg().contiguous().reshape(-1)
    if flat.device.type == "cpu":
        return plain.dtype, plain.shape, zlib.crc32(flat.view(torch.uint8).numpy().data)
    return plain.dtype, plain.shape, sum_of_bits(flat)


def sum_of_bits(flat: Tensor) -> int:
    """Returns a sum over a tensor's words, mod 2^64, each with a random weight; computed where the tensor is.

    So a GPU's tensor is not copied. flat: (n,), contiguous.
    """
    words = flat.view({1: torch.uint8, 2: torch.int16}.get(flat.element_size(), torch.int32))
    weights, total = _weights(flat.device), torch.zeros((), dtype=torch.int64, device=flat.device)
    for part in torch.split(words, _PART):
        total = total * _FACTOR + (part * weights[: len(part)]).sum()
    return int(total)


@functools.cache
def _weights(device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode(False):
        return torch.randint(-(2**62), 2**62, (_PART,), generator=generator, device="cpu").to(device)


def is_readable(tensor: Tensor) -> bool:
    """Returns whether the bits of a tensor can be read."""
    return tensor.layout == torch.strided and not (
        tensor.is_meta or tensor.is_quantized or tensor.is_nested or is_wrapped(tensor)
    )


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yields the tensors in nested lists, tuples, mappings and dataclasses, in their order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from tensors_in(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors_in(each)
    elif is_dataclass(value) and not isinstance(value, type):
        for each in fields(value):
            yield from tensors_in(getattr(value, each.name, None))
