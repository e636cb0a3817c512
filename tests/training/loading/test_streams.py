from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import chain
from multiprocessing import current_process
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, IterDataPipe, get_worker_info

from tests.training.worlds import Worlds
from training.errors import BuildError
from training.loading.batches import share_loader
from training.loading.streams import StreamLoader


class Stream(IterableDataset[Tensor]):
    """Numbers from 0, each with draws of all global generators, which loader processes share."""

    epoch = 0

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Tensor]:
        info = get_worker_info()
        first, step = (info.id, info.num_workers) if info else (0, 1)
        for number in range(first, self.samples, step):
            drawn = torch.rand(()).item() + np.random.rand() + random.random()
            yield torch.tensor([number + 100.0 * self.epoch, drawn], dtype=torch.float64)


class Claims(Stream):
    """Says that it has `claimed` samples."""

    def __init__(self, samples: int, claimed: int) -> None:
        super().__init__(samples)
        self.claimed = claimed

    def __len__(self) -> int:
        return self.claimed


class Pipe(IterDataPipe[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(Stream(6))


def stream_loader(
    stream: Any, *, rank: int = 0, world_size: int = 1, batch_size: int = 4, k: int = 1, **options: Any
) -> StreamLoader:
    shared = share_loader(
        DataLoader(stream, batch_size=2, **options),
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        seed=7,
        accumulate_grad_batches=k,
    )
    assert isinstance(shared, StreamLoader)
    return shared


def numbers(loader: StreamLoader) -> list[list[int]]:
    return [batch[:, 0].int().tolist() for batch in loader]


def epoch_of(
    rank: int, world_size: int, *, start: int = 0, epoch: int = 2, processes: int = 0, k: int = 1
) -> list[list[Any]]:
    """This rank's batches of an epoch, after the first `start`, and what the loader says of them."""
    current_process().daemon = False  # so that it may have child processes
    context = "fork" if processes else None
    loader = stream_loader(
        Stream(14),
        rank=rank,
        world_size=world_size,
        num_workers=processes,
        multiprocessing_context=context,
        k=k,
    )
    loader.load_state_dict({"epoch": epoch, "batch": start})
    iterator, found = iter(loader), []
    loader.sampler.set_epoch(epoch)
    for number, batch in enumerate(iterator, start):
        assert len(batch) == loader.samples(number)
        assert loader.state_dict() == {"epoch": epoch, "batch": number + 1}
        found.append([loader.samples_of_step(number, k), batch.tolist()])
    return found


def joined(of_ranks: list[Any]) -> list[list[Any]]:
    """The batches of all ranks in order."""
    return [[parts[0][0], list(chain(*(rows for _, rows in parts)))] for parts in zip(*of_ranks, strict=True)]


@pytest.fixture(scope="module")
def worlds(full_run: None) -> Iterator[Worlds]:  # noqa: ARG001
    """Ranks that have run nothing else: their loaders fork, which other tests' threads make unsafe."""
    with Worlds() as own:
        yield own


@pytest.mark.parametrize("processes", [0, 2])
@pytest.mark.parametrize("k", [1, 3])
def test_shares_of_all_ranks_in_order_are_the_batches_of_one_rank(
    worlds: Worlds, processes: int, k: int
) -> None:
    options: dict[str, Any] = {"k": k, "processes": processes}
    (alone,) = worlds.run(1, epoch_of, 1, **options)

    for world_size in (2, 3):
        assert joined(worlds.run(world_size, epoch_of, world_size, **options)) == alone
    for start in (1, 2 * k, len(alone)):
        assert joined(worlds.run(2, epoch_of, 2, start=start, **options)) == alone[start:]
    (other,) = worlds.run(1, epoch_of, 1, epoch=3, **options)
    assert [len(rows) for _, rows in other] == [len(rows) for _, rows in alone]
    assert not {row[1] for _, rows in other for row in rows} & {row[1] for _, rows in alone for row in rows}


def test_micro_batches_are_those_of_each_global_batch() -> None:
    loader = stream_loader(Stream(11), k=3)

    assert numbers(loader) == [[0, 1], [2], [3], [4, 5], [6], [7], [8], [9], [10]]


def test_the_generators_of_the_process_do_not_depend_on_the_stream() -> None:
    def state() -> list[Any]:
        return [torch.rand(2).tolist(), np.random.rand(), random.random()]

    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = [state(), state()]
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    iterator = iter(stream_loader(Stream(9)))

    next(iterator)
    first = state()
    next(iterator)

    assert [first, state()] == expected


def test_nothing_is_read_before_the_first_batch_is_asked_for() -> None:
    loader = stream_loader(Stream(4))

    iterator = iter(loader)
    loader.sampler.set_epoch(5)

    assert next(iterator)[:, 0].tolist() == [500, 501, 502, 503]


@pytest.mark.parametrize(
    ("samples", "claimed", "k", "length"),
    [(9, 9, 1, 3), (9, 9, 2, 5), (8, 8, 3, 6), (50, 9, 1, 3), (50, 9, 2, 5), (50, 8, 2, 4)],
)
def test_a_length_ends_the_epoch(samples: int, claimed: int, k: int, length: int) -> None:
    loader = stream_loader(Claims(samples, claimed), k=k)

    assert len(loader) == length
    assert list(chain(*numbers(loader))) == list(range(claimed))


def test_a_stream_without_a_length_has_none() -> None:
    with pytest.raises(TypeError, match="no length"):
        len(stream_loader(Stream(3)))


def test_drop_last_of_the_loader_leaves_out_the_short_batch() -> None:
    assert numbers(stream_loader(Stream(9), drop_last=True)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert len(stream_loader(Claims(9, 9), drop_last=True)) == 2


def test_a_data_pipe_is_a_stream() -> None:
    assert numbers(stream_loader(Pipe())) == [[0, 1, 2, 3], [4, 5]]


def test_the_trainer_cannot_accumulate_in_another_way() -> None:
    loader = stream_loader(Stream(4), k=2)
    next(iter(loader))

    with pytest.raises(BuildError, match="the Trainer accumulates 4 batches"):
        loader.samples_of_step(0, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stream": Stream(0)}, "gave no batch of samples in epoch 0"),
        ({"stream": Stream(3), "drop_last": True}, "gave no batch of samples in epoch 0"),
        ({"stream": Claims(0, 0)}, "too few samples for a batch of 4"),
        ({"stream": Claims(5, 9)}, "says that it has 9 samples, but gave 5 in epoch 0"),
        ({"stream": Claims(9, 10), "k": 2}, "says that it has 10 samples, but gave 9 in epoch 0"),
    ],
)
def test_a_stream_that_cannot_be_trained_on_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BuildError, match=message):
        list(stream_loader(**options))


def test_a_short_batch_before_the_last_cannot_be_cut_into_micro_batches() -> None:
    """Each process of the loader ends with a short batch of its own."""
    loader = stream_loader(Stream(10), k=2, num_workers=2, multiprocessing_context="fork")

    with pytest.raises(BuildError, match="gave a batch of 1 samples before its last one"):
        list(loader)


def test_a_stream_of_batches_is_refused_with_both_ways_out() -> None:
    loader = DataLoader(Stream(4), batch_size=None)

    with pytest.raises(BuildError, match=r"over single samples, or set training\.sampler to own"):
        share_loader(loader, batch_size=4, rank=0, world_size=1, seed=0)


def refused(rank: int) -> str:
    loader = stream_loader(Claims(5, 9), rank=rank, world_size=2)
    try:
        list(loader)
    except BuildError as error:
        return str(error)
    return "taken"


def test_a_wrong_length_is_an_error_on_all_ranks(worlds: Worlds) -> None:
    assert all("but gave 5 in epoch 0" in message for message in worlds.run(2, refused))


def placeholders(rank: int) -> list[bool]:
    loader = stream_loader(Stream(5), rank=rank, world_size=2, collate_fn=tuple)
    return [loader.is_placeholder(number) for number, _ in enumerate(loader)]


def test_a_batch_that_cannot_be_cut_is_a_placeholder(worlds: Worlds) -> None:
    assert worlds.run(2, placeholders) == [[False, False], [False, True]]
