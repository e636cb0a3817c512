import copy
import subprocess
import sys
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

import sync_bn
from sync_bn import SyncBatchNorm, convert_sync_batchnorm, revert_sync_batchnorm

A_GROUP, ANOTHER_GROUP = (cast(torch.distributed.ProcessGroup, object()) for _ in range(2))


class Renamed(nn.BatchNorm2d):
    """A subclass that computes what its parent does."""


class FusedActivation(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


class NoShapeCheck(_BatchNorm):
    def _check_input_dim(self, input: Tensor) -> None:
        pass


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def everything_about(module: nn.Module) -> dict[str, Any]:
    """What a module consists of: its class, and the very objects in its dictionary, containers by content."""
    contents = {
        name: dict(value) if isinstance(value, dict) else value for name, value in module.__dict__.items()
    }
    return {"class": type(module), **contents}


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    def identical(a: Any, b: Any) -> bool:
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(identical(a[k], b[k]) for k in a)
        return a is b or (not isinstance(a, Tensor) and bool(a == b))

    return identical(left, right)


CLASSES = [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, Renamed, NoShapeCheck]


@pytest.mark.parametrize("batch_norm", CLASSES)
def test_conversion_and_back_leaves_the_module_exactly_as_it_was(batch_norm: type[_BatchNorm]) -> None:
    module = batch_norm(3, eps=1e-3, momentum=None)
    module.register_forward_hook(lambda *_: None)
    module.weight.requires_grad = False
    module.note = "mine"  # type: ignore[assignment]
    module.eval()
    before = everything_about(module)

    assert convert_sync_batchnorm(module) is module
    assert type(module) is SyncBatchNorm
    assert module.weight is before["_parameters"]["weight"]
    assert not module.training
    assert revert_sync_batchnorm(module) is module

    assert same(everything_about(module), before)


def test_only_batch_normalisations_are_touched() -> None:
    others = [nn.InstanceNorm2d(3, affine=True), nn.GroupNorm(1, 3), nn.LayerNorm(3), nn.Conv2d(3, 3, 1)]
    model = nn.Sequential(*others, nn.BatchNorm2d(3), nn.Sequential(nn.BatchNorm1d(3)))

    convert_sync_batchnorm(model)

    kinds = [type(module) for module in model.modules() if isinstance(module, SyncBatchNorm)]
    assert kinds == [SyncBatchNorm, SyncBatchNorm]
    assert [type(module) for module in others] == [
        nn.InstanceNorm2d,
        nn.GroupNorm,
        nn.LayerNorm,
        nn.Conv2d,
    ]


def test_shared_layer_stays_shared_and_the_optimizer_keeps_its_parameters() -> None:
    shared = nn.BatchNorm1d(3)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    convert_sync_batchnorm(model)

    assert model["a"] is cast(nn.Sequential, model["b"])[0]
    assert optimizer.param_groups[0]["params"][0] is next(model.parameters())
    revert_sync_batchnorm(model)
    assert model["a"] is shared


def test_hooks_still_fire() -> None:
    calls: list[str] = []
    layer = nn.BatchNorm1d(3)
    layer.register_forward_pre_hook(lambda *_: calls.append("before"))
    layer.register_forward_hook(lambda *_: calls.append("after"))

    convert_sync_batchnorm(layer)(torch.randn(4, 3))

    assert calls == ["before", "after"]


def test_parametrization_survives_both_ways_and_may_be_removed_in_between() -> None:
    x = torch.randn(4, 3)
    layer = nn.BatchNorm1d(3)
    parametrize.register_parametrization(layer, "weight", Doubled())
    expected = layer(x)

    for change, kind in ((convert_sync_batchnorm, SyncBatchNorm), (revert_sync_batchnorm, nn.BatchNorm1d)):
        change(layer)
        assert type(layer).__bases__ == (kind,)
        torch.testing.assert_close(layer(x), expected)
        torch.testing.assert_close(copy.deepcopy(layer)(x), expected)

    convert_sync_batchnorm(layer)
    parametrize.remove_parametrizations(layer, "weight")
    assert [type(layer), type(revert_sync_batchnorm(layer))] == [SyncBatchNorm, nn.BatchNorm1d]
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: nn.Sequential(nn.BatchNorm2d(3), m)])
def test_layer_with_its_own_forward_is_refused_by_name_and_nothing_is_changed(wrap: Any) -> None:
    model = wrap(FusedActivation(3))
    kinds = [type(module) for module in model.modules()]

    with pytest.raises(TypeError, match=r"('1'|the module itself) \(.*FusedActivation\) has a forward"):
        convert_sync_batchnorm(model)

    assert [type(module) for module in model.modules()] == kinds


