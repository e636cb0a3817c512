import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from sync_bn import (
    BatchRenorm,
    Correction,
    SyncBatchNorm,
    convert_batch_renorm,
    convert_sync_batchnorm,
    observe,
    revert_sync_batchnorm,
)
from tests.sync_bn.conftest import RanksOf
from tests.sync_bn.one_process import assert_as_one_process, batch_norm, reference_steps, steps_in_rank

EARLY = Correction(r_max=1.5, d_max=0.5, plain_steps=1, r_steps=3, d_steps=2)
AT_ONCE = Correction(r_max=1e9, d_max=1e9, plain_steps=0, r_steps=0, d_steps=0)


class Plain(nn.Module):
    """The paper's Algorithm 1 in plain operations, for one process that has the whole batch."""

    weight: Tensor | None
    bias: Tensor

    def __init__(self, layer: BatchRenorm) -> None:
        super().__init__()
        for name in ("weight", "bias"):
            parameter = getattr(layer, name)
            own = None if parameter is None else nn.Parameter(parameter.detach().clone())
            self.register_parameter(name, own)
        for name, buffer in layer.named_buffers():
            self.register_buffer(name, buffer.clone())
        self.eps, self.momentum, self.correction = layer.eps, layer.momentum, layer.correction

    def forward(self, x: Tensor) -> Tensor:
        shape, dims = (1, -1, *[1] * (x.dim() - 2)), [dim for dim in range(x.dim()) if dim != 1]
        state: dict[str, Any] = dict(self.named_buffers())
        r_max, d_max, plain, r_steps, d_steps = self.correction
        done = int(state["num_batches_tracked"])
        r_limit = 1 + (r_max - 1) * min(max(done - plain, 0) / (r_steps - plain), 1)
        d_limit = d_max * min(max(done - plain, 0) / (d_steps - plain), 1)
        mean, std = x.mean(dims), (x.var(dims, correction=0) + self.eps).sqrt()
        running_std = (state["running_var"] + self.eps).sqrt()
        r = (std / running_std).detach().clamp(1 / r_limit, r_limit)
        d = ((mean - state["running_mean"]) / running_std).detach().clamp(-d_limit, d_limit)
        y: Tensor = (x - mean.view(shape)) / std.view(shape) * r.view(shape) + d.view(shape)
        state["num_batches_tracked"] += 1
        momentum = 1 / (done + 1) if self.momentum is None else self.momentum
        state["running_mean"].lerp_(mean.detach(), momentum)
        state["running_var"].lerp_(x.detach().var(dims), momentum)
        return y if self.weight is None else y * self.weight.view(shape) + self.bias.view(shape)


def layer_of(dim: int, channels: int, correction: Correction = EARLY, **options: Any) -> BatchRenorm:
    """With parameters and running statistics that are not those of a new layer."""
    layer = convert_batch_renorm(batch_norm(dim, channels, **options).double(), correction=correction)
    assert isinstance(layer, BatchRenorm)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    layer.running_mean.uniform_(-1, 1)
    layer.running_var.uniform_(0.5, 3)
    return layer


@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"affine": False}], ids=str)
@pytest.mark.parametrize(
    ("cut", "rest"), [([5], (3,)), ([2, 3], (3, 4)), ([0, 5], (3,)), ([1, 0, 4], (3, 2, 2))], ids=str
)
def test_cut_batches_give_what_the_formula_gives_for_the_whole_through_the_warm_up(
    ranks_of: RanksOf, cut: list[int], rest: tuple[int, ...], options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    layer = layer_of(1 + len(rest), rest[0], **options)
    batches = [
        ([torch.randn(n, *rest).double() for n in cut], [torch.randn(n, *rest).double() for n in cut])
        for _ in range(5)
    ]

    by_rank = ranks_of(len(cut)).run(steps_in_rank, layer, batches)

    expected = reference_steps(Plain(layer), batches)
    for steps, reference in zip(zip(*by_rank, strict=True), expected, strict=True):
        assert_as_one_process(steps, reference, rtol=1e-9, atol=1e-9)


def test_first_steps_are_those_of_sync_batch_norm_and_later_ones_those_of_evaluation() -> None:
    torch.manual_seed(0)
    plain = batch_norm(4, 3).double()
    x = 2 + 3 * torch.randn(4, 3, 5, 5).double()
    late = AT_ONCE._replace(plain_steps=1, r_steps=1, d_steps=1)
    renorm = convert_batch_renorm(copy.deepcopy(plain), correction=late)

    torch.testing.assert_close(renorm(x), plain(x))
    evaluated = copy.deepcopy(renorm).eval()(x)
    torch.testing.assert_close(renorm(x), evaluated)


def test_running_statistics_of_a_trained_model_end_the_warm_up() -> None:
    trained = nn.BatchNorm1d(3)
    assert trained.num_batches_tracked is not None
    trained.num_batches_tracked.fill_(100)
    layer = convert_batch_renorm(
        trained, correction=AT_ONCE._replace(plain_steps=50, r_steps=90, d_steps=100)
    )
    x = torch.randn(8, 3)

    evaluated = copy.deepcopy(layer).eval()(x)
    torch.testing.assert_close(layer(x), evaluated)


def test_residual_activation_weights_and_observation_are_those_of_sync_batch_norm() -> None:
    torch.manual_seed(0)
    x, residual = torch.randn(6, 3, 2), torch.randn(6, 3, 2)
    mask = torch.tensor([1.0, 1, 1, 1, 0, 0])
    fused, plain = BatchRenorm(3, activation="relu", correction=AT_ONCE), BatchRenorm(3, correction=AT_ONCE)

    with observe(fused) as report:
        z = fused(x, residual, mask)
    torch.testing.assert_close(z[:4], (plain(x[:4]) + residual[:4]).relu())
    torch.testing.assert_close(fused.state_dict(), plain.state_dict())
    assert len(report.observations()) == 1


def test_state_dict_and_conversion_are_those_of_batch_norm() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.LazyBatchNorm1d())
    before = list(model.state_dict())

    assert convert_batch_renorm(model, correction=EARLY) is model
    assert [layer.correction for layer in model.modules() if isinstance(layer, BatchRenorm)] == [EARLY] * 2
    assert convert_sync_batchnorm(model) is model
    assert type(model[1]) is BatchRenorm
    assert list(model.state_dict()) == before
    model[1](torch.randn(2, 3, 4, 4))
    again = pickle.loads(pickle.dumps(model[1]))
    assert again.correction == EARLY
    revert_sync_batchnorm(model)
    assert [type(layer) for layer in model] == [nn.Conv2d, nn.BatchNorm2d, nn.LazyBatchNorm1d]
    assert not {"correction", "_before"} & vars(model[1]).keys()


