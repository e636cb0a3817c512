"""Gradients are those of torch's DistributedDataParallel(find_unused_parameters=True), of any kind."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sync_bn._sums import FOLDER_VARIABLE
from tests.training.worlds import Worlds
from training import internals
from training.model import gradient_sync
from training.model.gradient_sync import GradientSync

ALL = ("dense", "single", "table", "phase")


class Parts(nn.Module):
    """Parameters of several kinds, of which a pass reaches those of the parts that it names."""

    def __init__(self, *, sparse: bool = True) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.dense = nn.Linear(3, 2, dtype=torch.float64)
        # Its gradient has the same strides, and is not contiguous.
        self.dense.weight = nn.Parameter(self.dense.weight.detach().T.contiguous().T)
        self.single = nn.Linear(3, 2, dtype=torch.float32)
        self.table = nn.Embedding(5, 3, sparse=sparse, dtype=torch.float64)
        self.phase = nn.Parameter(torch.randn(3, dtype=torch.complex128))

    def forward(self, x: Tensor, parts: Sequence[str]) -> Tensor:
        total = x.new_zeros(())
        if "dense" in parts:
            total = total + self.dense(x).square().sum()
        if "single" in parts:
            total = total + self.single(x.float()).square().sum()
        if "table" in parts:
            total = total + (self.table(torch.tensor([0, int(x[0, 0].abs() * 10) % 5])) * x[:2]).sum()
        if "table as weight" in parts:
            total = total + (x @ self.table.weight.T).square().sum()
        if "phase" in parts:
            total = total + (self.phase * x).abs().square().sum()
        return total


Gradients = dict[str, Tensor | None]


class Synced(NamedTuple):
    """gradients: dense, by the parameter's name. overlapped: whether DistributedDataParallel did the work."""

    gradients: Gradients
    overlapped: bool


def input_of(rank: int) -> Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)


def gradients_of(model: nn.Module) -> Gradients:
    return {
        name: None if parameter.grad is None else parameter.grad.detach().to_dense().clone()
        for name, parameter in model.named_parameters()
    }


def synced(
    rank: int,
    reached: Sequence[Sequence[str]],
    *,
    chunk_bytes: int = 2**20,
    memory: str = "0",
    sparse: bool = True,
) -> Synced:
    """One pass; reached: the parts that each rank uses. A rank that uses none has no backward pass.

    memory: the folder in which ranks share it; 0: none.
    """
    model = Parts(sparse=sparse)
    sync, told = GradientSync(), list[bool]()
    ddp = DistributedDataParallel(model)
    with patch.dict(os.environ, {FOLDER_VARIABLE: memory}):
        sync.attach(ddp)

    def begin(reaches_all: bool) -> None:
        partial = torch.tensor(float(not reaches_all))
        dist.all_reduce(partial)
        told.append(not partial)
        sync.start(reaches_all=not partial, accumulated=True)

    with (
        patch.object(gradient_sync, "CHUNK_BYTES", chunk_bytes),
        patch.object(internals, "prepare_for_backward", wraps=internals.prepare_for_backward) as prepared,
    ):
        with sync.forward_only():
            loss = ddp(input_of(rank), reached[rank])
        if loss.requires_grad:
            loss.register_hook(lambda _: begin(sync.reaches_all()))
            loss.backward()
        else:
            begin(False)
        sync.finish()
    assert prepared.called == (told[0] and memory == "0")
    return Synced(gradients_of(model), prepared.called)


def by_torch(rank: int, reached: Sequence[Sequence[str]]) -> Gradients:
    model = Parts(sparse=False)  # torch cannot do it if a sparse gradient is missing on one rank
    ddp = DistributedDataParallel(model, find_unused_parameters=True)
    ddp(input_of(rank), reached[rank]).backward()
    return gradients_of(model)


def assert_same(found: Gradients, expected: Gradients) -> None:
    assert {name for name, grad in found.items() if grad is None} == {
        name for name, grad in expected.items() if grad is None
    }
    for name, gradient in expected.items():
        if gradient is not None:
            torch.testing.assert_close(found[name], gradient, msg=name)


@pytest.mark.parametrize(
    "reached",
    [
        [ALL, ALL],
        [ALL, ["dense"]],
        [["dense"], ["single", "phase"]],
        [["table"], ["dense"], ["phase"]],
        [["dense"], ["dense"]],
    ],
    ids=str,
)
def test_gradients_are_those_of_torch(worlds: Worlds, reached: list[Sequence[str]]) -> None:
    found = worlds.run(len(reached), synced, reached)
    expected = worlds.run(len(reached), by_torch, reached)

    for own, torchs in zip(found, expected, strict=True):
        assert_same(own.gradients, torchs)
        assert own.overlapped == all(parts == ALL for parts in reached)


