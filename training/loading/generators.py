"""The global generators of torch, NumPy and Python: seeded for a while, then put back as they were.

What a data set, a sampler or a stream draws then depends on its seed alone, and the model's random numbers do
not depend on the data's.
"""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import numpy as np
import torch


class Seeds(NamedTuple):
    """Seeds of one origin: `own` for generators that are passed on, the others for the global ones."""

    own: int
    torch: int
    numpy: int
    python: int


def seeds_of(origin: bytes) -> Seeds:
    """Returns seeds from a hash, which mixes well, is fast, and is the same on every machine."""
    digest = hashlib.blake2b(origin, digest_size=24).digest()
    return Seeds(*struct.unpack("<QQII", digest))


def seeds_of_epoch(purpose: str, seed: int, epoch: int) -> Seeds:
    """Returns the seeds of an epoch; another `purpose` has others."""
    return seeds_of(purpose.encode() + struct.pack("<QQ", seed, epoch))


def seed_globally(seeds: Seeds) -> None:
    """Seeds the three global generators of the CPU."""
    torch.default_generator.manual_seed(seeds.torch)  # torch.manual_seed seeds every device: 170 µs
    np.random.seed(seeds.numpy)
    random.seed(seeds.python)


@contextmanager
def restored_generators() -> Iterator[None]:
    """Puts the three global generators back as they were, after errors too."""
    states = generator_states()
    try:
        yield
    finally:
        set_generator_states(states)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds the three global generators, and puts them back as they were."""
    with restored_generators():
        seed_globally(seeds_of(struct.pack("<Q", seed)))
        yield


class OwnGenerators:
    """A context manager in which the global generators are others, which go on from where they last were."""

    def __init__(self, seeds: Seeds) -> None:
        with restored_generators():
            seed_globally(seeds)
            self._own = generator_states()

    def __enter__(self) -> Self:
        self._outside = generator_states()
        set_generator_states(self._own)
        return self

    def __exit__(self, *_: object) -> None:
        self._own = generator_states()
        set_generator_states(self._outside)


def generator_states() -> tuple[Any, Any, Any]:
    return torch.default_generator.get_state(), np.random.get_state(), random.getstate()


def set_generator_states(states: tuple[Any, Any, Any]) -> None:
    torch.default_generator.set_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])