@pytest.mark.parametrize(
    ("layer", "correction", "message"),
    [
        (nn.BatchNorm1d(3, track_running_stats=False), EARLY, "'1' has track_running_stats=False"),
        (nn.BatchNorm1d(3), EARLY._replace(r_max=0.5), "r_max ≥ 1"),
        (nn.BatchNorm1d(3), EARLY._replace(d_steps=0), "d_steps ≥ plain_steps"),
    ],
)
def test_what_it_cannot_normalise_is_refused(layer: nn.Module, correction: Correction, message: str) -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), layer)

    with pytest.raises(ValueError, match=message):
        convert_batch_renorm(model, correction=correction)
    assert type(model[0]) is nn.BatchNorm1d


def test_half_precision_and_memory_format_are_kept() -> None:
    x = torch.randn(4, 3, 5, 5).bfloat16().contiguous(memory_format=torch.channels_last)
    layer = BatchRenorm(3, correction=AT_ONCE)

    y = layer(x)

    assert y.dtype == torch.bfloat16
    assert y.stride() == x.stride()
    assert layer.running_mean is not None
    assert layer.running_mean.dtype == torch.float32


def test_a_recomputed_forward_starts_from_the_same_statistics() -> None:
    torch.manual_seed(0)
    layer, x = layer_of(2, 3, AT_ONCE), torch.randn(5, 3).double().requires_grad_()
    twin = copy.deepcopy(layer)
    dy = torch.randn(5, 3).double()

    found = torch.autograd.grad(checkpoint(layer, x, use_reentrant=False), x, dy)
    expected = torch.autograd.grad(twin(x), x, dy)

    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(layer.state_dict(), twin.state_dict())


def test_a_recomputed_forward_whose_statistics_are_gone_is_an_error() -> None:
    layer, x = layer_of(2, 3, AT_ONCE), torch.randn(5, 3).double().requires_grad_()
    y = checkpoint(layer, x, use_reentrant=False)
    layer(x + 1)

    with pytest.raises(RuntimeError, match=r"BatchRenorm\(3\).* has been called again since"):
        y.sum().backward()


def second_gradient(rank: int, layer: nn.Module, xs: list[Tensor], dys: list[Tensor]) -> Tensor:
    x, dy = xs[rank].requires_grad_(), dys[rank]
    (first,) = torch.autograd.grad(layer(x), x, dy, create_graph=True)
    return torch.autograd.grad(first.square().sum(), x)[0]


def test_second_derivatives_are_those_of_the_formula(ranks_of: RanksOf) -> None:
    torch.manual_seed(0)
    layer = layer_of(2, 3, Correction(1.5, 0.5, 0, 1, 1))
    xs, dys = ([torch.randn(n, 3).double() for n in (2, 3)] for _ in range(2))

    found = ranks_of(2).run(second_gradient, layer, xs, dys)

    expected = second_gradient(0, Plain(layer), [torch.cat(xs)], [torch.cat(dys)])
    torch.testing.assert_close(torch.cat(found), expected, rtol=1e-8, atol=1e-8)


def trained_in_parallel(rank: int, model: nn.Module, xs: list[Tensor]) -> dict[str, Tensor]:
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        ddp(xs[rank]).square().mean().backward()
        optimizer.step()
    return model.state_dict()


def test_data_parallel_training_is_that_of_one_process(ranks_of: RanksOf) -> None:
    torch.manual_seed(0)
    model = convert_batch_renorm(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).double(), correction=EARLY)
    assert isinstance(model[1], SyncBatchNorm)  # type: ignore[index]
    xs = [torch.randn(4, 2).double() for _ in range(2)]

    found = ranks_of(2).run(trained_in_parallel, model, xs)
    (expected,) = ranks_of(1).run(trained_in_parallel, model, [torch.cat(xs)])

    for state in found:
        torch.testing.assert_close(state, expected, rtol=1e-9, atol=1e-9)
