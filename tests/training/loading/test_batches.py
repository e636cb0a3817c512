from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from training.errors import BuildError
from training.loading.batches import GlobalBatches, ShareLoader, share_loader
from training.loading.orders import SeededOrders
from training.spec import shares


def global_batches(
    samples: int,
    batch_size: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    accumulate_grad_batches: int = 1,
    shuffle: bool = True,
    **options: Any,
) -> GlobalBatches:
    return GlobalBatches(
        SeededOrders(samples, batch_size=batch_size, shuffle=shuffle, **options),
        rank=rank,
        world_size=world_size,
        accumulate_grad_batches=accumulate_grad_batches,
    )


def batches(
    samples: int, batch_size: int, *, rank: int = 0, world_size: int = 1, epoch: int = 0, **options: Any
) -> list[list[int]]:
    sampler = global_batches(samples, batch_size, rank=rank, world_size=world_size, **options)
    sampler.set_epoch(epoch)
    found: list[list[int]] = list(sampler)
    assert len(found) == len(sampler)
    return found


@given(
    samples=st.integers(1, 60),
    batch_size=st.integers(1, 25),
    world_size=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 1000),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
)
def test_shares_of_all_ranks_in_order_are_the_batches_of_one_rank(
    samples: int, batch_size: int, world_size: int, seed: int, epoch: int, shuffle: bool, drop_last: bool
) -> None:
    options = {"seed": seed, "epoch": epoch, "shuffle": shuffle, "drop_last": drop_last}
    alone = batches(samples, batch_size, **options)

    shared = [
        batches(samples, batch_size, rank=rank, world_size=world_size, **options)
        for rank in range(world_size)
    ]

    assert [list(chain(*parts)) for parts in zip(*shared, strict=True)] == alone
    for parts in zip(*shared, strict=True):
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(samples=st.integers(1, 60), batch_size=st.integers(1, 25), drop_last=st.booleans())
def test_an_epoch_has_every_sample_once_but_for_the_short_batch_that_is_dropped(
    samples: int, batch_size: int, drop_last: bool
) -> None:
    epoch = batches(samples, batch_size, drop_last=drop_last)
    drawn = list(chain(*epoch))

    assert len(set(drawn)) == len(drawn) == (samples - samples % batch_size if drop_last else samples)
    assert set(drawn) <= set(range(samples))
    assert all(len(batch) == batch_size for batch in epoch[:-1])


@given(
    samples=st.integers(1, 60),
    batch_size=st.integers(1, 25),
    data=st.data(),
    world_size=st.integers(1, 5),
    drop_last=st.booleans(),
)
def test_micro_batches_of_all_ranks_in_order_are_the_global_batches(
    samples: int, batch_size: int, data: st.DataObject, world_size: int, drop_last: bool
) -> None:
    passes = data.draw(st.integers(1, batch_size))
    whole = batches(samples, batch_size, drop_last=drop_last)

    shared = [
        batches(
            samples,
            batch_size,
            rank=rank,
            world_size=world_size,
            drop_last=drop_last,
            accumulate_grad_batches=passes,
        )
        for rank in range(world_size)
    ]

    parts = [list(chain(*micro)) for micro in zip(*shared, strict=True)]
    grouped = [parts[at : at + passes] for at in range(0, len(parts), passes)]
    assert [list(chain(*group)) for group in grouped] == whole
    for group, batch in zip(grouped, whole, strict=True):
        assert [len(part) for part in group] == [n for n in shares(len(batch), passes) if n]


@pytest.mark.parametrize(
    ("samples", "sizes"),
    [(9, [3, 2, 2, 1, 1]), (14, [3, 2, 2, 3, 2, 2]), (10, [3, 2, 2, 1, 1, 1]), (4, [2, 1, 1]), (1, [1])],
)
def test_the_samples_of_micro_batches_are_counted(samples: int, sizes: list[int]) -> None:
    sampler = global_batches(samples, 7, rank=1, world_size=2, accumulate_grad_batches=3)

    assert [sampler.count(at, at + 1) for at in range(len(sampler))] == sizes
    assert sampler.count(0, len(sampler)) == samples


