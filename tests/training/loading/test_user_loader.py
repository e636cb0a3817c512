from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from tests.training.worlds import Worlds
from training.errors import BuildError
from training.loading.user_loader import UserLoader, user_loader


def loader_of(samples: int, rank: int = 0, processes: int = 0) -> DataLoader[Any]:
    dataset = TensorDataset(torch.arange(samples))
    sampler: DistributedSampler[Any] = DistributedSampler(dataset, num_replicas=2, rank=rank, seed=3)
    return DataLoader(dataset, batch_size=2, sampler=sampler, num_workers=processes)


def numbers(loader: UserLoader) -> list[list[int]]:
    return [batch[0].tolist() for batch in loader]


def of_epoch(epoch: int) -> list[list[int]]:
    loader = user_loader(loader_of(20))
    loader.set_epoch(epoch)
    return numbers(loader)


@pytest.mark.parametrize("processes", [0, 2])
def test_the_loader_is_taken_as_it_is_in_the_order_of_its_epoch(processes: int) -> None:
    plain = loader_of(20)
    assert isinstance(plain.sampler, DistributedSampler)
    plain.sampler.set_epoch(4)
    loader = user_loader(loader_of(20, processes=processes))

    iterator = iter(loader)
    loader.sampler.set_epoch(4)  # Lightning sets the epoch after it has requested the iterator

    assert [batch[0].tolist() for batch in iterator] == [batch[0].tolist() for batch in plain]
    assert len(loader) == 5


def test_a_start_within_an_epoch_drops_what_was_done_once() -> None:
    loader = user_loader(loader_of(20))

    loader.start_at(2, 3)
    loader.set_epoch(2)

    assert numbers(loader) == of_epoch(2)[3:]
    assert numbers(loader) == of_epoch(2)
    loader.start_at(2, 3)
    loader.set_epoch(3)
    assert numbers(loader) == of_epoch(3)


def test_the_state_tells_what_was_taken() -> None:
    first, second = user_loader(loader_of(20)), user_loader(loader_of(20))
    first.set_epoch(2)
    iterator = iter(first)
    next(iterator), next(iterator)

    second.load_state_dict(first.state_dict())

    assert first.state_dict() == second.state_dict() == {"epoch": 2, "batch": 2}
    assert numbers(second) == of_epoch(2)[2:]


class Endless(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter([1, 2, 3])


class Lengthless(Dataset[int]):
    def __getitem__(self, index: int) -> int:
        return index


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (DataLoader(Endless()), "has no length; give"),
        (DataLoader(Lengthless(), sampler=iter([1, 2])), "has no length; give"),
        (DataLoader(TensorDataset(torch.zeros(0))), "has no batches"),
    ],
)
def test_a_loader_that_cannot_be_trained_on_is_refused(loader: DataLoader[Any], message: str) -> None:
    with pytest.raises(BuildError, match=rf"training\.sampler: own, its loader {message}"):
        user_loader(loader)


class Three(Endless):
    def __len__(self) -> int:
        return 3


@pytest.mark.parametrize("batch_size", [2, None])
def test_a_stream_with_a_length_is_taken_as_it_is(batch_size: int | None) -> None:
    loader = user_loader(DataLoader(Three(), batch_size=batch_size))

    assert [torch.as_tensor(batch).flatten().tolist() for batch in loader] == (
        [[1, 2], [3]] if batch_size else [[1], [2], [3]]
    )


def refused(rank: int) -> str:
    try:
        user_loader(DataLoader(TensorDataset(torch.zeros(4 + rank)), batch_size=2))
    except BuildError as error:
        return str(error)
    return "taken"


def test_loaders_of_different_lengths_are_refused_by_all_ranks(worlds: Worlds) -> None:
    for message in worlds.run(2, refused):
        assert "gives the workers [2, 3] batches per epoch" in message


def test_the_same_loader_may_serve_another_stage() -> None:
    loader = DataLoader(TensorDataset(torch.arange(5)), batch_size=2)

    for _ in range(2):
        own = UserLoader(loader)
        batches = [batch for (batch,) in own]
        assert torch.equal(torch.cat(batches), torch.arange(5))
        assert [own.samples(number) for number in range(3)] == [2, 2, 1]
    first = next(iter(loader))
    assert torch.equal(first[0], torch.arange(2))
