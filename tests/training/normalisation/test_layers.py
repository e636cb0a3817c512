"""Each layer against its formula, written plainly in float64, with gradients."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from tests.sync_bn.one_process import batch_norm
from training.errors import BuildError
from training.model.norms import apply_norm
from training.spec import Norm

Formula = Callable[[Tensor, nn.Module], Tensor]


def affine(y: Tensor, layer: nn.Module) -> Tensor:
    shape = (1, -1, *[1] * (y.dim() - 2))
    parameters = dict(layer.named_parameters())
    return y * parameters["weight"].view(shape) + parameters["bias"].view(shape)


def over_groups(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """The mean and the biased variance of each value's group, with x's shape."""
    flat = x.reshape(len(x), groups, -1)
    mean, var = (
        moment.expand_as(flat).reshape(x.shape)
        for moment in (flat.mean(2, keepdim=True), flat.var(2, correction=0, keepdim=True))
    )
    return mean, var


def of_groups(groups: int) -> Formula:
    def formula(x: Tensor, layer: nn.Module) -> Tensor:
        mean, var = over_groups(x, groups)
        return affine((x - mean) / (var + 1e-5).sqrt(), layer)

    return formula


def filter_response(x: Tensor, layer: nn.Module) -> Tensor:
    mean_square = x.square().mean(tuple(range(2, x.dim())), keepdim=True)
    return affine(x / (mean_square + 1e-6).sqrt(), layer)


def evonorm(x: Tensor, layer: nn.Module) -> Tensor:
    v = dict(layer.named_parameters())["v"].view(1, -1, *[1] * (x.dim() - 2))
    return affine(x / (1 + (-v * x).exp()) / (over_groups(x, 2)[1] + 1e-5).sqrt(), layer)


def ghost(x: Tensor, layer: nn.Module) -> Tensor:
    """The virtual batches of 7 samples by 2: 2, 2, 3."""
    parts = []
    for part in (x[:2], x[2:4], x[4:]):
        dims = (0, *range(2, x.dim()))
        mean, var = part.mean(dims, keepdim=True), part.var(dims, correction=0, keepdim=True)
        parts.append(affine((part - mean) / (var + 1e-5).sqrt(), layer))
    return torch.cat(parts)


FORMULAS: dict[str, tuple[dict[str, object], Formula]] = {
    "group_norm": ({"groups": 2}, of_groups(2)),
    "layer_norm": ({}, of_groups(1)),
    "instance_norm": ({}, of_groups(4)),
    "filter_response_norm": ({}, filter_response),
    "evonorm_s0": ({"groups": 2}, evonorm),
    "none": ({}, affine),
    "ghost_batch_norm": ({"samples": 2}, ghost),
}


def norm_of(kind: str) -> Norm:
    return Norm.model_validate({"kind": kind, **FORMULAS[kind][0]})


@pytest.mark.parametrize(
    ("kind", "rest"),
    [
        (kind, rest)
        for kind in FORMULAS
        for rest in [(), (5,), (3, 2), (2, 2, 2)]
        if rest or kind not in {"instance_norm", "filter_response_norm"}  # refused, see below
    ],
    ids=str,
)
def test_a_layer_computes_its_formula_and_its_gradients(kind: str, rest: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = apply_norm(batch_norm(2 + len(rest), 4).double(), norm_of(kind)).double()
    x, dy = (torch.randn(7, 4, *rest).double() for _ in range(2))
    inputs = [x.requires_grad_(), *layer.parameters()]

    found = layer(x)
    expected = FORMULAS[kind][1](x, layer)

    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        torch.autograd.grad(found, inputs, dy), torch.autograd.grad(expected, inputs, dy)
    )
    assert layer(x[:0]).shape == (0, 4, *rest)


@pytest.mark.parametrize("kind", FORMULAS)
def test_the_dtype_of_the_input_is_kept_and_a_layer_may_have_no_parameters(kind: str) -> None:
    x = torch.randn(3, 4, 2, 2).bfloat16()
    layer = apply_norm(nn.BatchNorm2d(4, affine=False), norm_of(kind))

    assert layer(x).dtype == apply_norm(nn.BatchNorm2d(4), norm_of(kind))(x).dtype == torch.bfloat16
    assert not {"weight", "bias"} & dict(layer.named_parameters()).keys()


@pytest.mark.parametrize("kind", ["instance_norm", "filter_response_norm"])
@pytest.mark.parametrize("shape", [(7, 4), (4, 4), (7, 4, 1, 1)])
def test_one_value_per_channel_and_sample_is_refused_by_name(kind: str, shape: tuple[int, ...]) -> None:
    model = apply_norm(nn.Sequential(batch_norm(len(shape), 4)), norm_of(kind))
    message = f"norm.kind: layer '0' got an input of shape {shape}, of which {kind}"

    with pytest.raises(BuildError, match=f"^{re.escape(message)}"):
        model(torch.randn(shape))


@pytest.mark.parametrize("kind", ["group_norm", "evonorm_s0"])
def test_one_value_per_group_and_sample_is_refused_by_name(kind: str) -> None:
    model = apply_norm(nn.Sequential(nn.BatchNorm1d(4)), Norm.model_validate({"kind": kind, "groups": 4}))

    with pytest.raises(BuildError, match=rf"layer '0' got an input of shape \(7, 4\), of which {kind}"):
        model(torch.randn(7, 4))
    assert model(torch.randn(7, 4, 2)).shape == (7, 4, 2)


def test_the_thresholded_linear_unit_begins_as_relu_and_learns_its_threshold() -> None:
    model = apply_norm(
        nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()).double(), Norm(kind="filter_response_norm")
    )
    x = torch.randn(3, 4, 2, 2).double()
    y = x / (x.square().mean((2, 3), keepdim=True) + 1e-6).sqrt()

    torch.testing.assert_close(model(x), y.relu())
    tau = dict(model.named_parameters())["0.tau"]
    with torch.no_grad():
        tau.copy_(torch.tensor([-1.0, 0.5, 0, 2]))
    torch.testing.assert_close(model(x), torch.maximum(y, tau.view(1, -1, 1, 1)))
    model(x).sum().backward()
    assert tau.grad is not None
    torch.testing.assert_close(tau.grad, (y < tau.view(1, -1, 1, 1)).double().sum((0, 2, 3)))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7])
def test_virtual_batches_have_the_rest_at_the_end_and_update_the_statistics_in_turn(count: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(count, 3, 2, 2).double()
    plain = batch_norm(4, 3).double()
    layer = apply_norm(batch_norm(4, 3).double(), Norm(kind="ghost_batch_norm", samples=3))
    layer.load_state_dict(plain.state_dict())
    cuts = {1: [1], 2: [2], 3: [3], 4: [4], 5: [3, 2], 6: [3, 3], 7: [3, 4]}[count]

    found = layer(x)

    torch.testing.assert_close(found, torch.cat([plain(part) for part in torch.split(x, cuts)]))
    torch.testing.assert_close(layer.state_dict(), plain.state_dict())
    torch.testing.assert_close(layer.eval()(x), plain.eval()(x))


def test_a_share_without_samples_leaves_the_running_statistics_alone() -> None:
    layer = apply_norm(nn.BatchNorm2d(3), Norm(kind="ghost_batch_norm", samples=2))
    before = {name: value.clone() for name, value in layer.state_dict().items()}

    layer(torch.randn(0, 3, 2, 2)).sum().backward()

    torch.testing.assert_close(layer.state_dict(), before)
    assert all(parameter.grad is not None for parameter in layer.parameters())


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_weights_of_a_convolution_have_mean_zero_and_variance_one(dim: int) -> None:
    torch.manual_seed(0)
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dim - 1]
    norms: list[type[_BatchNorm]] = [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d]
    plain = kind(4, 6, 3, groups=2, padding=1, stride=2).double()
    model = nn.Sequential(plain, norms[dim - 1](6)).double()
    weight = plain.weight
    x = torch.randn(2, 4, *[5] * dim).double()

    apply_norm(model, Norm(kind="group_norm", weight_standardization=True))
    found = model[0](x)

    flat = weight.flatten(1)
    var = flat.var(1, correction=0, keepdim=True)
    ready = ((flat - flat.mean(1, keepdim=True)) / (var + 1e-5).sqrt()).view_as(weight)
    expected = (F.conv1d, F.conv2d, F.conv3d)[dim - 1](x, ready, plain.bias, stride=2, padding=1, groups=2)
    torch.testing.assert_close(found, expected)
    assert next(iter(model.parameters())) is weight
    torch.testing.assert_close(
        torch.autograd.grad(found.square().sum(), weight),
        torch.autograd.grad(expected.square().sum(), weight),
    )
