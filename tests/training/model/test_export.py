from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from sync_bn import SyncBatchNorm, convert_sync_batchnorm
from tests.training.isolation import run_without_us
from training.model.export import draw_curves, example_input, exportable, save
from training.model.norms import apply_norm, layer_sync
from training.model.supervised import Supervised
from training.models import MLP, ConvNet, resnet18
from training.spec import Norm, parse_spec
from training.tracking.tracker import History


class Scaled(nn.Module):
    """A user's own block."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class Branching(nn.Module):
    """torch.fx cannot trace it, because its control flow depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(x)
        return y if y.sum() > 0 else -y


class Whole(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))

    def forward(self, x: Tensor) -> Any:
        return self.body(x).relu()


MODELS = {
    "convnet": (lambda: ConvNet(widths=(4, 8)), (1, 8, 8)),
    "mlp": (lambda: MLP(hidden=(8,)), (64,)),
    "resnet18": (lambda: resnet18(width=4), (3, 16, 16)),
    "blocks": (lambda: nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), Scaled()), (1, 4, 4)),
    "torch": (lambda: nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)), (1, 4, 4)),
    "lightning": (Whole, (3,)),
}


def trained(name: str) -> tuple[nn.Module, Tensor]:
    """A converted model whose buffers have seen batches, and an input."""
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model = convert_sync_batchnorm(make())  # type: ignore[no-untyped-call]
    for _ in range(3):
        model(1 + torch.randn(8, *shape))
    return model, torch.randn(4, *shape)


@pytest.mark.parametrize("name", MODELS)
def test_exported_model_has_plain_batch_norm_and_the_same_state_and_outputs(name: str) -> None:
    model, x = trained(name)

    exported = exportable(model)

    kinds = {type(layer) for layer in exported.modules()}
    assert kinds & {nn.BatchNorm1d, nn.BatchNorm2d}
    assert SyncBatchNorm not in kinds
    state, expected = exported.state_dict(), model.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    with torch.no_grad():
        assert torch.equal(exported(x), model.eval()(x))


def test_the_model_itself_stays_as_it_was() -> None:
    model, _ = trained("convnet")

    exported = exportable(model)

    assert model.training
    assert any(isinstance(layer, SyncBatchNorm) for layer in model.modules())
    assert not {id(parameter) for parameter in model.parameters()} & set(map(id, exported.parameters()))


def test_exported_models_load_where_this_project_is_not(tmp_path: Path) -> None:
    for name in MODELS:
        model, x = trained(name)
        save(exportable(model), tmp_path / f"{name}.pt")
        torch.save((x, model.eval()(x).detach()), tmp_path / f"{name}.expected")

    output = run_without_us(
        "import torch, pathlib\n"
        f"for path in sorted(pathlib.Path({str(tmp_path)!r}).glob('*.pt')):\n"
        "    x, expected = torch.load(path.with_suffix('.expected'))\n"
        "    model = torch.load(path, weights_only=False)\n"
        "    assert not model.training\n"
        "    torch.testing.assert_close(model(x), expected)\n"
        "    print(path.stem)\n"
    )

    assert output.split() == sorted(MODELS)


NORMS: list[dict[str, Any]] = [
    {"kind": "batch_renorm"},
    {"kind": "ghost_batch_norm", "samples": 3},
    {"kind": "group_norm"},
    {"kind": "group_norm", "weight_standardization": True},
    {"kind": "layer_norm"},
    {"kind": "instance_norm"},
    {"kind": "filter_response_norm"},
    {"kind": "evonorm_s0"},
    {"kind": "none"},
]


