from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, get_worker_info

from training.loading.batches import Shards, ShareLoader, share_loader
from training.loading.sample_rng import Indices, SeededSamples, sample_generator

SAMPLES = 11


def draw(index: int) -> Tensor:
    """Draws from each generator, including the cached second normal number of each pair."""
    drawn = [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn()]
    drawn += [torch.rand(()).item(), torch.randn(()).item()]
    drawn += [torch.rand((), generator=sample_generator()).item() for _ in range(2)]
    return torch.tensor([index, *drawn], dtype=torch.float64)


class Noisy(Dataset[Tensor]):
    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Tensor:
        return draw(index)


class Several(Dataset[Tensor]):
    """A data set without `__getitem__`."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        return [draw(index) for index in indices]


def epoch_of(
    dataset: Dataset[Any], *, world_size: int = 1, processes: int = 0, epoch: int = 2, seed: int = 7
) -> Tensor:
    """Returns all samples of an epoch by index."""
    found = []
    for rank in range(world_size):
        loader = share_loader(
            DataLoader(dataset, shuffle=True, num_workers=processes),
            batch_size=4,
            rank=rank,
            world_size=world_size,
            seed=seed,
        )
        assert isinstance(loader, ShareLoader)
        loader.batch_sampler.set_epoch(epoch)
        found += list(loader)
    rows = torch.cat(found)
    return rows[rows[:, 0].argsort()]


@pytest.fixture(scope="module")
def alone() -> Tensor:
    return epoch_of(Noisy())


@pytest.mark.parametrize("processes", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_samples_do_not_depend_on_the_number_of_ranks_or_processes(
    alone: Tensor, world_size: int, processes: int
) -> None:
    assert torch.equal(epoch_of(Noisy(), world_size=world_size, processes=processes), alone)


@pytest.mark.parametrize("make", [Several, lambda: Subset(Noisy(), range(SAMPLES))])
def test_a_data_set_that_gives_several_samples_at_once_is_no_exception(
    alone: Tensor, make: Callable[[], Dataset[Any]]
) -> None:
    assert torch.equal(epoch_of(make(), world_size=2), alone)


class Jitters:
    """Draws from each generator when it collates, and from one of its own."""

    def __init__(self) -> None:
        self.own = np.random.RandomState(1)

    def __call__(self, samples: list[Tensor]) -> Tensor:
        return torch.stack([torch.tensor([*draw(int(each[0])), self.own.rand()]) for each in samples])


@pytest.mark.parametrize("processes", [0, 1])
def test_what_collating_a_shard_draws_does_not_depend_on_where_the_shard_is(processes: int) -> None:
    def shards(*own: range) -> list[list[list[float]]]:
        found: list[list[list[float]]] = [[] for _ in range(3)]
        for each in own:
            loader = DataLoader(Noisy(), shuffle=True, num_workers=processes, collate_fn=Jitters())
            cuts = Shards(4, each)
            shared = share_loader(loader, batch_size=4, rank=0, world_size=1, seed=7, shards=cuts)
            for number, batch in enumerate(shared):
                found[number] += [shard.batch.tolist() for shard in batch.shards]
        return found

    before = torch.get_rng_state()
    together = shards(range(4))

    assert shards(range(1), range(1, 4)) == together
    assert torch.equal(torch.get_rng_state(), before)
    samples = torch.tensor([row for batch in together for shard in batch for row in shard])
    assert len(samples) == SAMPLES
    assert all(len(drawn.unique()) == SAMPLES for drawn in samples.T)


def test_every_sample_epoch_and_seed_draws_numbers_of_its_own(alone: Tensor) -> None:
    numbers = torch.cat([alone, epoch_of(Noisy(), epoch=3), epoch_of(Noisy(), seed=8)])[:, 1:]

    assert len(torch.unique(numbers)) == numbers.numel()


def test_the_generators_of_the_process_stand_where_they_stood() -> None:
    def state() -> list[Any]:
        return [torch.rand(3).tolist(), np.random.randn(3).tolist(), random.gauss(0, 1)]

    def seeded() -> None:
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)
        torch.randn(()), np.random.randn(), random.gauss(0, 1)  # caches the second number of each pair

    seeded()
    expected = state()
    seeded()
    epoch_of(Noisy())

    assert state() == expected


def test_an_error_of_the_data_set_puts_the_generators_back_too() -> None:
    class Broken(Noisy):
        def __getitem__(self, index: int) -> Tensor:
            draw(index)
            raise KeyError(index)

    before = torch.get_rng_state()

    with pytest.raises(KeyError):
        SeededSamples(Broken(), 0)[3]

    assert torch.equal(torch.get_rng_state(), before)


def test_outside_of_a_loader_the_generator_follows_torchs_own() -> None:
    def numbers() -> list[float]:
        return [torch.rand((), generator=sample_generator()).item() for _ in range(2)]

    torch.manual_seed(3)
    first = numbers()
    torch.manual_seed(3)

    assert numbers() == first
    assert first[0] != first[1]
    assert numbers() != first


def test_what_else_a_data_set_has_is_found_and_it_can_be_copied() -> None:
    dataset = Noisy()
    dataset.classes = ["a", "b"]  # type: ignore[attr-defined]
    samples = SeededSamples(dataset, 0)

    for found in (samples, copy.copy(samples), pickle.loads(pickle.dumps(samples))):
        assert found.classes == ["a", "b"]
        assert len(found) == SAMPLES
    with pytest.raises(AttributeError, match="nothing"):
        _ = samples.nothing


class Scaled(Noisy):
    scale = 0.0

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor([[index, self.scale]])


def set_scale(_worker: int) -> None:
    info: Any = get_worker_info()
    info.dataset.scale = 3.0


def test_a_process_of_the_loader_may_change_the_data_set() -> None:
    loader = DataLoader(Scaled(), num_workers=1, worker_init_fn=set_scale)
    shared = share_loader(loader, batch_size=4, rank=0, world_size=1, seed=0)

    assert torch.cat([batch[:, 0, 1] for batch in shared]).eq(3).all()


def test_indices_take_their_epoch_along_to_other_processes() -> None:
    found = pickle.loads(pickle.dumps(Indices([3, 1], epoch=5)))

    assert (found, found.epoch) == ([3, 1], 5)
