import copy
import pickle
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sync_bn import SyncBatchNorm, convert_sync_batchnorm
from tests.sync_bn import layouts
from tests.sync_bn.conftest import RanksOf
from tests.sync_bn.one_process import (
    assert_as_one_process,
    batch_norm,
    reference_steps,
    steps_in_rank,
)

OPTIONS: list[dict[str, Any]] = [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}]


def random_parts(cut: list[int], rest: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.randn(n, *rest, dtype=dtype) for n in cut]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("rest", [(3,), (3, 4), (3, 4, 2), (3, 2, 2, 2)], ids=str)
@pytest.mark.parametrize("cut", [[2, 3], [0, 5], [1, 4], [0, 1, 3], [2, 2, 2], [1, 0, 4, 2]], ids=str)
def test_cut_batch_gives_what_one_process_computes(
    ranks_of: RanksOf, cut: list[int], rest: tuple[int, ...], options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    layer = batch_norm(1 + len(rest), rest[0], **options).double()
    batches = [(random_parts(cut, rest), random_parts(cut, rest)) for _ in range(2)]

    by_rank = ranks_of(len(cut)).run(steps_in_rank, layer, batches)

    for steps, reference in zip(zip(*by_rank, strict=True), reference_steps(layer, batches), strict=True):
        assert_as_one_process(steps, reference, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
def test_half_precision_differs_from_one_process_by_rounding_alone(
    ranks_of: RanksOf, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    layer = batch_norm(4, 3)
    batches = [(random_parts([3, 0], (3, 4, 4), dtype), random_parts([3, 0], (3, 4, 4), dtype))]

    steps = [s[0] for s in ranks_of(2).run(steps_in_rank, layer, batches)]

    reference = reference_steps(layer, batches)[0]
    assert_as_one_process(steps, reference, rtol=tolerance, atol=tolerance)
    for s in steps:
        assert s.output.dtype == s.input_gradient.dtype == dtype
        assert s.buffers["running_var"].dtype == torch.float32
        torch.testing.assert_close(s.buffers["running_var"].double(), reference.buffers["running_var"])


def test_buffers_in_half_precision_stay_so_on_full_and_empty_ranks(ranks_of: RanksOf) -> None:
    layer = nn.BatchNorm1d(2).half()
    x = [torch.randn(70_000, 2).half(), torch.empty(0, 2).half()]

    steps = [s[0] for s in ranks_of(2).run(steps_in_rank, layer, [(x, x)])]

    for s in steps:
        assert s.buffers["running_var"].dtype == torch.float16
        torch.testing.assert_close(s.buffers["running_var"], torch.ones(2).half(), rtol=0.01, atol=0)


@pytest.mark.parametrize("layout", [layouts.contiguous, layouts.channels_last])
def test_memory_format_is_kept(ranks_of: RanksOf, layout: layouts.Layout) -> None:
    parts = [layout(part) for part in random_parts([2, 3], (3, 4, 5), torch.float32)]

    for rank, (s,) in enumerate(ranks_of(2).run(steps_in_rank, nn.BatchNorm2d(3), [(parts, parts)])):
        assert s.output.stride() == s.input_gradient.stride() == parts[rank].stride()


@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_that_is_empty_on_all_ranks_changes_nothing(ranks_of: RanksOf, momentum: float | None) -> None:
    layer = batch_norm(4, 3, momentum=momentum)
    nothing = random_parts([0, 0], (3, 2, 2), torch.float32)
    something = random_parts([2, 1], (3, 2, 2), torch.float32)

    for first, second, third in ranks_of(2).run(
        steps_in_rank, layer, [(nothing, nothing), (something, something), (nothing, nothing)]
    ):
        assert first.output.shape == first.input_gradient.shape == (0, 3, 2, 2)
        assert all((gradient == 0).all() for gradient in first.parameter_gradients)
        torch.testing.assert_close(first.buffers, dict(layer.named_buffers()), rtol=0, atol=0)
        assert second.buffers["num_batches_tracked"] == 1
        torch.testing.assert_close(third.buffers, second.buffers, rtol=0, atol=0)


def error_of_forward(rank: int, shapes: list[tuple[int, ...]]) -> tuple[str, dict[str, Tensor]]:
    layer = SyncBatchNorm(3)
    try:
        layer(torch.randn(shapes[rank]))
    except ValueError as error:
        return str(error), layer.state_dict()
    return "", layer.state_dict()


@pytest.mark.parametrize("shapes", [[(1, 3), (0, 3)], [(0, 3, 2, 2), (1, 3, 1, 1)]])
def test_one_value_per_channel_in_all_is_the_same_error_on_every_rank(
    ranks_of: RanksOf, shapes: list[tuple[int, ...]]
) -> None:
    for message, state in ranks_of(2).run(error_of_forward, shapes):
        assert "more than 1 value per channel" in message
        assert "all 2 ranks together" in message
        torch.testing.assert_close(state, SyncBatchNorm(3).state_dict())


def test_one_value_on_each_rank_is_enough(ranks_of: RanksOf) -> None:
    for message, _ in ranks_of(2).run(error_of_forward, [(1, 3), (1, 3)]):
        assert message == ""


def evaluate(rank: int, layer: nn.Module, parts: list[Tensor]) -> Tensor:
    layer = convert_sync_batchnorm(layer).eval()
    # Only one rank takes part: a collective would hang.
    return layer(parts[rank]) if rank == 1 else torch.empty(0)


@pytest.mark.parametrize("track_running_stats", [True, False])
def test_evaluation_is_each_ranks_own_affair(ranks_of: RanksOf, track_running_stats: bool) -> None:
    layer = batch_norm(4, 3, track_running_stats=track_running_stats)
    layer(torch.randn(5, 3, 2, 2))
    parts = random_parts([2, 3], (3, 2, 2), torch.float32)

    _, output = ranks_of(2).run(evaluate, layer, parts)

    torch.testing.assert_close(output, layer.eval()(parts[1]))


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (2, 3, 4, 4), (2, 3, 2, 2, 2), (2, 3, 2, 2, 1, 2)])
def test_without_a_process_group_it_is_plain_batch_norm(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    expected = nn.functional.batch_norm(x, None, None, training=True)
    torch.testing.assert_close(SyncBatchNorm(3)(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(), (3,), (2, 4), (3, 2, 2)])
def test_wrong_shape_is_refused_with_the_shape_and_what_is_expected(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(N, 3, \.\.\.\)") as caught:
        SyncBatchNorm(3)(torch.zeros(shape))
    assert str(shape) in str(caught.value)


def means_within_subgroups(rank: int) -> tuple[Tensor, str, list[bool]]:
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    layer = SyncBatchNorm(1, momentum=1.0, process_group=groups[rank // 2])
    layer(torch.tensor([[float(rank)], [float(rank)]]))
    assert layer.running_mean is not None
    stranger = SyncBatchNorm(1, process_group=groups[1 - rank // 2])
    try:
        stranger(torch.zeros(2, 1))
        message = ""
    except ValueError as error:
        message = str(error)
    copies = [copy.deepcopy(layer), copy.copy(layer), pickle.loads(pickle.dumps(layer))]
    return layer.running_mean, message, [c.process_group is layer.process_group for c in copies]


def test_only_ranks_of_the_process_group_are_averaged_and_copies_keep_it(ranks_of: RanksOf) -> None:
    results = ranks_of(4).run(means_within_subgroups)

    assert [mean.item() for mean, _, _ in results] == [0.5, 0.5, 2.5, 2.5]
    for _, message, kept_by in results:
        assert "not in its process_group" in message
        # Neither copy nor deepcopy loses the group; a pickle cannot hold it.
        assert kept_by == [True, True, False]