def test_models_of_every_normalisation_load_where_this_project_is_not(tmp_path: Path) -> None:
    states = {}
    for number, norm in enumerate(NORMS):
        for name in ("convnet", "resnet18"):
            torch.manual_seed(0)
            make, shape = MODELS[name]
            model = apply_norm(make(), Norm.model_validate(norm))  # type: ignore[no-untyped-call]
            if norm["kind"] == "batch_renorm":
                layer_sync(Norm(kind="batch_renorm"), 0, 1).apply(model)
            model(1 + torch.randn(8, *shape)).sum().backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.1)
            x = torch.randn(4, *shape)
            path = tmp_path / f"{number}-{name}.pt"
            saved = save(model, path)
            assert saved is not None
            torch.save((x, model.eval()(x).detach()), path.with_suffix(".expected"))
            states[path.stem] = sorted(model.state_dict())
            assert sorted(saved.state_dict()) == states[path.stem]

    output = run_without_us(
        "import torch, pathlib\n"
        f"for path in sorted(pathlib.Path({str(tmp_path)!r}).glob('*.pt')):\n"
        "    x, expected = torch.load(path.with_suffix('.expected'))\n"
        "    model = torch.load(path, weights_only=False)\n"
        "    torch.testing.assert_close(model(x), expected)\n"
        "    torch.testing.assert_close(model(x[:2]), expected[:2])\n"
        "    print(path.stem)\n"
    )

    assert output.split() == sorted(states)


@pytest.mark.parametrize("norm", NORMS, ids=str)
def test_layers_of_ours_in_a_model_that_cannot_be_traced_become_torchs(norm: dict[str, Any]) -> None:
    model = apply_norm(BranchingOnImages(), Norm.model_validate(norm))
    model(torch.randn(8, 1, 3, 3))

    exported = exportable(model)

    ours = ("training.", "sync_bn.")
    assert not [layer for layer in exported.modules() if type(layer).__module__.startswith(ours)]
    x = torch.randn(2, 1, 3, 3)
    torch.testing.assert_close(exported(x), model.eval()(x))


class BranchingOnImages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y if y.sum() > 0 else -y


def test_a_model_that_cannot_be_traced_is_saved_as_its_class_with_a_warning(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    model = convert_sync_batchnorm(Branching())

    with caplog.at_level(logging.WARNING):
        exported = exportable(model)
    save(exported, tmp_path / "model.pt")

    assert "saved as its class" in caplog.text
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert type(loaded) is Branching
    assert type(loaded.bn) is nn.BatchNorm1d


def test_the_wrapper_around_a_users_model_is_not_exported() -> None:
    spec = parse_spec({"model": {"class_path": "a.B"}, "data": {"class_path": "a.C"}})
    module = Supervised(MLP(hidden=(8,)), spec)

    assert list(exportable(module).state_dict()) == list(module.model.state_dict())


def test_a_model_that_cannot_be_saved_as_a_whole_is_saved_as_its_own_state(tmp_path: Path) -> None:
    spec = parse_spec({"model": {"class_path": "a.B"}, "data": {"class_path": "a.C"}})
    module = Supervised(nn.Linear(2, 3), spec)
    module.loss = nn.CrossEntropyLoss(weight=torch.ones(3))
    module.model.last = module.model(torch.ones(1, 2))  # a tensor with its graph

    assert save(module, tmp_path / "model.pt") is None

    assert list(torch.load(tmp_path / "model.pt")) == ["weight", "bias"]


def test_an_example_is_one_sample_of_the_input() -> None:
    x, y = torch.randn(4, 3), torch.arange(4)

    example = example_input([x, y])

    assert example is not None
    assert torch.equal(example, x[:1])
    assert example_input({"x": x}) is None
    assert example_input([]) is None


@pytest.mark.parametrize(
    "history",
    [
        {},
        {"train_loss": []},
        {"train_loss": [(1, 0.5)], "val_loss": [(1, 0.25)], "test_loss": [(1, 0.3)]},
        {
            "train_loss": [(step, 1 / step) for step in range(1, 2000)],
            "val_accuracy": [(1000, 0.5), (1999, 0.6)],
        },
        {"train_loss": [(1, math.nan), (2, math.nan)], "val_loss": [(2, math.nan)]},
        {"train_loss": [(1, 1.0), (2, math.nan), (3, 2.0)], "val_loss": [(2, math.inf), (3, 1.0)]},
        {"train_loss": [(1, 1.0), (2, -1.0)]},
        {"learning_rate": [(1, 0.1)], "system/cpu": [(1, 1.0)]},
    ],
    ids=["none", "no points", "one point", "many points", "nan", "some nan", "negative", "other names"],
)
def test_curves_are_drawn_whatever_the_history(history: History, tmp_path: Path) -> None:
    path = tmp_path / "curves.png"

    draw_curves(history, path)

    assert path.read_bytes().startswith(b"\x89PNG\r\n")
