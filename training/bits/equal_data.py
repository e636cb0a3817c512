"""The path of what differs in two batches of any kind, to the last bit."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
from torch import Tensor

from training.bits.checksums import checksum

_NOTHING = object()


def unlike(one: Any, other: Any, path: str = "") -> str | None:
    """Returns the path of the first value that differs, such as "['image'][0]"; None if all are equal.

    Looks into containers, and into the attributes of objects. What it can neither compare nor look into
    counts as equal.
    """
    kind = type(one)
    if kind is not type(other):
        return path
    if issubclass(kind, Tensor):
        return path if checksum(one) != checksum(other) else None
    if issubclass(kind, np.ndarray | np.generic):
        return path if _of_array(one) != _of_array(other) else None
    if issubclass(kind, float | complex):
        return path if _of_number(one) != _of_number(other) else None
    if issubclass(kind, str | bytes | bytearray | int | set | frozenset | type(None)):
        return path if one != other else None
    pairs = zip_longest(_parts(one), _parts(other), fillvalue=(_NOTHING, _NOTHING))
    for (name, value), (other_name, other_value) in pairs:
        if name != other_name:
            return path
        if (found := unlike(value, other_value, f"{path}{name}")) is not None:
            return found
    return None


def _parts(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yields what a value holds, each with what is written behind the value to get it."""
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, list | tuple):
        yield from ((f"[{index}]", part) for index, part in enumerate(value))
    elif is_dataclass(value) and not isinstance(value, type):
        yield from ((f".{each.name}", getattr(value, each.name, None)) for each in fields(value))
    elif isinstance(attributes := getattr(value, "__dict__", None), dict):
        yield from ((f".{name}", part) for name, part in attributes.items())


def _of_array(array: Any) -> tuple[Any, ...]:
    if array.dtype.hasobject:
        return array.shape, array.tolist() if array.size < 2**10 else None
    return array.dtype, array.shape, array.tobytes()


def _of_number(number: complex) -> bytes:
    return struct.pack("<2d", complex(number).real, complex(number).imag)