def test_forward_replaced_on_the_instance_is_refused() -> None:
    layer = nn.BatchNorm1d(3)
    layer.forward = lambda input: input  # type: ignore[method-assign]
    with pytest.raises(TypeError, match="has a forward of its own"):
        convert_sync_batchnorm(layer)


def test_lazy_layer_is_refused_until_it_has_seen_a_batch() -> None:
    model = nn.Sequential(nn.LazyBatchNorm1d())
    with pytest.raises(ValueError, match=r"'0' \(LazyBatchNorm1d\).*[\s\S]*Run one batch"):
        convert_sync_batchnorm(model)
    model(torch.randn(4, 3))
    assert type(convert_sync_batchnorm(model)[0]) is SyncBatchNorm  # type: ignore[index]


def test_groups_are_given_kept_and_restored() -> None:
    layer = nn.SyncBatchNorm(3, process_group=A_GROUP)

    assert cast(SyncBatchNorm, convert_sync_batchnorm(layer)).process_group is A_GROUP
    assert cast(SyncBatchNorm, convert_sync_batchnorm(layer, ANOTHER_GROUP)).process_group is ANOTHER_GROUP
    assert cast(SyncBatchNorm, convert_sync_batchnorm(layer)).process_group is ANOTHER_GROUP

    reverted = revert_sync_batchnorm(copy.deepcopy(layer))
    assert type(reverted) is nn.SyncBatchNorm
    assert reverted.process_group is A_GROUP


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        (None, nn.BatchNorm2d),
        ((2, 3), nn.BatchNorm1d),
        ((2, 3, 4), nn.BatchNorm1d),
        ((2, 3, 4, 4), nn.BatchNorm2d),
        ((2, 3, 2, 2, 2), nn.BatchNorm3d),
    ],
)
def test_layer_constructed_as_ours_becomes_the_class_for_the_inputs_it_has_seen(
    shape: tuple[int, ...] | None, kind: type[_BatchNorm]
) -> None:
    layer = SyncBatchNorm(3)
    if shape is not None:
        layer(torch.randn(shape))
    expected = copy.deepcopy(layer.state_dict())

    reverted = revert_sync_batchnorm(layer)

    assert type(reverted) is kind
    assert reverted.__dict__.keys() == kind(3).__dict__.keys()
    torch.testing.assert_close(reverted.state_dict(), expected)


def test_class_method_does_the_same_as_torchs() -> None:
    model = SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.BatchNorm2d(3)), A_GROUP)
    assert cast(SyncBatchNorm, cast(nn.Sequential, model)[0]).process_group is A_GROUP


def test_package_imports_torch_alone() -> None:
    others = ["lightning", "ray", "mlflow", "training", "service", "pytest"]
    code = f"import sys, sync_bn; sys.exit(str([m for m in {others} if m in sys.modules] or ''))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stderr.strip().splitlines()[-1:] in ([], [""]), result.stderr


def test_public_names_are_these() -> None:
    assert sync_bn.__all__ == [
        "DesynchronizedError",
        "SyncBatchNorm",
        "check_ranks",
        "convert_sync_batchnorm",
        "observe",
        "precise_bn",
        "process_group_of",
        "revert_sync_batchnorm",
    ]
