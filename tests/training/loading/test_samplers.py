from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from tests.training.worlds import Worlds
from training.errors import BuildError, RankZeroFailed
from training.loading.batches import ShareLoader, share_loader

SAMPLES = 12


class Numbers(Dataset[Tensor]):
    """The index, and a random number."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor([float(index), torch.rand(()).item()])


class Named(Dataset[Tensor]):
    """Has no length, and is indexed by pairs of a letter and a number."""

    def __getitem__(self, key: tuple[str, int]) -> Tensor:
        letter, number = key
        return torch.tensor([float(ord(letter)), float(number)])


class Keys(Sampler[Any]):
    def __iter__(self) -> Iterator[tuple[str, int]]:
        keys = [(letter, number) for letter in "abc" for number in range(2)]
        random.shuffle(keys)
        return iter(keys)


class Globally(Sampler[int]):
    """Draws from all global generators."""

    def __iter__(self) -> Iterator[int]:
        first, second = random.sample(range(SAMPLES), 3), np.random.randint(0, SAMPLES, 3).tolist()
        return iter([*first, *second, *torch.randint(SAMPLES, (3,))])

    def __len__(self) -> int:
        return 9


class Backwards(SequentialSampler):
    def __iter__(self) -> Iterator[int]:
        return reversed(range(len(self.data_source)))


class ByEpoch(Sampler[int]):
    """Has a generator of its own, which follows from `set_epoch`."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(np.random.default_rng(self.epoch).permutation(SAMPLES).tolist())

    def __len__(self) -> int:
        return SAMPLES


class Counting(Sampler[int]):
    """Gives another order each time it is asked."""

    asked = 0

    def __iter__(self) -> Iterator[int]:
        self.asked += 1
        return iter(np.roll(range(SAMPLES), self.asked).tolist())

    def __len__(self) -> int:
        return SAMPLES


class Private(Sampler[int]):
    def __init__(self, seed: int = 3) -> None:
        self.generator = np.random.default_rng(seed)

    def __iter__(self) -> Iterator[int]:
        return iter(self.generator.permutation(SAMPLES).tolist())


class Uncopied(Private):
    def __deepcopy__(self, _memo: object) -> Uncopied:
        raise TypeError("cannot be copied")


class Lists(Sampler[list[int]]):
    def __init__(self, lists: list[list[int]]) -> None:
        self.lists = lists

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.lists)


class OddBatches(BatchSampler):
    """Leaves out every second batch."""

    def __iter__(self) -> Iterator[list[int]]:
        return iter(list(super().__iter__())[::2])


class DistributedByHand(DistributedSampler[Any]):
    def __iter__(self) -> Iterator[int]:
        return iter(list(super().__iter__())[::-1])


def weighted(generator: torch.Generator | None = None) -> WeightedRandomSampler:
    return WeightedRandomSampler([1.0 + index for index in range(SAMPLES)], 10, generator=generator)


def share(
    loader: DataLoader[Any], *, rank: int = 0, world_size: int = 1, batch_size: int = 4, **options: Any
) -> ShareLoader:
    shared = share_loader(loader, batch_size=batch_size, rank=rank, world_size=world_size, seed=7, **options)
    assert isinstance(shared, ShareLoader)
    return shared


def rows(loader: DataLoader[Any], *, world_size: int = 1, epoch: int = 0, **options: Any) -> list[list[Any]]:
    """The samples of each batch, those of all ranks in order."""
    of_ranks = []
    for rank in range(world_size):
        shared = share(loader, rank=rank, world_size=world_size, **options)
        shared.batch_sampler.set_epoch(epoch)
        of_ranks.append([batch.tolist() for batch in shared])
        assert len(of_ranks[-1]) == len(shared)
    return [list(chain(*parts)) for parts in zip(*of_ranks, strict=True)]


def indices(loader: DataLoader[Any], **options: Any) -> list[list[int]]:
    return [[int(index) for index, _ in batch] for batch in rows(loader, **options)]


