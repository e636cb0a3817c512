"""What conversion keeps and what it refuses; the way back is in test_revert."""

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Self, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

import sync_bn
from sync_bn import SyncBatchNorm, convert_sync_batchnorm, revert_sync_batchnorm
from tests.sync_bn.conftest import RanksOf

A_GROUP, ANOTHER_GROUP = (cast(torch.distributed.ProcessGroup, object()) for _ in range(2))
Model = Callable[[nn.Module], nn.Module]


class FusedActivation(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


class Frozen(nn.BatchNorm2d):
    def train(self, mode: bool = True) -> Self:
        return super().train(mode and False)


class NotesAnActivation(nn.BatchNorm2d):
    """For someone else to read; the layer itself has none."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.activation = "relu"


class Activated(SyncBatchNorm):
    activation: str | None = None


class LazyInItsOwnWay(nn.LazyBatchNorm2d):
    def initialize_parameters(self, input: Tensor) -> None:
        super().initialize_parameters(input[:, 1:])


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_only_batch_normalisations_are_touched() -> None:
    others = [nn.InstanceNorm2d(3, affine=True), nn.GroupNorm(1, 3), nn.LayerNorm(3), nn.LazyInstanceNorm2d()]
    kinds = [type(module) for module in others]
    model = nn.Sequential(*others, nn.BatchNorm2d(3), nn.Sequential(nn.BatchNorm1d(3)))

    convert_sync_batchnorm(model)

    found = [type(module) for module in model.modules() if isinstance(module, SyncBatchNorm)]
    assert found == [SyncBatchNorm, SyncBatchNorm]
    assert [type(module) for module in others] == kinds


def test_shared_layer_stays_shared_and_the_optimizer_keeps_its_parameters() -> None:
    shared = nn.BatchNorm1d(3)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    convert_sync_batchnorm(model)

    assert model["a"] is cast(nn.Sequential, model["b"])[0]
    assert optimizer.param_groups[0]["params"][0] is next(model.parameters())
    revert_sync_batchnorm(model)
    assert model["a"] is shared


def hook_everything(layer: Any, calls: list[str]) -> None:
    def hook(name: str) -> Callable[..., None]:
        return lambda *_: calls.append(name)

    layer.register_forward_pre_hook(hook("before forward"))
    layer.register_forward_hook(hook("after forward"))
    layer.register_full_backward_pre_hook(hook("before backward"))
    layer.register_full_backward_hook(hook("after backward"))
    layer.register_state_dict_pre_hook(hook("before state_dict"))
    layer.register_state_dict_post_hook(hook("after state_dict"))
    layer.register_load_state_dict_pre_hook(hook("before load_state_dict"))
    layer.register_load_state_dict_post_hook(hook("after load_state_dict"))


def hooks_that_fire(rank: int) -> list[list[str]]:
    """On the layer as it is, converted, and reverted."""
    calls: list[str] = []
    layer = nn.BatchNorm1d(3)
    hook_everything(layer, calls)
    found = []
    for change in (lambda module: module, convert_sync_batchnorm, revert_sync_batchnorm):
        change(layer)
        torch.autograd.backward(layer(torch.randn(4 + rank, 3, requires_grad=True)).sum())
        layer.load_state_dict(layer.state_dict())
        found.append(calls.copy())
        calls.clear()
    return found


def test_hooks_of_every_kind_still_fire(ranks_of: RanksOf) -> None:
    for plain, converted, reverted in ranks_of(2).run(hooks_that_fire):
        assert len(plain) == 8
        assert plain == converted == reverted


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


def test_parametrization_made_after_conversion_survives_the_way_back() -> None:
    x = torch.randn(4, 3)
    layer = cast(nn.BatchNorm1d, convert_sync_batchnorm(nn.BatchNorm1d(3)))
    parametrize.register_parametrization(layer, "weight", Doubled())
    expected = layer(x)

    revert_sync_batchnorm(layer)

    assert type(layer).__bases__ == (nn.BatchNorm1d,)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(
    ("layer", "complaint"),
    [
        (FusedActivation(3), r"FusedActivation\) has its own forward, which SyncBatchNorm would"),
        (Frozen(3), r"Frozen\) has its own train, which SyncBatchNorm would"),
        (LazyInItsOwnWay(), r"LazyInItsOwnWay\) has its own initialize_parameters"),
    ],
)
@pytest.mark.parametrize(
    ("wrap", "name"),
    [
        (lambda m: m, "the module itself"),
        (lambda m: nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(m)), "'1.0'"),
    ],
)
def test_layer_that_does_more_is_refused_by_name_and_nothing_is_changed(
    layer: nn.Module, complaint: str, wrap: Model, name: str
) -> None:
    model = wrap(layer)
    before = [(type(module), set(module.__dict__)) for module in model.modules()]

    with pytest.raises(TypeError, match=rf"^{name} \(tests.*{complaint}") as caught:
        convert_sync_batchnorm(model)

    assert "Use a plain nn.BatchNorm" in str(caught.value)
    assert [(type(module), set(module.__dict__)) for module in model.modules()] == before


def test_forward_replaced_on_the_instance_is_refused() -> None:
    layer = nn.BatchNorm1d(3)
    layer.forward = lambda input: input  # type: ignore[method-assign]
    with pytest.raises(TypeError, match="has its own forward"):
        convert_sync_batchnorm(layer)


def test_attribute_that_our_layer_would_take_for_its_own_is_refused() -> None:
    with pytest.raises(TypeError, match=r"'bn' .*has an attribute activation, which.*[\s\S]*Rename it"):
        Activated.convert_sync_batchnorm(nn.ModuleDict({"bn": NotesAnActivation(3)}))


def test_groups_are_given_kept_and_restored() -> None:
    layer = nn.SyncBatchNorm(3, process_group=A_GROUP)

    assert cast(SyncBatchNorm, convert_sync_batchnorm(layer)).process_group is A_GROUP
    assert cast(SyncBatchNorm, convert_sync_batchnorm(layer, ANOTHER_GROUP)).process_group is ANOTHER_GROUP
    assert cast(SyncBatchNorm, convert_sync_batchnorm(layer)).process_group is ANOTHER_GROUP

    reverted = revert_sync_batchnorm(copy.deepcopy(layer))
    assert type(reverted) is nn.SyncBatchNorm
    assert reverted.process_group is A_GROUP


def names_in(model: nn.Module) -> list[str | None]:
    return [layer.__dict__.get("_layer_name") for layer in model.modules() if isinstance(layer, _BatchNorm)]


def test_each_layer_learns_its_first_name_and_revert_takes_it_away() -> None:
    shared = nn.BatchNorm1d(3)
    part = nn.Sequential(nn.BatchNorm1d(3), shared)
    model = nn.ModuleDict({"a": shared, "b": part})

    convert_sync_batchnorm(part)
    assert names_in(part) == ["0", "1"]
    convert_sync_batchnorm(model)
    assert names_in(model) == ["a", "b.0"]
    assert not any("_layer_name" in key for key in model.state_dict())
    assert names_in(pickle.loads(pickle.dumps(model))) == names_in(copy.deepcopy(model)) == ["a", "b.0"]
    revert_sync_batchnorm(model)
    assert names_in(model) == [None, None]


def test_layer_converted_alone_is_called_by_its_class_unless_it_has_a_name() -> None:
    alone = convert_sync_batchnorm(nn.BatchNorm1d(3))
    named = convert_sync_batchnorm(nn.Sequential(SyncBatchNorm(3)))

    assert names_in(alone) == ["SyncBatchNorm"]
    convert_sync_batchnorm(cast(nn.Sequential, named)[0])
    assert names_in(named) == ["0"]


def test_layer_that_cannot_know_its_number_of_features_is_refused() -> None:
    layer = nn.LazyBatchNorm1d(affine=False, track_running_stats=False)
    layer(torch.randn(4, 3))
    with pytest.raises(
        ValueError, match=r"'0' \(.*BatchNorm1d\) has num_features=0.*[\s\S]*Set num_features"
    ):
        convert_sync_batchnorm(nn.Sequential(layer))


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
        "BatchRenorm",
        "Correction",
        "DesynchronizedError",
        "SyncBatchNorm",
        "check_ranks",
        "convert_batch_renorm",
        "convert_sync_batchnorm",
        "global_mean",
        "observe",
        "precise_bn",
        "process_group_of",
        "revert_sync_batchnorm",
    ]
