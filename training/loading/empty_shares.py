"""Batches for a rank whose share is empty, as in a last global batch with fewer samples than ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


@dataclass(frozen=True)
class Placeholder:
    """A batch that stands in for an empty one which nobody can make: its samples must not count.

    That is the case for objects of a user's own class, for tensors whose first dimension is not the sample (a
    sequence with time first) and for lists of tensors.
    """

    batch: Any

    def pin_memory(self) -> Placeholder:
        """Returns itself: called by torch's loader, and pinned memory would save nothing here."""
        return self


class _NotCut(Exception):
    """It is not known how to cut this part of a batch to no samples."""


def empty_batch(one: Any, two: Any) -> Any:
    """Returns a batch without samples of the same kind, or a Placeholder with `two`.

    one, two: the same sample collated once, and twice. What grows with the samples is told from their
    difference: a tensor of shape (1, ...) that becomes (2, ...) is cut to (0, ...).
    """
    try:
        return _cut(one, two)
    except _NotCut:
        return Placeholder(two)


def _cut(one: Any, two: Any) -> Any:
    if type(one) is not type(two):
        raise _NotCut
    if isinstance(one, Tensor):
        return _cut_tensor(one, two)
    if type(one) is dict and one.keys() == two.keys():
        return {key: _cut(value, two[key]) for key, value in one.items()}
    if isinstance(one, list | tuple) and not isinstance(one, PackedSequence):
        return _cut_sequence(one, two)
    if isinstance(one, str | bytes | int | float | bool | None) and one == two:
        return one
    raise _NotCut


def _cut_tensor(one: Tensor, two: Tensor) -> Tensor:
    if one.shape == two.shape and torch.equal(one, two):
        return one  # the same for any number of samples
    if one.ndim and one.shape[1:] == two.shape[1:] and (len(one), len(two)) == (1, 2):
        return one[:0]
    raise _NotCut


def _cut_sequence(one: Sequence[Any], two: Sequence[Any]) -> Any:
    if len(one) == len(two):
        parts = [_cut(*pair) for pair in zip(one, two, strict=True)]
        return type(one)(*parts) if hasattr(one, "_fields") else type(one)(parts)  # type: ignore[call-arg]
    # One entry a sample: names can be left out, but a model that is given no images cannot stack them.
    if type(one) in (list, tuple) and (len(one), len(two)) == (1, 2) and isinstance(one[0], str | bytes):
        return type(one)()
    raise _NotCut
