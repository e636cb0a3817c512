"""Ranks that are about to do different things find out, instead of hanging."""

import logging
import pickle
import time
from collections.abc import Iterator
from typing import Any, cast
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import _get_process_group_store

from sync_bn import DesynchronizedError, SyncBatchNorm, _handshake, check_ranks, convert_sync_batchnorm
from testing.ranks import Ranks
from tests.sync_bn.conftest import RanksOf


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    """Ranks of their own: after an error they stop taking part at different places."""
    with Ranks(3, timeout_seconds=45) as ranks:
        yield ranks


def network(channels: int = 3) -> nn.Module:
    layers = nn.Sequential(nn.Linear(4, channels), nn.BatchNorm1d(channels), nn.BatchNorm1d(channels))
    return convert_sync_batchnorm(nn.ModuleDict({"first": layers, "second": nn.BatchNorm1d(channels)}))


def forward(model: nn.Module, x: Tensor, *, skip_first: bool = False) -> Tensor:
    modules = cast(nn.ModuleDict, model)
    y = cast(nn.Sequential, modules["first"])[0](x) if skip_first else modules["first"](x)
    return cast(Tensor, modules["second"](y))


def error_of(rank: int, case: str, odd: int) -> tuple[str, float]:
    """The message of the error of one step in which rank `odd` does something else, and the seconds to it."""
    check_ranks(timeout_seconds=20)
    mine = case if rank == odd else ""
    model = network(5 if mine == "channels" else 3)
    x = torch.randn(2, 4)
    begun = time.monotonic()
    try:
        if mine == "dtype":
            model, x = model.double(), x.double()
        with torch.set_grad_enabled(mine != "gradients"):
            y = forward(model, x, skip_first=mine == "skipped layer")
        if mine != "left out of the loss":
            torch.autograd.backward(y.sum())
        elif rank == odd:
            forward(model, x)
    except DesynchronizedError as error:
        return str(error), time.monotonic() - begun
    return "no error", 0.0


CASES = {
    "channels": ("first.1 (SyncBatchNorm(3))", "first.1 (SyncBatchNorm(5))"),
    "dtype": ("input of float32", "input of float64"),
    "gradients": (", gradients needed", "no gradients needed"),
    "skipped layer": ("forward of first.1", "forward of second"),
    "left out of the loss": ("backward of second", "forward of first.1"),
}


@pytest.mark.parametrize("case", CASES)
def test_whoever_differs_is_named_with_the_layer_on_every_rank(ranks: Ranks, case: str) -> None:
    of_most, of_one = CASES[case]

    results = ranks.run(error_of, case, 1)

    assert len({message for message, _ in results}) == 1
    lines = results[0][0].splitlines()
    assert "ranks do not do the same" in lines[0]
    assert lines[1].strip().startswith("rank 0, 2: ")
    assert of_most in lines[1]
    assert lines[2].strip().startswith("rank 1: ")
    assert of_one in lines[2]
    assert all(seconds < 20 for _, seconds in results)  # found by comparing, not by waiting in vain


def error_where_rank_0_comes_late(rank: int) -> tuple[str, list[str]]:
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    _handshake.logger.addHandler(handler)
    check_ranks(timeout_seconds=1.5)
    model = network()
    if rank == 0:
        time.sleep(4)
    try:
        with patch.object(_handshake, "_WARN_AFTER_SECONDS", 0.5):
            forward(model, torch.randn(2, 4))
    except DesynchronizedError as error:
        return str(error), records
    finally:
        _handshake.logger.removeHandler(handler)
    return "no error", records


def test_rank_that_does_not_come_is_named_after_the_timeout_and_raises_the_same_later(ranks: Ranks) -> None:
    late, *waiting = ranks.run(error_where_rank_0_comes_late)

    for message, warnings in waiting:
        assert message == late[0]
        assert "Rank 0 did not arrive within 1.5 s, while rank 1, 2 waited to enter" in message
        assert "first.1 (SyncBatchNorm(3))" in message
        assert "check_ranks(timeout_seconds=...)" in message
        assert "waited 0.5 s for rank 0" in warnings[0]


def handshakes_of_steps(rank: int, steps: int, policy: dict[str, Any]) -> list[int]:  # noqa: ARG001
    check_ranks(**policy)
    layer = SyncBatchNorm(3)
    counts = []
    with patch.object(_handshake, "handshake", wraps=_handshake.handshake) as handshake:
        for _ in range(steps):
            handshake.reset_mock()
            torch.autograd.backward(layer(torch.randn(2, 3)).sum())
            counts.append(handshake.call_count)
    check_ranks()
    return counts


@pytest.mark.parametrize(
    ("policy", "expected"),
    [({}, [2, 2, 0, 0]), ({"steps": 0}, [0, 0, 0, 0]), ({"steps": None}, [2, 2, 2, 2])],
    ids=str,
)
def test_the_first_steps_are_checked_or_none_or_all(
    ranks: Ranks, policy: dict[str, Any], expected: list[int]
) -> None:
    assert ranks.run(handshakes_of_steps, 4, policy) == [expected] * 3


def keys_left_in_the_store(rank: int) -> tuple[int, int]:
    check_ranks(steps=None)
    layer = SyncBatchNorm(3)
    group = dist.group.WORLD
    assert group is not None
    counts = []
    for _ in range(3):
        with torch.no_grad():
            layer(torch.randn(2, 3))
        dist.barrier()
        counts.append(_get_process_group_store(group).num_keys() if rank == 0 else 0)
        dist.barrier()
    check_ranks()
    return counts[1], counts[2]


def test_keys_of_past_handshakes_are_removed_from_the_store(ranks: Ranks) -> None:
    earlier, later = ranks.run(keys_left_in_the_store)[0]
    assert later == earlier


def subgroup_error(rank: int) -> str:
    group, others = dist.new_group([1, 2]), dist.new_group([0])
    layer = convert_sync_batchnorm(nn.Sequential(nn.BatchNorm1d(3 + (rank == 2))), group if rank else others)
    try:
        layer(torch.randn(2, 3 + (rank == 2)))
    except DesynchronizedError as error:
        return str(error)
    return "no error"


def test_in_a_subgroup_ranks_are_named_by_their_number_in_the_whole_job(ranks: Ranks) -> None:
    alone, *both = ranks.run(subgroup_error)

    assert alone == "no error"
    for message in both:
        assert "rank 1: forward of 0 (SyncBatchNorm(3))" in message
        assert "rank 2: forward of 0 (SyncBatchNorm(4))" in message


@pytest.mark.parametrize("arguments", [{"steps": -1}, {"timeout_seconds": 0}])
def test_policy_that_makes_no_sense_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        check_ranks(**arguments)


def step_with_a_layer_that_rank_0_has_loaded_again(rank: int, steps_before: int) -> str:
    layer = SyncBatchNorm(3)
    for _ in range(steps_before):
        layer(torch.randn(2, 3))
    if rank == 0:
        layer = pickle.loads(pickle.dumps(layer))
    return str(layer(torch.ones(2, 3)).sum().item())


@pytest.mark.parametrize("steps_before", [0, 1, 3])
def test_layer_that_one_rank_has_loaded_again_is_not_checked_by_that_rank_alone(
    ranks_of: RanksOf, steps_before: int
) -> None:
    assert ranks_of(2).run(step_with_a_layer_that_rank_0_has_loaded_again, steps_before) == ["0.0", "0.0"]
