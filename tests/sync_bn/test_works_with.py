"""What takes hold of a model: averages of its weights, functional calls, export.

Losses are sums over samples, so that gradients of parts add up to those of the whole.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from sync_bn import SyncBatchNorm, convert_sync_batchnorm, revert_sync_batchnorm
from tests.sync_bn.conftest import RanksOf

State = dict[str, Any]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    conv, linear = nn.Conv2d(2, 4, 3), nn.Linear(16, 3)
    return nn.Sequential(
        conv, nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), linear, nn.BatchNorm1d(3, momentum=None)
    ).double()


@pytest.fixture
def batches() -> list[list[Tensor]]:
    """Each a list of the ranks' parts, which differ in mean and scale."""
    torch.manual_seed(1)
    return [
        [(1 + rank) * torch.randn(n, 2, 4, 4).double() + 2 * rank for rank, n in enumerate(cut)]
        for cut in ([5, 2], [0, 6], [6, 1])
    ]


def part_of(batches: list[list[Tensor]], rank: int) -> list[Tensor]:
    return [parts[rank] for parts in batches]


def whole(batches: list[list[Tensor]]) -> list[Tensor]:
    return [torch.cat(parts) for parts in batches]


def loss(output: Tensor) -> Tensor:
    return (output - 1).relu().square().sum()


def average_over_training(model: nn.Module, xs: Sequence[Tensor], use_buffers: bool) -> AveragedModel:
    """Trains the model, a step for each of `xs`; returns the moving average of the states after each."""
    averaged = AveragedModel(
        model,
        multi_avg_fn=get_ema_multi_avg_fn(0.75),  # type: ignore[no-untyped-call]
        use_buffers=use_buffers,
    )
    for x in xs:
        gradients = torch.autograd.grad(loss(model(x)), list(model.parameters()))
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            if dist.is_initialized():
                dist.all_reduce(gradient)
            parameter.data -= 0.01 * gradient
        averaged.update_parameters(model)
    return averaged


def average_in_rank(
    rank: int, model: nn.Module, batches: list[list[Tensor]], use_buffers: bool
) -> list[State]:
    """The averaged model's state: after training, and after `update_bn` has seen all batches once more."""
    averaged = average_over_training(convert_sync_batchnorm(model), part_of(batches, rank), use_buffers)
    after_training = deepcopy(averaged.state_dict())
    update_bn(part_of(batches, rank), averaged)
    return [after_training, averaged.state_dict()]


@pytest.mark.parametrize("use_buffers", [False, True])
def test_averaged_model_is_that_of_one_process_before_and_after_its_statistics_are_updated(
    ranks_of: RanksOf, batches: list[list[Tensor]], use_buffers: bool
) -> None:
    model = network()

    states = ranks_of(2).run(average_in_rank, model, batches, use_buffers)

    averaged = average_over_training(model, whole(batches), use_buffers)
    expected = [deepcopy(averaged.state_dict())]
    update_bn(whole(batches), averaged)
    expected.append(averaged.state_dict())
    for found in states:
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def call_with(model: nn.Module, tensors: State, x: Tensor) -> tuple[list[Tensor], State]:
    """Gradients of the parameters among the tensors, and the tensors after the call."""
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    parameters = [tensors[name].requires_grad_() for name, _ in model.named_parameters()]
    gradients = torch.autograd.grad(loss(functional_call(model, tensors, (x,))), parameters)
    return list(gradients), {name: tensor.detach() for name, tensor in tensors.items()}


def call_in_rank(
    rank: int, model: nn.Module, tensors: State, xs: list[Tensor]
) -> tuple[list[Tensor], State, State]:
    return *call_with(convert_sync_batchnorm(model), tensors, xs[rank]), model.state_dict()


def test_functional_call_uses_and_updates_the_tensors_that_it_is_given(
    ranks_of: RanksOf, batches: list[list[Tensor]]
) -> None:
    model = network()
    own = deepcopy(model.state_dict())
    tensors = {name: tensor + 1 for name, tensor in own.items()}

    answers = ranks_of(2).run(call_in_rank, model, tensors, batches[0])

    gradients, updated = call_with(model, tensors, torch.cat(batches[0]))
    added_up = [a + b for a, b in zip(answers[0][0], answers[1][0], strict=True)]
    torch.testing.assert_close(added_up, gradients)
    for _, updated_in_rank, own_in_rank in answers:
        torch.testing.assert_close(updated_in_rank, updated)
        torch.testing.assert_close(own_in_rank, own, rtol=0, atol=0)


def train_and_revert(rank: int, model: nn.Module, batches: list[list[Tensor]]) -> tuple[nn.Module, Tensor]:
    convert_sync_batchnorm(model)
    for x in part_of(batches, rank):
        model(x)
    with torch.no_grad():
        output = model.eval()(batches[0][0])
    return revert_sync_batchnorm(model), output


def test_reverted_model_is_exported_for_batches_of_any_size(
    ranks_of: RanksOf, batches: list[list[Tensor]]
) -> None:
    (model, output), _ = ranks_of(2).run(train_and_revert, network(), batches)
    assert not any(isinstance(module, SyncBatchNorm) for module in model.modules())
    samples = torch.export.Dim("samples")

    program = torch.export.export(model, (batches[1][1],), dynamic_shapes=({0: samples},))

    exported = cast(nn.Module, program.module())
    torch.testing.assert_close(exported(batches[0][0]), output)
    torch.testing.assert_close(exported(batches[0][0]), model(batches[0][0]))
