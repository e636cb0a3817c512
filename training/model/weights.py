"""The SHA-256 of a model's weights and buffers, by which two runs are compared at a glance."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

_PIECE = 2**24  # bytes


def weights_sha256(state: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a state_dict, 64 hex digits. Two are equal if every bit of the tensors is.

    state: tensors of any dtype, shape, stride and device, by name. Other entries, such as the extra state of
    a module, do not count. A tensor is copied in pieces of at most 16 MiB. Raises RuntimeError for a tensor
    whose elements are not in memory one by one: sparse, on the device meta, or not initialised yet.

    What is hashed, for each tensor in the order of the names (as Python sorts strings): a line of JSON with
    its name, dtype and shape, then the bytes of its elements in row-major order, little-endian, -0.0 and NaN
    as they are. On x86 and ARM these are the bytes in memory, so torch alone computes it from `model.pt`:

        import hashlib, json, torch

        model = torch.load("model.pt", weights_only=False)
        digest = hashlib.sha256()
        for name, tensor in sorted(model.state_dict().items()):
            if isinstance(tensor, torch.Tensor):
                line = json.dumps([name, str(tensor.dtype), list(tensor.shape)])
                digest.update(f"{line}\\n".encode())
                tensor = tensor.clone(memory_format=torch.contiguous_format)
                digest.update(tensor.flatten().view(torch.uint8).numpy())
        print(digest.hexdigest())
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{json.dumps([name, str(tensor.dtype), list(tensor.shape)])}\n".encode())
            for piece in _pieces(tensor.detach()):
                # Not `contiguous`, which returns a tensor of one element with whatever stride it has.
                copy = piece.cpu().clone(memory_format=torch.contiguous_format)
                digest.update(copy.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    """Yields views of at most _PIECE bytes that are the tensor one after the other, in row-major order."""
    if tensor.nbytes <= _PIECE:
        yield tensor
    elif len(tensor) == 1:
        yield from _pieces(tensor[0])
    else:
        for half in tensor.tensor_split(2):
            yield from _pieces(half)