@given(
    samples=st.integers(1, 60),
    batch_size=st.integers(2, 25),
    passes=st.integers(1, 2),
    epoch=st.integers(0, 3),
    data=st.data(),
)
def test_an_epoch_that_is_begun_at_a_batch_goes_on_as_the_whole_one_and_the_next_is_whole(
    samples: int, batch_size: int, passes: int, epoch: int, data: st.DataObject
) -> None:
    whole, following = (
        batches(samples, batch_size, epoch=at, accumulate_grad_batches=passes) for at in (epoch, epoch + 1)
    )
    start = data.draw(st.integers(0, len(whole)))
    sampler = global_batches(samples, batch_size, accumulate_grad_batches=passes)

    sampler.start_at(epoch, start)
    sampler.set_epoch(epoch)
    resumed = list(sampler)
    again = list(sampler)
    sampler.set_epoch(epoch + 1)

    assert resumed == whole[start:]
    assert again == whole
    assert list(sampler) == following
    assert len(sampler) == len(whole)


def test_a_start_in_another_epoch_than_the_one_that_begins_is_no_start() -> None:
    sampler = global_batches(5, 2, shuffle=False)

    sampler.start_at(3, 2)
    sampler.set_epoch(4)

    assert list(sampler) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("processes", [0, 2])
def test_nothing_is_drawn_before_the_first_batch_is_asked_for(processes: int) -> None:
    """Lightning requests the iterator before it sets the epoch."""
    loader = share(
        DataLoader(numbered(64), shuffle=True, num_workers=processes), rank=0, world_size=1, batch_size=64
    )
    expected = batches(64, 64, epoch=5)

    iterator = iter(loader)
    loader.batch_sampler.set_epoch(5)

    _, labels = next(iterator)
    assert [labels.tolist()] == expected


@pytest.mark.parametrize("processes", [0, 2])
def test_the_state_of_a_loader_tells_what_was_taken_and_not_what_was_fetched_ahead(processes: int) -> None:
    def make() -> ShareLoader:
        return share(
            DataLoader(numbered(20), shuffle=True, num_workers=processes), rank=0, world_size=1, batch_size=3
        )

    first, second = make(), make()
    first.batch_sampler.set_epoch(2)
    iterator = iter(first)
    for _ in range(2):
        next(iterator)

    state = first.state_dict()
    second.load_state_dict(state)

    assert state == {"epoch": 2, "batch": 2}
    assert second.state_dict() == state
    rest = [labels.tolist() for _, labels in iterator]
    assert [labels.tolist() for _, labels in second] == rest
    assert first.state_dict() == {"epoch": 2, "batch": 7}


def test_the_generator_of_the_models_noise_is_not_drawn_from() -> None:
    loader = share(DataLoader(numbered(20), shuffle=True), rank=0, world_size=1)
    before = torch.get_rng_state()

    list(loader)

    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_distributed_sampler_is_replaced_by_an_order_that_knows_no_workers(shuffle: bool) -> None:
    sampler: DistributedSampler[Any] = DistributedSampler(
        numbered(8), num_replicas=2, rank=1, shuffle=shuffle
    )

    ((_, labels),) = share(DataLoader(numbered(8), sampler=sampler), rank=0, world_size=1, batch_size=8)

    assert [labels.tolist()] == batches(8, 8, shuffle=shuffle)


def test_the_order_is_one_of_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        (batch,) = batches(100, 100, seed=seed, epoch=epoch)
        return tuple(batch)

    pairs = [(seed, epoch) for seed in (0, 1, 2, 2**31, 2**32 - 1) for epoch in range(3)]

    assert len({order(*pair) for pair in pairs}) == len(pairs)
    assert all(order(*pair) == order(*pair) for pair in pairs)


def test_without_shuffling_samples_come_in_their_order() -> None:
    assert batches(5, 2, shuffle=False, epoch=3) == [[0, 1], [2, 3], [4]]


