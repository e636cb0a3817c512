"""Lazy layers: converted before they know their number of features."""

import copy
import pickle
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import nn

from sync_bn import SyncBatchNorm, convert_sync_batchnorm, revert_sync_batchnorm
from tests.sync_bn.conftest import RanksOf
from tests.sync_bn.one_process import assert_as_one_process, reference_steps, steps_in_rank

A_GROUP = cast(torch.distributed.ProcessGroup, object())

OPTIONS: list[dict[str, Any]] = [
    {},
    {"affine": False},
    {"track_running_stats": False},
    {"affine": False, "track_running_stats": False},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("cut", [[3, 2], [4, 0]])
def test_first_batch_of_a_lazy_layer_is_synchronized_already(
    ranks_of: RanksOf, options: dict[str, Any], cut: list[int]
) -> None:
    torch.manual_seed(0)
    batches = [
        ([torch.randn(n, 3, 2, 2) for n in cut], [torch.randn(n, 3, 2, 2) for n in cut]) for _ in range(2)
    ]

    by_rank = ranks_of(2).run(steps_in_rank, nn.LazyBatchNorm2d(**options), batches)

    references = reference_steps(nn.BatchNorm2d(3, **options), batches)
    for steps, reference in zip(zip(*by_rank, strict=True), references, strict=True):
        assert_as_one_process(steps, reference, rtol=1e-4, atol=1e-5)


CLASSES = [
    (nn.LazyBatchNorm1d, nn.BatchNorm1d, (4, 3)),
    (nn.LazyBatchNorm2d, nn.BatchNorm2d, (4, 3, 2, 2)),
    (nn.LazyBatchNorm3d, nn.BatchNorm3d, (4, 3, 2, 2, 2)),
]


@pytest.mark.parametrize("options", [*OPTIONS, {"momentum": None, "eps": 1e-3, "dtype": torch.float64}])
@pytest.mark.parametrize(("lazy", "plain", "shape"), CLASSES)
def test_lazy_layer_is_ours_alone_once_it_has_seen_a_batch(
    lazy: Any, plain: Any, shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    layer, expected = convert_sync_batchnorm(lazy(**options)), convert_sync_batchnorm(plain(3, **options))
    assert type(layer).__name__ == "LazySyncBatchNorm"
    x = torch.randn(shape, dtype=options.get("dtype"))

    torch.testing.assert_close(layer(x), expected(x), rtol=0, atol=0)

    assert type(layer) is SyncBatchNorm
    assert str(layer) == str(expected)
    torch.testing.assert_close(layer.state_dict(), expected.state_dict(), rtol=0, atol=0)
    assert not layer._forward_pre_hooks
    assert layer.__dict__.keys() == expected.__dict__.keys()


def test_converted_lazy_layer_may_meet_its_first_batch_in_evaluation() -> None:
    layer = convert_sync_batchnorm(nn.LazyBatchNorm1d()).eval()
    x = torch.randn(2, 3)
    torch.testing.assert_close(layer(x), nn.BatchNorm1d(3).eval()(x))


@pytest.mark.parametrize("load_first", [True, False])
@pytest.mark.parametrize("see_a_batch_first", [True, False])
@pytest.mark.parametrize("options", OPTIONS[:3])
def test_state_dict_loads_into_a_lazy_layer_that_has_seen_nothing(
    load_first: bool, see_a_batch_first: bool, options: dict[str, Any]
) -> None:
    source = nn.BatchNorm1d(3, **options)
    source(3 * torch.randn(8, 3) + 1)
    layer: nn.Module = nn.LazyBatchNorm1d(**options)

    for load in (load_first, not load_first):
        if load:
            layer.load_state_dict(source.state_dict(), strict=True)
            if see_a_batch_first:
                layer.eval()(torch.randn(2, 3))
        else:
            layer = convert_sync_batchnorm(layer)

    torch.testing.assert_close(layer.state_dict(), source.state_dict(), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"expected \(N, 3, "):
        layer.train()(torch.randn(5, 4))
    x = torch.randn(5, 3)
    torch.testing.assert_close(layer(x), source(x), rtol=0, atol=0)
    assert type(layer) is SyncBatchNorm


def pickled(layer: nn.Module) -> nn.Module:
    loaded: nn.Module = pickle.loads(pickle.dumps(layer))
    return loaded


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled])
@pytest.mark.parametrize("options", OPTIONS)
def test_copy_of_a_lazy_layer_materialises_on_its_own(
    duplicate: Callable[[nn.Module], nn.Module], options: dict[str, Any]
) -> None:
    layer = convert_sync_batchnorm(nn.Sequential(nn.LazyBatchNorm1d(**options)))
    x = torch.randn(4, 3)

    early = duplicate(layer)
    expected = layer(x)
    late = duplicate(layer)

    assert [type(model[0]).__name__ for model in (early, late)] == ["LazySyncBatchNorm", "SyncBatchNorm"]  # type: ignore[index]
    torch.testing.assert_close(early(x), expected, rtol=0, atol=0)
    torch.testing.assert_close(early.state_dict(), late.state_dict(), rtol=0, atol=0)
    assert [type(revert_sync_batchnorm(model)[0]) for model in (early, late)] == [nn.BatchNorm1d] * 2  # type: ignore[index]


def test_deep_copy_of_a_lazy_layer_keeps_dtype_device_and_group() -> None:
    layer = convert_sync_batchnorm(nn.LazyBatchNorm1d(dtype=torch.float64, device="meta"), A_GROUP)

    duplicate = copy.deepcopy(layer)
    duplicate(torch.empty(4, 3, dtype=torch.float64, device="meta"))

    assert {(t.dtype, t.device.type) for t in (*duplicate.parameters(), *duplicate.buffers())} == {
        (torch.float64, "meta"),
        (torch.int64, "meta"),
    }
    assert cast(SyncBatchNorm, duplicate).process_group is A_GROUP


def test_lazy_layer_says_what_it_expects_of_its_first_batch() -> None:
    model = convert_sync_batchnorm(nn.Sequential(nn.LazyBatchNorm1d()))
    with pytest.raises(ValueError, match=r"^0 got an input of shape \(3,\); expected \(N, C, \.\.\.\)"):
        model(torch.randn(3))
