"""SyncBatchNorm over shards gives what nn.BatchNorm gives over the whole batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from sync_bn import SyncBatchNorm
from sync_bn.layer import over_parts
from tests.training.bits.runs import digest
from tests.training.worlds import Worlds
from training.bits.exchange import Exchange
from training.bits.normalisation import NoRecomputation, OverShards
from training.bits.threads import ShardThreads
from training.errors import StepError

SIZES = [3, 0, 2, 4]
CHANNELS = 5


@dataclass(frozen=True)
class Case:
    """outside: the shard whose output does not get into the loss."""

    residual: bool = False
    activation: str | None = None
    weighted: bool = False
    affine: bool = True
    outside: int | None = None
    frozen_input: bool = False

    def data(self) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(3)
        shape = sum(SIZES), CHANNELS, 2, 3
        data = {
            name: torch.randn(shape, generator=generator, dtype=torch.float64) for name in ("x", "r", "c")
        }
        data["x"] = 3 * data["x"] + 10
        data["w"] = torch.rand(sum(SIZES), generator=generator, dtype=torch.float64)
        if self.outside is not None:
            torch.split(data["c"], SIZES)[self.outside].zero_()
        return data


CASES = {
    "plain": Case(),
    "residual": Case(residual=True),
    "activation": Case(activation="silu"),
    "residual and activation": Case(residual=True, activation="leaky_relu"),
    "weighted": Case(weighted=True),
    "weighted, residual, activation": Case(weighted=True, residual=True, activation="relu"),
    "no parameters": Case(affine=False),
    "a shard outside of the loss": Case(outside=2),
    "the first shard outside of the loss, residual": Case(outside=0, residual=True, activation="silu"),
    "input without a gradient": Case(frozen_input=True),
}
RESULTS = "output", "x", "r", "weight", "bias", "running_mean", "running_var"


def _layer(case: Case) -> SyncBatchNorm:
    generator = torch.Generator().manual_seed(4)
    layer = SyncBatchNorm(CHANNELS, affine=case.affine, activation=case.activation).double()
    for parameter in layer.parameters():
        parameter.data = torch.randn(CHANNELS, generator=generator, dtype=torch.float64)
    return layer


def expected(case: Case) -> dict[str, Tensor | None]:
    """What the definition gives for the whole batch in one process."""
    data, layer = case.data(), _layer(case)
    x, r = data["x"].requires_grad_(not case.frozen_input), data["r"].requires_grad_()
    plain = nn.BatchNorm2d(CHANNELS, affine=case.affine).double()
    plain.load_state_dict(layer.state_dict())
    y = _weighted(plain, x, data["w"][:, None, None, None]) if case.weighted else plain(x)
    y = y + r if case.residual else y
    if case.activation:
        y = getattr(F, case.activation)(y)
    if y.requires_grad:
        (y * data["c"]).sum().backward()
    return _results(plain, y, x.grad, r.grad)


def _weighted(plain: nn.BatchNorm2d, x: Tensor, w: Tensor) -> Tensor:
    n = w.expand_as(x[:, :1]).sum()
    mean = (w * x).sum((0, 2, 3)) / n
    centred = x - mean[:, None, None]
    var = (w * centred**2).sum((0, 2, 3)) / n
    with torch.no_grad():
        assert plain.running_mean is not None
        assert plain.running_var is not None
        plain.running_mean.lerp_(mean, 0.1)
        plain.running_var.lerp_(var * n / (n - 1), 0.1)
    y = centred / (var + plain.eps).sqrt()[:, None, None]
    return y * plain.weight[:, None, None] + plain.bias[:, None, None]


def _results(layer: Any, y: Tensor, x: Tensor | None, r: Tensor | None) -> dict[str, Tensor | None]:
    weight, bias = (None if each is None else each.grad for each in (layer.weight, layer.bias))
    values = y.detach(), x, r, weight, bias, layer.running_mean, layer.running_var
    return dict(zip(RESULTS, values, strict=True))


def over_shards(rank: int, world_size: int, case: Case) -> list[dict[str, Tensor | None]]:
    """The same for each shard of this rank; the gradients of parameters are over all ranks."""
    exchange, layer = Exchange(len(SIZES), rank, world_size), _layer(case)
    threads = ShardThreads(exchange.own, lambda _: None, lambda: None)
    shards = [
        dict(zip(case.data(), parts, strict=True))
        for parts in zip(*(torch.split(v, SIZES) for v in case.data().values()), strict=True)
    ]
    own = [shards[number] for number in exchange.own]

    def step(shard: dict[str, Tensor]) -> Tensor:
        shard["x"].requires_grad_(not case.frozen_input)
        shard["r"].requires_grad_()
        y: Tensor = layer(
            shard["x"], shard["r"] if case.residual else None, shard["w"] if case.weighted else None
        )
        return y

    over = OverShards(threads, exchange)
    with over_parts(over):
        outputs = threads.run([lambda shard=shard: step(shard) for shard in own])  # type: ignore[misc]
    kept = [number for number in exchange.own if number != case.outside]
    losses = [
        (y * shard["c"]).sum()
        for y, shard, number in zip(outputs, own, exchange.own, strict=True)
        if number in kept
    ]
    loss = sum(losses)
    if isinstance(loss, Tensor) and loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        dist.all_reduce(parameter.grad)
    return [
        _results(layer, y, shard["x"].grad, shard["r"].grad) for y, shard in zip(outputs, own, strict=True)
    ]


@pytest.mark.parametrize("name", CASES)
def test_results_over_shards_are_those_over_the_batch(worlds: Worlds, name: str) -> None:
    case = CASES[name]
    wanted = expected(case)
    # With a shard outside of the loss, each rank must have one inside: see the test of `check_reached`.
    found = {
        n: worlds.run(n, over_shards, n, case) for n in ((1, 2) if case.outside is not None else (1, 2, 3))
    }

    for ranks in found.values():
        shards = [shard for rank in ranks for shard in rank]
        for key in RESULTS:
            if wanted[key] is None:
                assert all(shard[key] is None for shard in shards)
            elif key in ("output", "x", "r"):
                parts: Any = [
                    torch.zeros(n, CHANNELS, 2, 3) if shard[key] is None else shard[key]
                    for shard, n in zip(shards, SIZES, strict=True)
                ]
                whole = torch.cat(parts)
                torch.testing.assert_close(whole, wanted[key], rtol=1e-10, atol=1e-10)
            else:
                for shard in shards:
                    torch.testing.assert_close(shard[key], wanted[key], rtol=1e-10, atol=1e-10)
        for key in ("output", "x", "running_mean", "running_var"):  # weights' gradients were added by ranks
            assert digest([shard[key] for shard in shards]) == digest([shard[key] for shard in found[1][0]])


def _reached(rank: int, world_size: int, inside: list[int]) -> str | None:
    """Returns the error of a backward pass that reaches the second layer only from the shards `inside`."""
    exchange = Exchange(4, rank, world_size)
    threads = ShardThreads(exchange.own, lambda _: None, lambda: None)
    first, second = SyncBatchNorm(2), SyncBatchNorm(2)

    def step(shard: int) -> Tensor:
        y = first(torch.arange(6.0).view(3, 2) * shard)
        z = second(y)
        output: Tensor = z if shard in inside else y
        return output.pow(3).sum()

    over = OverShards(threads, exchange)
    with over_parts(over):
        loss = torch.stack(threads.run([lambda shard=shard: step(shard) for shard in exchange.own])).sum()  # type: ignore[misc]
    loss.register_hook(lambda _: over.check_reached())  # type: ignore[no-untyped-call]
    try:
        loss.backward()  # type: ignore[no-untyped-call]
    except StepError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("inside", "refused"), [([0, 3], False), ([0, 1], True), ([2], True), ([], False), ([0, 1, 2, 3], False)]
)
def test_a_layer_that_the_loss_needs_on_some_ranks_alone_is_refused_on_all(
    worlds: Worlds, inside: list[int], refused: bool
) -> None:
    assert worlds.run(1, _reached, 1, inside) == [None]
    for error in worlds.run(2, _reached, 2, inside):
        assert (error is not None) == refused
        if error is not None:
            assert "on 1 of 2 workers in none" in error
            assert "SyncBatchNorm(2)" in error


def test_gradients_within_a_step_through_the_layer_are_refused() -> None:
    exchange = Exchange(2, 0, 1)
    threads = ShardThreads(exchange.own, lambda _: None, lambda: None)
    layer = SyncBatchNorm(2)

    def step() -> Any:
        x = torch.arange(6.0).view(3, 2).requires_grad_()
        return torch.autograd.grad(layer(x).pow(3).sum(), x)

    with over_parts(OverShards(threads, exchange)), pytest.raises(StepError, match=r"torch.autograd.grad"):
        threads.run([step, step])


def test_the_layer_does_not_run_again_in_a_backward_pass() -> None:
    with (
        over_parts(NoRecomputation()),
        pytest.raises(StepError, match=r"SyncBatchNorm\(2\) is computed again"),
    ):
        SyncBatchNorm(2)(torch.ones(3, 2))
