"""The threads of shards run in turns, meet, and end together."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sync_bn import SyncBatchNorm
from sync_bn.layer import over_parts
from tests.training.bits.runs import digest
from tests.training.worlds import Worlds
from training.bits.exchange import Exchange
from training.bits.normalisation import OverShards
from training.bits.threads import ShardThreads, in_shard
from training.errors import StepError


class Noted:
    """Threads of three shards that note who goes on, and when."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.threads = ShardThreads([4, 5, 6], self._enter, self._leave)

    def _enter(self, index: int) -> None:
        self.calls.append(f"enter {index}")

    def _leave(self) -> None:
        self.calls.append("leave")

    def meet(self, place: str, value: Any) -> Any:
        return self.threads.meet(place, value, self._joint)

    def _joint(self, values: list[Any]) -> list[Any]:
        self.calls.append(f"joint {values}")
        return [(value, sum(values)) for value in values]


def test_each_shard_runs_until_it_meets_the_others_and_one_computes_for_all() -> None:
    noted = Noted()

    def step(index: int) -> tuple[Any, ...]:
        assert noted.threads.running == index
        assert in_shard()
        first = noted.meet("a layer", 10**index)
        return first, noted.meet("another", index), threading.get_ident()

    for _ in range(2):
        results = noted.threads.run([lambda index=index: step(index) for index in range(3)])  # type: ignore[misc]

        assert [result[:2] for result in results] == [((10**index, 111), (index, 3)) for index in range(3)]
    idents = {result[2] for result in results}
    assert len(idents) == 3
    assert threading.get_ident() not in idents
    assert noted.threads.running is None
    assert not in_shard()
    # The last to arrive is the first to go on.
    first = ["enter 0", "enter 1", "enter 2", "enter 2", "joint [1, 10, 100]", "enter 1", "enter 0"]
    assert noted.calls == 2 * [*first, "enter 0", "joint [0, 1, 2]", "enter 1", "enter 2", "leave"]


def test_a_call_for_all_shards_is_made_where_none_runs() -> None:
    noted, home = Noted(), threading.get_ident()

    def joint(values: list[Any]) -> list[Any]:
        assert noted.threads.running is None
        assert threading.get_ident() == home
        noted.calls.append(f"outside {values}")
        return [sum(values)] * 3

    def step(index: int) -> tuple[Any, Any]:
        return noted.threads.meet_outside("a call", index, joint), noted.meet("a layer", index)

    results = noted.threads.run([lambda index=index: step(index) for index in range(3)])  # type: ignore[misc]

    assert results == [(3, (index, 3)) for index in range(3)]
    assert noted.calls[3:8] == ["leave", "outside [0, 1, 2]", "enter 2", "enter 1", "enter 0"]


def test_an_error_of_a_call_for_all_shards_is_raised_in_each_of_them() -> None:
    noted, raised = Noted(), []

    def step(index: int) -> None:
        try:
            noted.threads.meet_outside("a call", index, lambda values: values[0].missing)
        except AttributeError:
            raised.append(index)

    noted.threads.run([lambda index=index: step(index) for index in range(3)])  # type: ignore[misc]

    assert sorted(raised) == [0, 1, 2]
    assert noted.threads.run([lambda: noted.meet("a layer", 0)] * 3) == [(0, 0)] * 3


def test_an_error_of_one_shard_ends_the_others_and_is_raised() -> None:
    noted, ended = Noted(), []

    def step(index: int) -> None:
        try:
            noted.meet("a layer", index)
            if index == 1:
                raise ZeroDivisionError("of shard 1")
            noted.meet("another", index)
        finally:
            ended.append(index)

    def fails_at_once() -> None:
        raise KeyError("before it meets")

    with pytest.raises(ZeroDivisionError, match="of shard 1"):
        noted.threads.run([lambda index=index: step(index) for index in range(3)])  # type: ignore[misc]
    with pytest.raises(KeyError, match="before it meets"):
        noted.threads.run([lambda: step(0), lambda: step(0), fails_at_once])

    assert sorted(ended) == [0, 0, 0, 1, 2]
    assert noted.calls.count("leave") == 2
    assert noted.threads.run([lambda: "as before"] * 3) == ["as before"] * 3