@pytest.mark.parametrize("reached", [[ALL, ALL, ALL], [ALL, ["dense"]]], ids=str)
@pytest.mark.parametrize("sparse", [False, True])
def test_gradients_are_the_same_where_ranks_share_memory(
    worlds: Worlds, tmp_path: Path, reached: list[Sequence[str]], sparse: bool
) -> None:
    found = worlds.run(len(reached), synced, reached, memory=str(tmp_path), sparse=sparse)
    expected = worlds.run(len(reached), synced, reached, sparse=sparse)

    for own, sent in zip(found, expected, strict=True):
        assert_same(own.gradients, sent.gradients)
    assert list(tmp_path.iterdir()) == []


def test_a_rank_without_a_backward_pass_gets_the_gradients_of_the_others(worlds: Worlds) -> None:
    alone = worlds.run(1, synced, [ALL])[0].gradients

    for found in worlds.run(2, synced, [ALL, []]):
        assert_same(found.gradients, {name: grad / 2 for name, grad in alone.items() if grad is not None})


def test_a_parameter_that_no_rank_reaches_keeps_none(worlds: Worlds) -> None:
    for found in worlds.run(2, synced, [["table"], ["dense"]]):
        missing = {name for name, gradient in found.gradients.items() if gradient is None}
        assert missing == {"single.weight", "single.bias", "phase"}


def test_chunks_of_one_parameter_each_give_the_same(worlds: Worlds) -> None:
    reached = [["dense", "single"], ["single", "phase"]]

    for large, small in zip(
        worlds.run(2, synced, reached), worlds.run(2, synced, reached, chunk_bytes=1), strict=True
    ):
        assert_same(small.gradients, large.gradients)


def test_chunks_have_one_dtype_and_a_limited_size() -> None:
    parameters = [
        nn.Parameter(torch.zeros(n, dtype=kind)) for n in (2, 3, 9) for kind in (torch.float32,) * 2
    ]
    parameters += [nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in range(3)]

    chunks = list(gradient_sync._chunks(parameters, 24))

    assert [[each.numel() for each in chunk] for chunk in chunks] == [[2, 2], [3, 3], [9], [9], [1, 1, 1]]
    assert all(len({each.dtype for each in chunk}) == 1 for chunk in chunks)


def test_a_gradient_that_is_sparse_on_one_rank_and_dense_on_another_is_averaged(worlds: Worlds) -> None:
    first, second = (
        worlds.run(1, synced, [[*parts]])[0].gradients["table.weight"]
        for parts in (["table"], ["table as weight"])
    )
    found = worlds.run(2, tied)

    assert first is not None
    assert second is not None
    for each in found:
        torch.testing.assert_close(each, (first + second) / 2)


def tied(rank: int) -> Tensor:
    """Both ranks have the same input, but use the table in different ways."""
    model, sync = Parts(), GradientSync()
    sync.attach(DistributedDataParallel(model))
    sync.start(reaches_all=False, accumulated=True)
    model(input_of(0), ["table as weight" if rank else "table"]).backward()
    sync.finish()
    gradient = gradients_of(model)["table.weight"]
    assert gradient is not None
    return gradient


def layout(rank: int, parts: Sequence[Sequence[str]]) -> bool:
    """Whether the table's gradient is sparse."""
    model, sync = Parts(), GradientSync()
    sync.attach(DistributedDataParallel(model))
    sync.start(reaches_all=False, accumulated=True)
    model(input_of(0), parts[rank]).backward()
    sync.finish()
    assert model.table.weight.grad is not None
    return model.table.weight.grad.is_sparse


def test_a_sparse_gradient_stays_sparse_where_a_rank_has_none(worlds: Worlds) -> None:
    assert worlds.run(2, layout, [["table"], ["dense"]]) == [True, True]


def two_passes(rank: int) -> tuple[Gradients, Gradients]:
    """Gradients after a pass of rank 0 alone through `dense`, and after one of rank 1 through `single`."""
    model, sync = Parts(), GradientSync()
    sync.attach(DistributedDataParallel(model))
    found = []
    for reaches, part in enumerate(("dense", "single")):
        sync.start(reaches_all=False, accumulated=False)
        if rank == reaches:
            model(input_of(0), [part]).backward()
        sync.finish()
        found.append(gradients_of(model))
    return found[0], found[1]


def test_a_second_pass_leaves_the_gradients_that_it_does_not_change(worlds: Worlds) -> None:
    for first, second in worlds.run(3, two_passes):
        assert first["dense.weight"] is not None
        assert second["single.weight"] is not None
        torch.testing.assert_close(second["dense.weight"], first["dense.weight"], rtol=0, atol=0)
        assert first["single.weight"] is None


def collectives_without_start(rank: int) -> int:  # noqa: ARG001
    model, sync = Parts(), GradientSync()
    ddp = DistributedDataParallel(model)
    sync.attach(ddp)
    before = internals.collectives_entered()
    with sync.forward_only():
        ddp(input_of(0), ALL).backward()
    sync.finish()
    after = internals.collectives_entered()
    assert before is not None
    assert after is not None
    return after - before


def test_the_first_micro_batches_of_a_step_do_not_communicate(worlds: Worlds) -> None:
    assert worlds.run(2, collectives_without_start) == [0, 0]
