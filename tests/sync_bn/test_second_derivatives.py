"""Derivatives of gradients, as gradient penalties need them: over ranks those of one process."""

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call

from sync_bn import SyncBatchNorm, convert_sync_batchnorm
from tests.sync_bn import layouts
from tests.sync_bn.conftest import RanksOf
from tests.sync_bn.one_process import OwnPasses, weighted_batch_norm
from tests.sync_bn.test_fused import ACTIVATIONS

Tensors = dict[str, Tensor]
INPUTS = ("x", "weight", "bias", "residual")
OF_ALL_RANKS = ("weight", "bias", "along weight", "along bias")  # everything else is one for each sample


def problem(
    *rest: int,
    samples: int = 5,
    residual: bool = False,
    weights: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Tensors:
    """What goes into a layer, dz, and a direction along which to take each input's gradient."""
    torch.manual_seed(0)
    shape, channels = (samples, *rest), rest[0]
    shapes = {"x": shape, "weight": (channels,), "bias": (channels,)} | (
        {"residual": shape} if residual else {}
    )
    tensors = {name: torch.randn(s, dtype=dtype) for name, s in shapes.items()}
    tensors |= {f"along {name}": torch.randn(s, dtype=dtype) for name, s in shapes.items()}
    return (
        tensors
        | {"dz": torch.randn(shape, dtype=dtype)}
        | ({"w": torch.rand(samples) + 0.5} if weights else {})
    )


def second_derivatives(function: Callable[[Tensors], Tensor], tensors: Tensors) -> Tensors:
    """The gradients of dz and the inputs, from the inputs' gradients along their directions."""
    names = [name for name in INPUTS if name in tensors]
    differentiable = {name: tensors[name].detach().requires_grad_() for name in ("dz", *names)}
    inputs = [differentiable[name] for name in names]
    z = function(tensors | differentiable)
    first = torch.autograd.grad(z, inputs, differentiable["dz"], create_graph=True)
    along = torch.stack([(tensors[f"along {n}"] * g).sum() for n, g in zip(names, first, strict=True)]).sum()
    second = torch.autograd.grad(along, list(differentiable.values()), materialize_grads=True)
    return dict(zip(differentiable, second, strict=True))


def of_layer(layer: SyncBatchNorm) -> Callable[[Tensors], Tensor]:
    def z(of: Tensors) -> Tensor:
        extras = {"residual": of.get("residual"), "sample_weight": of.get("w")}
        result: Tensor = functional_call(layer, {n: of[n] for n in ("weight", "bias")}, (of["x"],), extras)
        return result

    return z


def of_definition(activation: str | None) -> Callable[[Tensors], Tensor]:
    def z(of: Tensors) -> Tensor:
        w = of.get("w", torch.ones(len(of["x"]))).to(of["x"].dtype)
        y = weighted_batch_norm(of["x"], of["weight"], of["bias"], w.view(-1, *[1] * (of["x"].dim() - 1)))
        return ACTIVATIONS[activation](y + of["residual"] if "residual" in of else y)

    return z


def second_derivatives_of_rank(rank: int, layer: SyncBatchNorm, tensors: Tensors, cut: list[int]) -> Tensors:
    own = {n: t if n in OF_ALL_RANKS else torch.split(t, cut)[rank] for n, t in tensors.items()}
    return second_derivatives(of_layer(layer), own)


@pytest.mark.parametrize("cut", [[2, 3], [0, 5], [1, 0, 4]], ids=str)
@pytest.mark.parametrize("activation", [*ACTIVATIONS])
@pytest.mark.parametrize(
    ("residual", "weights"), [(False, False), (True, False), (False, True), (True, True)], ids=str
)
def test_over_ranks_they_are_those_of_one_process(
    ranks_of: RanksOf, residual: bool, weights: bool, activation: str | None, cut: list[int]
) -> None:
    tensors = problem(3, 4, residual=residual, weights=weights)
    layer = SyncBatchNorm(3, activation=activation, dtype=torch.float64)

    by_rank = ranks_of(len(cut)).run(second_derivatives_of_rank, layer, tensors, cut)

    for name, expected in second_derivatives(of_definition(activation), tensors).items():
        of_ranks = [of_rank[name] for of_rank in by_rank]
        actual = torch.stack(of_ranks).sum(0) if name in OF_ALL_RANKS else torch.cat(of_ranks)
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("layout", [layouts.contiguous, layouts.channels_last])
def test_those_of_float32_through_the_loops_are_right_to_its_rounding(layout: layouts.Layout) -> None:
    tensors = problem(17, 5, 4, residual=True, dtype=torch.float32)
    tensors = {n: layout(t) if t.dim() == 4 else t for n, t in tensors.items()}

    actual = second_derivatives(of_layer(OwnPasses(17, activation="silu")), tensors)

    expected = second_derivatives(of_definition("silu"), {n: t.double() for n, t in tensors.items()})
    for name, gradient in actual.items():
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient.double(), expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", [None, "leaky_relu", "silu"])
@pytest.mark.parametrize("residual", [False, True])
def test_both_orders_agree_with_finite_differences(activation: str | None, residual: bool) -> None:
    tensors = problem(2, 3, samples=3, residual=residual)
    names = [name for name in INPUTS if name in tensors]
    layer = of_layer(OwnPasses(2, activation=activation, dtype=torch.float64))
    inputs = [tensors[name].requires_grad_() for name in names]

    def z(*values: Tensor) -> Tensor:
        return layer(dict(zip(names, values, strict=True)))

    assert torch.autograd.gradcheck(z, inputs)
    assert torch.autograd.gradgradcheck(z, inputs)


@pytest.mark.parametrize("needed", ["x", "weight", "bias"])
def test_they_are_there_for_whatever_alone_needs_gradients(needed: str) -> None:
    tensors = problem(3, 4)
    inputs = {name: tensors[name].requires_grad_(name == needed) for name in INPUTS[:3]}
    of, dz = (inputs[needed], tensors["dz"].requires_grad_()), tensors["dz"]

    def second(z: Tensor) -> tuple[Tensor, ...]:
        (first,) = torch.autograd.grad(z, inputs[needed], dz, create_graph=True)
        along = (first * tensors[f"along {needed}"]).sum()
        return torch.autograd.grad(along, of, materialize_grads=True)

    actual = second(of_layer(OwnPasses(3, dtype=torch.float64))(inputs))

    torch.testing.assert_close(actual, second(of_definition(None)(inputs)), rtol=1e-9, atol=1e-10)


def test_third_derivatives_are_refused() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    (first,) = torch.autograd.grad((OwnPasses(3)(x) ** 3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.autograd.backward(second.sum())


def test_gradients_are_the_same_bits_with_and_without_their_graph() -> None:
    torch.manual_seed(0)
    x, dz = torch.randn(4, 17, 20, requires_grad=True), torch.randn(4, 17, 20)
    layer = OwnPasses(17, activation="relu")
    inputs = (x, *layer.parameters())
    with_graph, without = (
        torch.autograd.grad(layer(x), inputs, dz, create_graph=create_graph) for create_graph in (True, False)
    )
    torch.testing.assert_close(with_graph, without, rtol=0, atol=0)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (
        nn.Linear(4, 5),
        nn.BatchNorm1d(5),
        nn.Tanh(),
        nn.Linear(5, 3),
        nn.BatchNorm1d(3),
        nn.Linear(3, 1),
    )
    return nn.Sequential(*layers).double()


def train_with_gradient_penalty(model: nn.Module, x: Tensor, *, over_ranks: bool = False) -> Tensors:
    """Steps against the sum over samples of a score, and of how far its gradient's norm is from 1."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        x = x.detach().requires_grad_()
        score = model(x)
        (slope,) = torch.autograd.grad(score.sum(), x, create_graph=True)
        torch.autograd.backward(score.square().sum() + ((slope.norm(dim=1) - 1) ** 2).sum())
        if over_ranks:
            for parameter in model.parameters():
                dist.all_reduce(parameter.grad)
        optimizer.step()
    state: Tensors = model.state_dict()
    return state


def train_on_rank(rank: int, parts: list[Tensor]) -> Tensors:
    return train_with_gradient_penalty(convert_sync_batchnorm(network()), parts[rank], over_ranks=True)


def test_training_with_a_gradient_penalty_is_that_of_one_process(ranks_of: RanksOf) -> None:
    torch.manual_seed(1)
    x = torch.randn(7, 4).double()

    by_rank = ranks_of(2).run(train_on_rank, list(torch.split(x, [5, 2])))

    expected = train_with_gradient_penalty(network(), x)
    for state in by_rank:
        torch.testing.assert_close(state, expected, rtol=1e-9, atol=1e-11)
