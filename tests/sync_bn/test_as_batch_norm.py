"""What `nn.BatchNorm*d` accepts or refuses, the layer accepts or refuses too, and computes the same of it.

Each case changes a layer, or how it is called. The reference is `nn.BatchNorm2d` in one process over the
whole batch; two ranks get half of it each.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from sync_bn import SyncBatchNorm, convert_sync_batchnorm, precise_bn
from tests.sync_bn.conftest import RanksOf

CHANNELS = 32


class Tagged(Tensor):
    """A subclass that every operation keeps, as MONAI's MetaTensor is."""


class Untagged(Tensor):
    """A subclass that no operation keeps, as torchvision's tv_tensors are."""

    @classmethod
    def __torch_function__(cls, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


class Case(NamedTuple):
    change: Callable[[nn.Module], object] = lambda _: None
    hooks: Callable[[], AbstractContextManager[object]] = nullcontext
    given: Callable[[Tensor], Tensor] = lambda x: x
    tolerance: float = 1e-5


def attributes(**values: Callable[[], Tensor | None]) -> Callable[[nn.Module], None]:
    def change(layer: nn.Module) -> None:
        for name, value in values.items():
            setattr(layer, name, value())

    return change


def parameter(*shape: int, **how: Any) -> Callable[[], Tensor]:
    return lambda: nn.Parameter(torch.full(shape, 1.5, **how))


def hooks(pack: Callable[[Tensor], Any], unpack: Callable[[Any], Tensor]) -> Callable[[], Any]:
    return lambda: saved_tensors_hooks(pack, unpack)


def nothing() -> None: ...


ACCEPTED = {
    "as it is": Case(),
    "channels_last": Case(given=lambda x: x.to(memory_format=torch.channels_last)),
    "float64": Case(change=nn.Module.double, given=Tensor.double),
    "strided parameters": Case(
        change=attributes(
            weight=lambda: nn.Parameter(torch.rand(CHANNELS, 2, generator=torch.Generator())[:, 0])
        )
    ),
    "no bias": Case(change=attributes(bias=nothing)),
    "frozen weight": Case(change=lambda layer: layer.get_parameter("weight").requires_grad_(False)),
    "no count of batches": Case(change=attributes(num_batches_tracked=nothing)),
    "no count of batches, cumulative average": Case(
        change=attributes(num_batches_tracked=nothing, momentum=nothing)
    ),
    "no running statistics": Case(change=attributes(running_mean=nothing, running_var=nothing)),
    "no buffers": Case(
        change=attributes(running_mean=nothing, running_var=nothing, num_batches_tracked=nothing)
    ),
    "saved tensors without their layout": Case(
        given=lambda x: x.to(memory_format=torch.channels_last),
        hooks=hooks(lambda t: (t.flatten().clone(), t.shape), lambda p: p[0].reshape(p[1])),
    ),
    "saved tensors with another layout": Case(
        hooks=hooks(lambda t: t.to(memory_format=torch.channels_last) if t.dim() == 4 else t, lambda t: t),
    ),
    "saved tensors in half precision": Case(
        hooks=hooks(lambda t: t.half(), lambda t: t.float()), tolerance=5e-3
    ),
    "saved tensors in float64": Case(hooks=hooks(lambda t: t, lambda t: t.double().float())),
    "saved tensors of a subclass": Case(hooks=hooks(lambda t: t, lambda t: t.detach().as_subclass(Tagged))),
    "negative bit": Case(given=lambda x: torch._neg_view(-x)),
    "a subclass": Case(given=lambda x: x.as_subclass(Tagged)),
    "a subclass that is not kept": Case(given=lambda x: x.as_subclass(Untagged)),
}

REFUSED = {
    "short weight": attributes(weight=parameter(8)),
    "weight of one number": attributes(weight=parameter(1)),
    "long bias": attributes(bias=parameter(CHANNELS + 1)),
    "short running_mean": attributes(running_mean=lambda: torch.zeros(4)),
    "running_var of one number": attributes(running_var=lambda: torch.ones(1)),
    "weight without memory": attributes(weight=parameter(CHANNELS, device="meta")),
}


class Found(NamedTuple):
    output: Tensor
    kind: type
    input_gradient: Tensor
    state: dict[str, Tensor]


def one_step(layer: nn.Module, case: Case, x: Tensor, dy: Tensor) -> Found:
    """Output, its class, the gradient of x and the state after it; an in-place ReLU follows the layer."""
    case.change(layer)
    x = x.clone().requires_grad_()
    with case.hooks():
        y = layer(case.given(x))
        z = torch.relu_(y)
    kind = type(z)
    plain = z.as_subclass(Tensor)
    (gradient,) = torch.autograd.grad((plain * dy.to(plain.dtype)).sum(), x)
    state = {name: value.detach().as_subclass(Tensor) for name, value in layer.state_dict().items()}
    return Found(plain.detach(), kind, gradient.as_subclass(Tensor), state)


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, dy = torch.randn(2, 6, CHANNELS, 6, 6, generator=generator)
    return 2 * x + 1, dy


def in_rank(rank: int, name: str) -> Found:
    torch.manual_seed(0)
    case = ACCEPTED[name]
    layer = convert_sync_batchnorm(nn.BatchNorm2d(CHANNELS))
    assert isinstance(layer, SyncBatchNorm)
    x, dy = (values.chunk(2)[rank] for values in batch())
    return one_step(layer, case, x, dy)


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_batch_norm_accepts_is_the_same_over_two_ranks(ranks_of: RanksOf, name: str) -> None:
    torch.manual_seed(0)
    case = ACCEPTED[name]
    expected = one_step(nn.BatchNorm2d(CHANNELS), case, *batch())

    found = ranks_of(2).run(in_rank, name)

    for value in ("output", "input_gradient"):
        torch.testing.assert_close(
            torch.cat([getattr(of_rank, value) for of_rank in found]),
            getattr(expected, value),
            rtol=case.tolerance,
            atol=case.tolerance,
        )
    for of_rank in found:
        assert of_rank.kind is expected.kind
        assert of_rank.state.keys() == expected.state.keys()
        for key, values in expected.state.items():
            torch.testing.assert_close(of_rank.state[key], values, rtol=case.tolerance, atol=case.tolerance)


def error_in_rank(rank: int, name: str) -> str:
    layer = SyncBatchNorm(CHANNELS)
    REFUSED[name](layer)
    with pytest.raises(RuntimeError) as error:
        layer(batch()[0].chunk(2)[rank])
    return str(error.value)


@pytest.mark.parametrize("name", REFUSED)
def test_what_batch_norm_refuses_is_refused_on_every_rank_before_a_collective(
    ranks_of: RanksOf, name: str
) -> None:
    plain = nn.BatchNorm2d(CHANNELS)
    REFUSED[name](plain)
    with pytest.raises(RuntimeError) as error:
        plain(batch()[0])

    found = ranks_of(2).run(error_in_rank, name)

    if "should contain" in str(error.value):
        assert all(message.startswith(str(error.value)) for message in found)
    else:
        assert all("its weight is on meta" in message for message in found)


def evaluated_outside_the_group(rank: int) -> Tensor:
    group = torch.distributed.new_group([0])
    layer = SyncBatchNorm(3, process_group=group).eval()
    x = torch.arange(6.0).reshape(2, 3)
    if rank == 1:
        with pytest.raises(ValueError, match="not in its process_group"):
            layer.train()(x)
        layer.eval()
    y: Tensor = layer(x)
    return y.detach()


def test_rank_outside_the_group_may_evaluate(ranks_of: RanksOf) -> None:
    expected = nn.BatchNorm1d(3).eval()(torch.arange(6.0).reshape(2, 3))

    for found in ranks_of(2).run(evaluated_outside_the_group):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_empty_batch_in_a_group_of_one_has_an_output_and_updates_nothing(momentum: float | None) -> None:
    layer = SyncBatchNorm(3, momentum=momentum)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    x = torch.empty(0, 3, 2, requires_grad=True)

    y = layer(x)
    y.sum().backward()

    assert y.shape == x.shape
    assert x.grad is not None
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("layer", [SyncBatchNorm(16), SyncBatchNorm(16, dtype=torch.float64)])
@pytest.mark.parametrize("count", [1.25, 1.5, 2.0, 3.0])
def test_running_variance_of_weighted_samples_is_the_unbiased_one(layer: SyncBatchNorm, count: float) -> None:
    """Σw·(x - mean)²/(Σw - 1), also where the weights add up to between 1 and 2."""
    layer.reset_running_stats()
    layer.momentum = 1.0
    x = torch.randn(4, 16, 16, dtype=torch.float64)
    w = torch.full((4,), count / (4 * 16), dtype=torch.float64)

    layer(x.to(layer.weight.dtype), sample_weight=w)

    expected = x.var(dim=(0, 2), unbiased=False) * count / (count - 1)
    assert layer.running_var is not None
    torch.testing.assert_close(layer.running_var.double(), expected, rtol=1e-5, atol=1e-6)


class Study(NamedTuple):
    """A batch of a class that no library knows how to cut."""

    images: list[Tensor]
    names: Any


class Objects:
    def __init__(self, x: Tensor) -> None:
        self.parts = list(x)


def statistics_of_objects(rank: int, x: Tensor, kind: str) -> dict[str, Tensor]:
    mine = x[: 2 * 5].chunk(5) if rank == 0 else x[2 * 5 :].chunk(1)
    kinds: dict[str, list[Any]] = {
        "named tuple": [Study(list(part), object()) for part in mine],
        "own class": [Objects(part) for part in mine],
        "a number beside it": [(part, torch.tensor(3.0)) for part in mine],
    }
    batches = kinds[kind]

    def forward(model: nn.Module, batch: Any) -> object:
        if isinstance(batch, Objects):
            return model(torch.stack(batch.parts))
        return model(torch.stack(list(batch[0])))

    model = precise_bn(convert_sync_batchnorm(nn.BatchNorm1d(3)), batches, forward=forward)
    return dict(model.state_dict())


@pytest.mark.parametrize("kind", ["named tuple", "own class", "a number beside it"])
def test_precise_statistics_of_loaders_of_different_lengths_with_any_batch_object(
    ranks_of: RanksOf, kind: str
) -> None:
    x = torch.randn(13, 3, generator=torch.Generator().manual_seed(1)) + 2

    for found in ranks_of(2).run(statistics_of_objects, x, kind):
        torch.testing.assert_close(found["running_mean"], x.mean(0))
        torch.testing.assert_close(found["running_var"], x.var(0))