def test_threads_end_when_they_are_closed() -> None:
    noted, before = Noted(), threading.enumerate()
    noted.threads.run([lambda: noted.meet("a layer", torch.ones(1))] * 3)
    started = set(threading.enumerate()) - set(before)

    noted.threads.close()

    for thread in started:
        thread.join(60)
        assert not thread.is_alive()
    assert len(started) == 3


def _two_layers(noted: Noted) -> None:
    noted.meet("a layer", 0)
    noted.meet("another", 0)


@pytest.mark.parametrize(
    ("odd", "where"),
    [
        (lambda _: None, "shard 5 at the end of its step"),
        (lambda noted: noted.meet("a third", 0), "shard 5 at a third"),
    ],
)
def test_shards_at_different_places_raise(odd: Callable[[Noted], None], where: str) -> None:
    noted = Noted()

    with pytest.raises(StepError, match=f"shard 4 at a layer; {where}; shard 6 at a layer"):
        noted.threads.run([lambda: _two_layers(noted), lambda: odd(noted), lambda: _two_layers(noted)])

    assert noted.threads.run([lambda: None] * 3) == [None] * 3


def test_a_shard_that_ends_while_others_meet_again_raises() -> None:
    noted = Noted()

    with pytest.raises(StepError, match="shard 6 at the end of its step"):
        noted.threads.run(
            [lambda: _two_layers(noted), lambda: _two_layers(noted), lambda: noted.meet("a layer", 0)]
        )


def test_what_torch_keeps_for_each_thread_is_that_of_a_shard() -> None:
    noted = Noted()

    def step(index: int) -> tuple[bool, bool, bool]:
        with torch.set_grad_enabled(index > 0), torch.autocast("cpu", torch.bfloat16, enabled=index > 1):
            noted.meet("a layer", index)
            return (
                torch.is_grad_enabled(),
                torch.is_autocast_enabled("cpu"),
                torch.is_autocast_cache_enabled(),
            )

    modes = noted.threads.run([lambda index=index: step(index) for index in range(3)])  # type: ignore[misc]

    assert modes == [(False, False, False), (True, False, False), (True, True, False)]


def _gradients(rank: int, world_size: int) -> dict[int, str]:
    """The gradients of a dense block's input, in which three gradients are added, for each shard."""
    torch.manual_seed(1)
    layers = nn.ModuleList(nn.Linear(5 + 5 * n, 5) for n in range(3))
    norms = nn.ModuleList(SyncBatchNorm(5) for _ in range(3))
    data = 1e3 * torch.randn(3, 4, 5)
    exchange = Exchange(3, rank, world_size)
    inputs = [data[shard].requires_grad_() for shard in exchange.own]
    threads = ShardThreads(exchange.own, lambda _: None, lambda: None)

    def step(x: Tensor) -> Tensor:
        features = [x]
        for layer, norm in zip(layers, norms, strict=True):
            features.append(F.silu(norm(layer(torch.cat(features, 1)))))
        return torch.cat([x * feature for feature in features], 1).pow(2).mean()

    with over_parts(OverShards(threads, exchange)):
        losses = threads.run([lambda x=x: step(x) for x in inputs])  # type: ignore[misc]
    torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
    return {shard: digest(x.grad) for shard, x in zip(exchange.own, inputs, strict=True)}


def test_gradients_of_a_tensor_that_is_used_often_are_added_in_one_order(worlds: Worlds) -> None:
    together, *apart = (
        {k: v for rank in worlds.run(n, _gradients, n) for k, v in rank.items()} for n in (1, 2, 3)
    )

    assert len(set(together.values())) == 3
    assert apart == [together, together]
