"""The way back, and what travels: classes, state_dicts, copies and pickles."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.modules.batchnorm import _BatchNorm

from sync_bn import SyncBatchNorm, convert_sync_batchnorm, revert_sync_batchnorm
from tests.sync_bn.conftest import RanksOf

A_GROUP, ANOTHER_GROUP = (cast(torch.distributed.ProcessGroup, object()) for _ in range(2))


class Renamed(nn.BatchNorm2d):
    """A subclass that computes what its parent does."""


class LazyRenamed(nn.LazyBatchNorm2d):
    cls_to_become = Renamed


class NoShapeCheck(_BatchNorm):
    def _check_input_dim(self, input: Tensor) -> None:
        pass


class Activated(SyncBatchNorm):
    num_features: int
    activation: str | None = None


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


CLASSES = [
    (nn.BatchNorm1d, (4, 3)),
    (nn.BatchNorm2d, (4, 3, 2, 2)),
    (nn.BatchNorm3d, (4, 3, 2, 2, 2)),
    (nn.SyncBatchNorm, (4, 3, 2)),
    (Renamed, (4, 3, 2, 2)),
    (NoShapeCheck, (4, 3, 2, 2)),
]


@pytest.mark.parametrize(
    "options",
    [{}, {"affine": False}, {"track_running_stats": False}, {"dtype": torch.float64}, {"device": "meta"}],
)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("batch_norm", "shape"), CLASSES)
def test_conversion_and_back_leaves_the_module_exactly_as_it_was(
    batch_norm: type[_BatchNorm], shape: tuple[int, ...], training: bool, options: dict[str, Any]
) -> None:
    module = batch_norm(3, eps=1e-3, momentum=0.2, **options)
    module.register_forward_hook(lambda *_: None)
    module.requires_grad_(False)
    module.note = "mine"  # type: ignore[assignment]
    module.train(training)
    before = everything_about(module)

    assert convert_sync_batchnorm(module) is module
    assert type(module) is SyncBatchNorm
    during = {name: value for name, value in everything_about(module).items() if name in before}
    assert same({**during, "class": None}, {**before, "class": None})
    module(torch.ones(shape, device=options.get("device"), dtype=options.get("dtype")))
    assert revert_sync_batchnorm(module) is module

    assert same(everything_about(module), before)


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


@pytest.mark.parametrize(
    ("lazy", "plain", "shape"),
    [
        (nn.LazyBatchNorm1d, nn.BatchNorm1d, (4, 3)),
        (nn.LazyBatchNorm2d, nn.BatchNorm2d, (4, 3, 2, 2)),
        (nn.LazyBatchNorm3d, nn.BatchNorm3d, (4, 3, 2, 2, 2)),
        (LazyRenamed, Renamed, (4, 3, 2, 2)),
    ],
)
def test_lazy_layer_becomes_lazy_again_or_what_torch_would_have_made_of_it(
    lazy: Any, plain: type[_BatchNorm], shape: tuple[int, ...]
) -> None:
    layer: nn.Module = lazy()
    before = everything_about(layer)

    assert same(everything_about(revert_sync_batchnorm(convert_sync_batchnorm(layer))), before)

    x, expected = torch.randn(shape), lazy()
    torch.testing.assert_close(convert_sync_batchnorm(layer)(x), expected(x), rtol=0, atol=0)
    assert type(revert_sync_batchnorm(layer)) is plain is type(expected)
    assert layer.__dict__.keys() == expected.__dict__.keys()
    torch.testing.assert_close(layer.state_dict(), expected.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["'1.0'", "the module itself"])
def test_fused_activation_is_not_lost_silently_and_nothing_is_changed(name: str) -> None:
    layer = Activated(3)
    layer.activation = "relu"
    model = layer if name == "the module itself" else nn.Sequential(SyncBatchNorm(3), nn.Sequential(layer))

    with pytest.raises(TypeError, match=rf"^{name} has activation='relu'.*[\s\S]*nn\.ReLU"):
        revert_sync_batchnorm(model)

    kinds = {type(module) for module in model.modules()}
    assert kinds <= {nn.Sequential, SyncBatchNorm, Activated}
    layer.activation = None
    revert_sync_batchnorm(model)
    assert {type(module) for module in model.modules()} <= {nn.Sequential, nn.BatchNorm2d}
    assert layer.__dict__.keys() == nn.BatchNorm2d(3).__dict__.keys()


OPTIONS: list[dict[str, Any]] = [
    {},
    {"track_running_stats": False},
    {"affine": False},
    {"affine": False, "track_running_stats": False},
    {"dtype": torch.float64},
]
SHAPES = {nn.BatchNorm1d: (4, 3), nn.BatchNorm2d: (4, 3, 2, 2), nn.BatchNorm3d: (4, 3, 2, 2, 2)}


def learned(layer: _BatchNorm, shape: tuple[int, ...]) -> _BatchNorm:
    """A layer with values that no other has."""
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    dtype = layer.weight.dtype if layer.affine else torch.float32
    layer(torch.randn(shape, dtype=dtype))
    return layer


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("theirs", [*SHAPES, nn.SyncBatchNorm])
@pytest.mark.parametrize("ours", [SyncBatchNorm, *SHAPES, nn.SyncBatchNorm])
def test_state_dicts_interchange_bit_for_bit_in_both_directions(
    ours: Any, theirs: Any, options: dict[str, Any]
) -> None:
    shape = SHAPES.get(theirs, (4, 3, 2, 2))
    source, target = (convert_sync_batchnorm(ours(3, **options)) for _ in range(2))
    torchs = theirs(3, **options)

    state = learned(cast(_BatchNorm, source), shape).state_dict()
    torchs.load_state_dict(state, strict=True)
    torch.testing.assert_close(dict(torchs.state_dict()), dict(state), rtol=0, atol=0)

    state = learned(torchs, shape).state_dict()
    target.load_state_dict(state, strict=True)
    torch.testing.assert_close(dict(target.state_dict()), dict(state), rtol=0, atol=0)
    assert list(target.state_dict()) == list(state)
    assert target.state_dict()._metadata == state._metadata  # type: ignore[attr-defined]


def test_state_dict_from_before_batches_were_counted_loads() -> None:
    old = learned(nn.BatchNorm1d(3), (4, 3)).state_dict()
    del old["num_batches_tracked"]
    for versions in ({}, {"": {"version": 1}}):
        old._metadata = versions  # type: ignore[attr-defined]
        for new in (nn.BatchNorm1d(3), nn.LazyBatchNorm1d()):
            layer = convert_sync_batchnorm(new)

            layer.load_state_dict(copy.copy(old), strict=True)

            state = layer.state_dict()
            assert state.pop("num_batches_tracked") == 0
            torch.testing.assert_close(dict(state), dict(old), rtol=0, atol=0)


def test_pickle_forgets_the_group_until_it_is_given_again_and_a_deep_copy_keeps_it() -> None:
    model = nn.Sequential(nn.SyncBatchNorm(3, process_group=A_GROUP), nn.BatchNorm1d(3), nn.LazyBatchNorm1d())
    convert_sync_batchnorm(model, ANOTHER_GROUP)

    def groups(m: nn.Module) -> list[Any]:
        return [layer.process_group for layer in m.modules() if isinstance(layer, SyncBatchNorm)]

    loaded = pickle.loads(pickle.dumps(model))

    assert groups(copy.deepcopy(model)) == groups(model) == [ANOTHER_GROUP] * 3
    assert groups(loaded) == [None] * 3
    assert groups(convert_sync_batchnorm(loaded, ANOTHER_GROUP)) == [ANOTHER_GROUP] * 3
    original = [type(layer) for layer in revert_sync_batchnorm(loaded).modules()]
    assert original == [nn.Sequential, nn.SyncBatchNorm, nn.BatchNorm1d, nn.LazyBatchNorm1d]
    assert loaded[0].process_group is None


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copy_of_a_compiled_layer_is_a_layer_of_its_own(
    duplicate: Callable[[nn.Module], SyncBatchNorm],
) -> None:
    layer = SyncBatchNorm(3)
    layer.compile(backend="eager")
    layer(torch.randn(4, 3))

    other = duplicate(layer)
    other.eps = 1e12

    assert other(torch.randn(4, 3)).abs().max() < 1e-3


def test_saved_model_reverts_to_its_classes_where_it_is_loaded() -> None:
    model = convert_sync_batchnorm(nn.Sequential(Renamed(3), nn.BatchNorm2d(3)))
    x = torch.randn(4, 3, 2, 2)
    model(x)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)

    loaded = revert_sync_batchnorm(torch.load(file, weights_only=False))

    assert [type(layer) for layer in loaded.children()] == [Renamed, nn.BatchNorm2d]
    torch.testing.assert_close(loaded(x), revert_sync_batchnorm(model)(x), rtol=0, atol=0)


def error_of_reverting_a_sharded_layer(rank: int) -> str:
    mesh = init_device_mesh("cpu", (2,))
    model = nn.Sequential(convert_sync_batchnorm(nn.BatchNorm1d(4)))
    fully_shard(model[0], mesh=mesh)
    try:
        revert_sync_batchnorm(model)
    except TypeError as error:
        return str(error)
    return f"no error on rank {rank}"


def test_layer_that_is_sharded_by_itself_is_refused(ranks_of: RanksOf) -> None:
    for message in ranks_of(2).run(error_of_reverting_a_sharded_layer):
        assert "'0' (FSDPSyncBatchNorm) is sharded by itself" in message
