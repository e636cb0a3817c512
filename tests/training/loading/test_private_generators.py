from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset

from training.loading.batches import ShareLoader, share_loader
from training.loading.private_generators import MOST_ITEMS, PrivateGenerators
from training.loading.sample_rng import Indices, SeededSamples
from training.loading.streams import StreamLoader

SAMPLES = 11
OF_THE_MODULE = np.random.default_rng()


def a_draw(generator: Any) -> float:
    """A normal number: of NumPy and Python, the second of a pair comes from a cache."""
    if isinstance(generator, torch.Generator):
        return float(torch.randn((), generator=generator, dtype=torch.float64))
    draw = generator.gauss if isinstance(generator, random.Random) else generator.normal
    return float(draw(0, 1))


class Transform:
    """Like MONAI's: a generator of the class stands for all that have none of their own."""

    R = np.random.RandomState()

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)

    def __call__(self) -> float:
        return a_draw(self.R)


class Noisy(Dataset[Tensor]):
    """Each sample has its index and three draws."""

    def __init__(self, draw: Callable[[], float]) -> None:
        self.transforms = {"noise": [draw]}

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Tensor:
        draw = self.transforms["noise"][0]
        return torch.tensor([index, *(draw() for _ in range(3))], dtype=torch.float64)


class Lazy(Noisy):
    """Makes its generator with the first sample, as a process of a loader may."""

    def __init__(self) -> None:
        super().__init__(self.draw)
        self.generator: Any = None

    def draw(self) -> float:
        self.generator = self.generator or np.random.default_rng()
        return a_draw(self.generator)


def of_a_closure() -> Callable[[], float]:
    generator = random.Random()
    return lambda: a_draw(generator)


def of_a_default(generator: Any = np.random.RandomState()) -> float:  # noqa: B008
    return a_draw(generator)


MAKERS: dict[str, Callable[[], Dataset[Any]]] = {
    "RandomState": lambda: Noisy(Transform(R=np.random.RandomState())),
    "Generator": lambda: Noisy(Transform(R=np.random.default_rng())),
    "Random": lambda: Noisy(Transform(R=random.Random())),
    "torch": lambda: Noisy(Transform(R=torch.Generator())),
    "of the class": lambda: Noisy(Transform()),
    "of the module": lambda: Noisy(lambda: a_draw(OF_THE_MODULE)),
    "of a closure": lambda: Noisy(of_a_closure()),
    "of a default": lambda: Noisy(of_a_default),
    "of a partial": lambda: Noisy(partial(a_draw, random.Random())),
    "within others": lambda: Subset(
        ConcatDataset([Noisy(Transform(R=np.random.default_rng()))]), range(SAMPLES)
    ),
    "made with the first sample": Lazy,
}


def epoch_of(dataset: Dataset[Any], world_size: int = 1, *, processes: int = 0, epoch: int = 2) -> Tensor:
    """Returns all samples of an epoch by index."""
    found = []
    for rank in range(world_size):
        loader = share_loader(
            DataLoader(dataset, shuffle=True, num_workers=processes),
            batch_size=4,
            rank=rank,
            world_size=world_size,
            seed=7,
        )
        assert isinstance(loader, ShareLoader)
        loader.batch_sampler.set_epoch(epoch)
        found += list(loader)
    rows = torch.cat(found)
    return rows[rows[:, 0].argsort()]


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_draws_follow_from_seed_epoch_and_sample(make: Callable[[], Dataset[Any]]) -> None:
    alone = epoch_of(make())

    for world_size, processes in ((2, 0), (3, 0), (1, 2)):
        assert torch.equal(epoch_of(make(), world_size, processes=processes), alone)
    numbers = torch.cat([alone, epoch_of(make(), epoch=3)])[:, 1:]
    assert len(torch.unique(numbers)) == numbers.numel()


@pytest.mark.parametrize(
    "generator", [np.random.RandomState(1), np.random.default_rng(1), random.Random(1), torch.Generator()]
)
def test_they_stand_afterwards_where_they_stood(generator: Any) -> None:
    a_draw(generator)
    expected = a_draw(copy.deepcopy(generator)) if not isinstance(generator, torch.Generator) else None
    state = generator.get_state() if expected is None else None

    epoch_of(Noisy(Transform(R=generator)))

    if state is not None:
        assert torch.equal(generator.get_state(), state)
    else:
        assert a_draw(generator) == expected


def test_the_global_generators_are_not_private() -> None:
    every = [np.random.mtrand._rand, random._inst, torch.default_generator]
    generators = PrivateGenerators([*every, random.SystemRandom()])
    generators.search()

    assert generators.names == []


def test_a_generator_is_seeded_that_took_the_place_of_another() -> None:
    transform = Transform(R=np.random.RandomState())
    samples = SeededSamples(Noisy(transform), 0)
    expected = samples[3]
    transform.R = np.random.RandomState()

    assert torch.equal(samples[3], expected)


def test_only_what_had_the_same_seed_draws_the_same() -> None:
    def drawn(*transforms: Transform) -> list[float]:
        generators = PrivateGenerators(transforms)
        generators.search()
        generators.seed(b"sample")
        return [transform() for transform in transforms]

    image, mask = (Transform(R=np.random.default_rng(5)) for _ in range(2))
    other = Transform(R=np.random.default_rng(6))
    of_image, of_mask, of_other = drawn(image, mask, other)

    assert of_image == of_mask != of_other
    # The class's generator is one that these share, until each gets its own.
    shared = [Transform(), Transform()]
    generators = PrivateGenerators(shared)
    generators.search()
    for number, transform in enumerate(shared):
        transform.R = np.random.RandomState(number)
    generators.seed(b"sample")
    assert shared[0]() != shared[1]()


def test_a_long_list_of_samples_is_not_searched_to_its_end() -> None:
    generators = PrivateGenerators([[random.Random() for _ in range(MOST_ITEMS + 5)], random.Random()])
    generators.search()

    assert len(generators.names) == MOST_ITEMS + 1
    assert "1" in generators.names


def test_they_go_to_a_spawned_process() -> None:
    samples = SeededSamples(Noisy(Transform(R=np.random.RandomState())), 3)
    expected = samples[4]
    alike = pickle.loads(pickle.dumps(samples))

    assert torch.equal(alike[4], expected)
    assert torch.equal(alike.__getitems__(Indices([4]))[0], expected)


class Stream(IterableDataset[Tensor]):
    def __init__(self) -> None:
        self.generator = random.Random(1)

    def __iter__(self) -> Any:
        for _ in range(8):
            yield torch.tensor([a_draw(self.generator)], dtype=torch.float64)


def test_an_epoch_of_a_stream_does_not_follow_from_the_epoch_before() -> None:
    def loader() -> StreamLoader:
        made = share_loader(DataLoader(Stream()), batch_size=4, rank=0, world_size=1, seed=7)
        assert isinstance(made, StreamLoader)
        return made

    whole, resumed = loader(), loader()
    first = torch.cat(list(whole))
    whole.set_epoch(1)
    second = torch.cat(list(whole))
    resumed.start_at(1, 1)

    assert not torch.equal(first, second)
    assert torch.equal(torch.cat(list(resumed)), second[4:])
