"""The SHA-256 of weights, beside what a user computes of model.pt with torch alone."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from tests.training.isolation import run_without_us
from training.model import weights
from training.model.export import save
from training.model.norms import apply_norm
from training.model.supervised import Supervised
from training.model.weights import weights_sha256
from training.models import ConvNet
from training.spec import parse_spec

GUIDE = Path(__file__).parents[3] / "docs" / "explanation" / "rounding.md"


def by_hand(folder: Path) -> str:
    """What the code in the docstring says of the model.pt in a folder."""
    _, _, code = str(weights_sha256.__doc__).partition("`model.pt`:\n")
    return run_without_us(f"import os\nos.chdir({str(folder)!r})\n{textwrap.dedent(code)}").strip()


def flipped(tensor: Tensor, bit: int) -> Tensor:
    """A copy of a contiguous tensor with one bit changed."""
    changed = tensor.clone()
    changed.view(-1).view(torch.uint8)[bit // 8] ^= 1 << bit % 8
    return changed


def test_a_user_computes_it_from_the_file_without_this_project(tmp_path: Path) -> None:
    spec = parse_spec({"model": {"class_path": "a.B"}, "data": {"class_path": "a.C"}})
    module = Supervised(apply_norm(ConvNet(), spec.norm), spec)
    module.model(torch.randn(4, 1, 8, 8))
    module.loss = nn.CrossEntropyLoss(weight=torch.ones(10))

    model = save(module, tmp_path / "model.pt")

    assert model is not None
    assert "running_var" in str(list(model.state_dict()))
    assert weights_sha256(model.state_dict()) == weights_sha256(module.model.state_dict())
    assert weights_sha256(model.state_dict()) != weights_sha256(module.state_dict())
    assert weights_sha256(model.state_dict()) == by_hand(tmp_path)


def test_every_dtype_and_stride_counts_as_its_elements_in_order(tmp_path: Path) -> None:
    model = nn.Module()
    buffers = [
        torch.tensor(1.5, dtype=torch.bfloat16),
        torch.empty(3, 0),
        torch.tensor([True, False]),
        torch.tensor([-0.0, math.nan, math.inf], dtype=torch.float64),
        torch.arange(6).view(2, 3).T,
        torch.arange(6)[::2],
        torch.randn(3, 6)[2, ::6],
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.ones(3, 1).expand(3, 4),
        torch.ones(3).to(torch.float8_e4m3fn),
        torch.tensor([1 + 2j]),
        torch.tensor([1 + 2j]).conj(),
        torch.tensor([1 + 2j]).conj().imag,
    ]
    for number, buffer in enumerate(buffers):
        model.register_buffer(f"b{number}", buffer)
    torch.save(model, tmp_path / "model.pt")
    contiguous = {
        name: torch.tensor(buffer.tolist(), dtype=buffer.dtype) for name, buffer in model.named_buffers()
    }
    contiguous["b1"] = torch.empty(3, 0)

    digest = weights_sha256(model.state_dict())

    assert digest == by_hand(tmp_path)
    assert digest == weights_sha256(contiguous)


CHANGES: dict[str, Callable[[Tensor], dict[str, object]]] = {
    "a bit of a weight": lambda w: {"a": flipped(w, 5), "b.n": torch.tensor(7)},
    "the last bit of the last weight": lambda w: {"a": flipped(w, 191), "b.n": torch.tensor(7)},
    "the sign of zero": lambda w: {"a": flipped(w, 31), "b.n": torch.tensor(7)},
    "a buffer": lambda w: {"a": w, "b.n": torch.tensor(8)},
    "a dtype": lambda w: {"a": w.view(torch.int32), "b.n": torch.tensor(7)},
    "a shape": lambda w: {"a": w.view(3, 2), "b.n": torch.tensor(7)},
    "a name": lambda w: {"a": w, "b.m": torch.tensor(7)},
    "one tensor less": lambda w: {"a": w},
    "one tensor more": lambda w: {"a": w, "b.n": torch.tensor(7), "c": torch.empty(0)},
}


@pytest.mark.parametrize("change", CHANGES)
def test_it_differs_after_a_change_of(change: str) -> None:
    weight = torch.zeros(2, 3)
    digest = weights_sha256({"a": weight, "b.n": torch.tensor(7)})

    assert weights_sha256(CHANGES[change](weight)) != digest


def test_neither_the_order_of_entries_counts_nor_what_is_no_tensor() -> None:
    first, second = torch.ones(2), torch.zeros(3)
    digest = weights_sha256({"a": first, "B": second})

    assert weights_sha256({"B": second, "a": first, "_extra_state": {"seen": 3}}) == digest


@pytest.mark.parametrize("piece", [8, 16, 48])
def test_pieces_of_a_tensor_give_what_the_whole_gives(piece: int) -> None:
    state = {"a": torch.randn(1, 5, 2, 3).transpose(1, 3), "b": torch.randn(31), "c": torch.tensor(1)}
    digest = weights_sha256(state)

    with patch.object(weights, "_PIECE", piece):
        assert weights_sha256(state) == digest


@pytest.mark.parametrize(
    "tensor",
    [
        torch.eye(2).to_sparse(),
        torch.empty(2, device="meta"),
        nn.UninitializedParameter(),
    ],
    ids=["sparse", "meta", "not initialised"],
)
def test_a_tensor_without_elements_in_memory_is_an_error(tensor: Tensor) -> None:
    with pytest.raises(RuntimeError):
        weights_sha256({"a": tensor})


def test_the_guide_has_the_code_of_the_docstring() -> None:
    _, _, code = str(weights_sha256.__doc__).partition("`model.pt`:\n")

    assert textwrap.dedent(code).strip() in GUIDE.read_text()