@pytest.mark.parametrize(
    "make",
    [
        weighted,
        lambda: weighted(torch.Generator()),
        lambda: SubsetRandomSampler(range(2, 9)),
        lambda: SubsetRandomSampler(range(2, 9), generator=torch.Generator()),
        lambda: RandomSampler(range(SAMPLES), replacement=True),
        lambda: RandomSampler(range(SAMPLES), num_samples=7),
        lambda: RandomSampler(range(SAMPLES), num_samples=7, generator=torch.Generator()),
        Globally,
        ByEpoch,
    ],
)
def test_the_order_follows_from_seed_and_epoch_alone(make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(1)
    first = rows(DataLoader(Numbers(), sampler=make()), epoch=2)
    torch.manual_seed(2), np.random.seed(2), random.seed(2)
    again = DataLoader(Numbers(), sampler=make())

    assert rows(again, epoch=2, world_size=3) == first
    assert rows(again, epoch=3) != first
    assert rows(again, epoch=2) == first
    assert sum(map(len, first)) == len(list(make()))
    assert "does not follow" not in capsys.readouterr().out


def test_the_generators_of_the_process_stand_where_they_stood() -> None:
    def state() -> list[Any]:
        return [torch.rand(2).tolist(), np.random.rand(), random.random()]

    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = state()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    list(share(DataLoader(Numbers(), sampler=Globally())))

    assert state() == expected


@pytest.mark.parametrize("make", [Private, Counting])
def test_an_order_that_cannot_be_repeated_is_said_once_and_drawn_once_an_epoch(
    make: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    sampler = make()
    shared = share(DataLoader(Numbers(), sampler=sampler))

    for epoch in range(3):
        shared.batch_sampler.set_epoch(epoch)
        list(shared), len(shared)

    said = capsys.readouterr().out
    assert said.count(f"the order of {make.__name__} does not follow from seed and epoch alone") == 1
    assert getattr(sampler, "asked", 3) == 3


def test_a_sampler_that_cannot_be_copied_is_not_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert sum(map(len, rows(DataLoader(Numbers(), sampler=Uncopied())))) == SAMPLES
    assert "does not follow" not in capsys.readouterr().out


def test_a_subclass_that_has_an_order_of_its_own_keeps_it() -> None:
    loader = DataLoader(Numbers(), sampler=Backwards(range(SAMPLES)))

    assert indices(loader, batch_size=6) == [[11, 10, 9, 8, 7, 6], [5, 4, 3, 2, 1, 0]]


def test_a_sampler_over_a_part_of_the_data_set_keeps_to_it() -> None:
    loader = DataLoader(Numbers(), sampler=SequentialSampler(range(5)))

    assert indices(loader) == [[0, 1, 2, 3], [4]]


def test_a_data_set_without_a_length_needs_a_sampler() -> None:
    with pytest.raises(BuildError, match="Named has no length; give it a __len__, give its loader a sampler"):
        share(DataLoader(Named()))


def test_entries_may_be_of_any_kind_and_the_data_set_and_its_sampler_without_a_length() -> None:
    loader = DataLoader(Named(), sampler=Keys())
    found = rows(loader)

    assert sorted(chain(*found)) == [[ord(letter), number] for letter in "abc" for number in range(2)]
    assert rows(loader, world_size=5) == found
    *_, empty = share(loader, rank=4, world_size=5)
    assert empty.shape == (0, 2)


def test_each_occurrence_of_an_index_has_draws_of_its_own() -> None:
    plain = dict(rows(DataLoader(Numbers()), batch_size=SAMPLES)[0])
    lists = [[3, 5], [3], [5, 3]]
    found: list[Any] = list(chain(*rows(DataLoader(Numbers(), batch_sampler=Lists(lists)))))
    drawn = [number for _, number in found]

    assert len(set(drawn)) == 5
    assert drawn[:2] == [plain[3], plain[5]]
    assert list(chain(*rows(DataLoader(Numbers(), batch_sampler=Lists(lists)), world_size=2))) == found


def test_the_lists_of_a_batch_sampler_are_the_global_batches(capsys: pytest.CaptureFixture[str]) -> None:
    lists = [[1, 2, 3, 4, 5], [0], [7, 6, 8]]
    loader = DataLoader(Numbers(), batch_sampler=Lists(lists))

    assert indices(loader, world_size=2, drop_last=True) == lists
    assert (
        capsys.readouterr().out.count("the batches of Lists are the global batches: one has 5 samples") == 2
    )


def test_a_batch_sampler_of_ones_own_is_cut_into_micro_batches() -> None:
    lists = [[1, 2, 3, 4, 5], [7, 6], [0]]
    shared = share(DataLoader(Numbers(), batch_sampler=Lists(lists)), accumulate_grad_batches=2)

    assert [batch[:, 0].tolist() for batch in shared] == [[1, 2, 3], [4, 5], [7], [6], [0]]
    assert [shared.samples_of_step(number, 2) for number in range(5)] == [5, 5, 2, 2, 1]
    with pytest.raises(BuildError, match="Lists gave a batch of 1 samples, which cannot be cut into 2"):
        list(share(DataLoader(Numbers(), batch_sampler=Lists(lists[::-1])), accumulate_grad_batches=2))


def test_a_subclass_of_batch_sampler_keeps_its_batches() -> None:
    batches = OddBatches(SequentialSampler(range(SAMPLES)), 4, False)

    assert indices(DataLoader(Numbers(), batch_sampler=batches)) == [[0, 1, 2, 3], [8, 9, 10, 11]]


def test_the_sampler_in_a_plain_batch_sampler_counts_and_its_batch_size_does_not() -> None:
    batches = BatchSampler(Backwards(range(10)), 3, drop_last=True)

    assert indices(DataLoader(Numbers(), batch_sampler=batches)) == [[9, 8, 7, 6], [5, 4, 3, 2]]


@pytest.mark.parametrize("sampler", [None, Backwards(range(SAMPLES))])
def test_drop_last_of_the_loader_or_of_the_spec_leaves_out_the_short_batch(sampler: Any) -> None:
    def lengths(*, loader: bool, spec: bool) -> list[int]:
        plain = DataLoader(Numbers(), sampler=sampler, batch_size=2, drop_last=loader)
        return [len(batch) for batch in rows(plain, batch_size=5, drop_last=spec)]

    assert lengths(loader=False, spec=False) == [5, 5, 2]
    assert lengths(loader=True, spec=False) == lengths(loader=False, spec=True) == [5, 5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": Lists([])}, "its sampler Lists gave 0 samples in epoch 0, fewer than one"),
        ({"sampler": range(3), "drop_last": True}, "gave 3 samples in epoch 0, fewer than 4"),
        ({"batch_sampler": Lists([[1], []])}, "Lists gave a batch without samples"),
        (
            {"sampler": DistributedByHand(Numbers(), num_replicas=2, rank=0)},
            "DistributedByHand gives each worker a part",
        ),
        (
            {"batch_sampler": OddBatches(DistributedByHand(Numbers(), num_replicas=2, rank=0), 2, False)},
            "DistributedByHand gives each worker a part",
        ),
    ],
)
def test_an_order_that_cannot_be_used_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BuildError, match=message):
        list(share(DataLoader(Numbers(), **options)))


def test_a_tensor_data_set_may_have_a_sampler_too() -> None:
    data = TensorDataset(torch.arange(5))

    *_, (empty,) = share(DataLoader(data, sampler=Backwards(range(5))), rank=1, world_size=2)

    assert empty.shape == (0,)


def order_of(rank: int, kind: str) -> Any:
    """What a rank is given, where the sampler of each rank has another order; or its error."""
    sampler: Any = {"private": Private(rank), "error": map(int, ["4", "no"])}[kind]
    try:
        shared = share(DataLoader(Numbers(), sampler=sampler), rank=rank, world_size=3)
        return [int(index) for batch in shared for index, _ in batch]
    except (ValueError, RankZeroFailed) as error:
        return type(error).__name__


def test_all_ranks_follow_the_order_of_rank_0(worlds: Worlds) -> None:
    orders = worlds.run(3, order_of, "private")

    assert sorted(chain(*orders)) == list(range(SAMPLES))


def test_an_error_of_the_sampler_reaches_all_ranks(worlds: Worlds) -> None:
    assert worlds.run(3, order_of, "error") == ["ValueError", "RankZeroFailed", "RankZeroFailed"]
