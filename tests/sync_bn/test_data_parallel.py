"""DistributedDataParallel and FSDP2 train to the weights of one process that has the whole batch.

A batch is (each rank's x, each rank's y), x of (N, 2, 4, 4) and y of (N, 3); a step is the batches whose
gradients are accumulated. Losses are sums over samples, so parts of any size, 0 too, add up to the whole.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from sync_bn import convert_sync_batchnorm
from tests.sync_bn.conftest import RanksOf

Batch = tuple[list[Tensor], list[Tensor]]
Steps = Sequence[Sequence[Batch]]
Part = Sequence[Sequence[tuple[Tensor, Tensor]]]
State = dict[str, Any]
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
Options = dict[str, Any]


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.linear, self.bn_of_linear = nn.Linear(16, 3), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.bn_of_linear(self.linear(self.bn(self.conv(x)).relu().flatten(1)))
        return output


class NetworkWithDetours(Network):
    """One layer is never used, another by every second batch."""

    def __init__(self) -> None:
        super().__init__()
        self.never, self.sometimes = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
        self.batches = 0

    def forward(self, x: Tensor) -> Tensor:
        self.batches += 1
        output = super().forward(x)
        return self.sometimes(output.exp()) if self.batches % 2 == 0 else output


def network(kind: type[Network] = Network) -> Network:
    torch.manual_seed(0)
    return kind().double()


def batch(cut: list[int]) -> Batch:
    """The ranks' samples differ in mean and scale, so that alone they would be normalised differently."""
    xs = [(1 + rank) * torch.randn(n, 2, 4, 4).double() + 2 * rank for rank, n in enumerate(cut)]
    return xs, [torch.randn(n, 3).double() for n in cut]


def float32(steps: Steps) -> Steps:
    return [[([x.float() for x in xs], [y.float() for y in ys]) for xs, ys in batches] for batches in steps]


@pytest.fixture
def steps() -> Steps:
    torch.manual_seed(1)
    return [[batch(cut)] for cut in ([5, 2], [0, 6], [6, 1])]


def squared_error(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.mse_loss(model(x), y, reduction="sum")


def squared_error_of_two_passes(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return squared_error(model, x, y) + squared_error(model, x.square(), y)


def train(model: nn.Module, part: Part, loss: Loss = squared_error) -> None:
    # Both average the ranks' gradients, which have to be added up.
    scale = dist.get_world_size() if isinstance(model, DistributedDataParallel | FSDPModule) else 1
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for batches in part:
        optimizer.zero_grad()
        for number, (x, y) in enumerate(batches, 1):
            with nullcontext() if number == len(batches) else without_exchange(model):
                torch.autograd.backward(scale * loss(model, x, y))
        optimizer.step()


def without_exchange(model: nn.Module) -> AbstractContextManager[None]:
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def part_of(steps: Steps, rank: int) -> Part:
    return [[(xs[rank], ys[rank]) for xs, ys in batches] for batches in steps]


def whole(steps: Steps) -> Part:
    return [[(torch.cat(xs), torch.cat(ys)) for xs, ys in batches] for batches in steps]


def assert_states(found: Sequence[State], expected: nn.Module, tolerance: float = 1e-9) -> None:
    for state in found:
        torch.testing.assert_close(state, expected.state_dict(), rtol=tolerance, atol=tolerance)


def train_with_ddp(
    rank: int, model: nn.Module, steps: Steps, options: Options, loss: Loss = squared_error
) -> State:
    convert_sync_batchnorm(model)
    train(DistributedDataParallel(model, **options), part_of(steps, rank), loss)
    return model.state_dict()


DDP_OPTIONS: list[Options] = [
    {"broadcast_buffers": True},
    {"broadcast_buffers": False},
    {"static_graph": True},
    {"find_unused_parameters": True},
    {"bucket_cap_mb": 1e-6},  # a bucket for each parameter: their all-reduces run among the layers'
]


@pytest.mark.parametrize("options", DDP_OPTIONS, ids=str)
@pytest.mark.parametrize("loss", [squared_error, squared_error_of_two_passes])
def test_ddp_trains_as_one_process(ranks_of: RanksOf, steps: Steps, options: Options, loss: Loss) -> None:
    model = network()

    states = ranks_of(2).run(train_with_ddp, model, steps, options, loss)

    train(model, whole(steps), loss)
    assert_states(states, model)


def test_ddp_finds_layers_that_were_not_used(ranks_of: RanksOf, steps: Steps) -> None:
    model = network(NetworkWithDetours)

    states = ranks_of(2).run(train_with_ddp, model, steps, {"find_unused_parameters": True})

    train(model, whole(steps))
    assert_states(states, model)


def test_ddp_accumulates_gradients_of_batches_that_are_normalised_one_by_one(ranks_of: RanksOf) -> None:
    model, steps = network(), [[batch([5, 2]), batch([1, 3])], [batch([0, 4]), batch([2, 2])]]

    states = ranks_of(2).run(train_with_ddp, model, steps, {})

    train(model, whole(steps))
    assert_states(states, model)


def train_under_autocast(rank: int, model: nn.Module, steps: Steps) -> State:
    with torch.autocast("cpu", torch.bfloat16):
        return train_with_ddp(rank, model, steps, {})


def test_autocast_differs_from_one_process_by_rounding_alone(ranks_of: RanksOf, steps: Steps) -> None:
    model, steps = network().float(), float32(steps)

    states = ranks_of(2).run(train_under_autocast, model, steps)

    with torch.autocast("cpu", torch.bfloat16):
        train(model, whole(steps))
    assert_states(states, model, tolerance=2e-2)


def train_with_fsdp(rank: int, model: nn.Module, steps: Steps, each_layer: bool, options: Options) -> State:
    convert_sync_batchnorm(model)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for module in [*(model.children() if each_layer else []), model]:
        fully_shard(module, mesh=mesh, **options)
    train(model, part_of(steps, rank))
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))


@pytest.mark.parametrize("each_layer", [False, True])
def test_fsdp_trains_as_one_process(ranks_of: RanksOf, steps: Steps, each_layer: bool) -> None:
    model = network()

    states = ranks_of(2).run(train_with_fsdp, model, steps, each_layer, {})

    train(model, whole(steps))
    assert_states(states, model)


def test_fsdp_in_half_precision_differs_from_one_process_by_rounding_alone(
    ranks_of: RanksOf, steps: Steps
) -> None:
    model, steps = network().float(), float32(steps)
    # Of float32 gradients FSDP asks gloo for the average; in older torch that may be the sum.
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float64)

    states = ranks_of(2).run(train_with_fsdp, model, steps, True, {"mp_policy": policy})

    train(model, whole(steps))
    assert_states(states, model, tolerance=5e-2)