def share(loader: DataLoader[Any], rank: int, world_size: int, batch_size: int = 4) -> ShareLoader:
    shared = share_loader(loader, batch_size=batch_size, rank=rank, world_size=world_size, seed=0)
    assert isinstance(shared, ShareLoader)
    return shared


def numbered(samples: int) -> TensorDataset:
    return TensorDataset(torch.arange(samples * 6.0).reshape(samples, 2, 3), torch.arange(samples))


@pytest.mark.parametrize("subset", [False, True])
def test_an_empty_share_is_a_batch_of_the_right_shape_and_kind(subset: bool) -> None:
    dataset: Dataset[Any] = Subset(numbered(9), range(5)) if subset else numbered(5)

    *_, (images, labels) = share(DataLoader(dataset), rank=2, world_size=3)

    assert images.shape == (0, 2, 3)
    assert labels.shape == (0,)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)


def test_an_empty_share_of_mappings_keeps_their_keys() -> None:
    rows: Any = [{"x": torch.ones(3), "name": "a", "y": 1.0}]

    (batch,) = share(DataLoader(rows), rank=1, world_size=2)

    assert batch["x"].shape == (0, 3)
    assert batch["y"].shape == (0,)


def test_the_collation_of_the_users_loader_is_kept() -> None:
    def collate(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        return torch.stack([x for x, _ in samples]) + 100, torch.stack([y for _, y in samples])

    (first, _), *_ = share(DataLoader(numbered(5), collate_fn=collate), rank=0, world_size=2)

    assert torch.equal(first, numbered(5).tensors[0][:2] + 100)


@pytest.mark.parametrize("shuffle", [False, True])
def test_whether_samples_are_shuffled_is_taken_from_the_loader(shuffle: bool) -> None:
    loader = share(
        DataLoader(numbered(64), batch_size=3, shuffle=shuffle), rank=0, world_size=1, batch_size=64
    )

    ((_, labels),) = loader

    assert (labels.tolist() != list(range(64))) is shuffle


def test_another_epoch_has_another_order() -> None:
    loader = share(DataLoader(numbered(64), shuffle=True), rank=0, world_size=1, batch_size=64)
    ((_, first),) = loader

    sampler = loader.batch_sampler
    assert isinstance(sampler, GlobalBatches)
    sampler.sampler.set_epoch(1)  # as Lightning does
    ((_, second),) = loader

    assert first.tolist() != second.tolist()
    assert sorted(first.tolist()) == sorted(second.tolist())


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (DataLoader(numbered(5), batch_size=None), "batch_size=None"),
        (DataLoader(numbered(0)), "0 samples, too few"),
    ],
)
def test_data_that_cannot_be_shared_is_refused(loader: DataLoader[Any], message: str) -> None:
    with pytest.raises(BuildError, match=message):
        share(loader, rank=0, world_size=1)


def test_a_data_set_smaller_than_the_batch_is_refused_only_if_its_one_batch_would_be_dropped() -> None:
    def length(*, drop_last: bool) -> int:
        loader = DataLoader(numbered(3), batch_size=4, drop_last=drop_last)
        return len(share(loader, rank=0, world_size=1))

    assert length(drop_last=False) == 1
    with pytest.raises(BuildError, match="3 samples, too few for a batch of 4"):
        length(drop_last=True)


def test_a_loader_that_starts_again_within_an_epoch_has_another_order_if_it_repeats() -> None:
    orders = SeededOrders(8, batch_size=4, shuffle=True)
    batches = GlobalBatches(orders, rank=0, world_size=1)
    first, again = list(batches), list(batches)
    assert again == first

    batches.repeats = True
    cycles = [list(batches), list(batches)]
    assert cycles[0] != first
    assert cycles[1] not in (cycles[0], first)
    assert len({indices.epoch for cycle in cycles for indices in cycle}) == 2

    resumed = GlobalBatches(orders, rank=0, world_size=1)
    resumed.start_at(0, 1, cycle=2)
    assert list(resumed) == cycles[1][1:]

    batches.set_epoch(1)
    resumed.set_epoch(1)
    assert list(batches) == list(resumed)
