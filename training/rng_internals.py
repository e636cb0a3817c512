"""Private parts of torch that drawing needs: functions that draw within others, and seeds of generators.

An upgrade of torch may change them without notice. tests/training/test_rng_internals.py says which one it
broke.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_CHECKS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


def _open(function: Any) -> Callable[..., Any]:
    assert isinstance(function, FunctionType)
    names = function.__globals__ | dict.fromkeys(_CHECKS, lambda *_: False)
    copy = FunctionType(function.__code__, names, function.__name__, function.__defaults__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


BACKWARD = (Tensor.backward, torch.autograd.backward, torch.autograd.grad)

OPENED: dict[Callable[..., Any], Callable[..., Any]] = {
    function: _open(function)
    for function in (
        F.dropout1d,
        F.dropout2d,
        F.dropout3d,
        F.alpha_dropout,
        F.feature_alpha_dropout,
        F.gumbel_softmax,
        F.multi_head_attention_forward,
        *BACKWARD,
    )
}
"""Functions that hand themselves to a mode as a whole, with copies that hand it what they call instead.

A backward pass calls layers that activation checkpointing computes again.
"""


def as_tensors() -> AbstractContextManager[Any]:
    """Returns a context in which subclasses of Tensor, as MONAI's MetaTensor, do nothing of their own."""
    return torch._C.DisableTorchFunctionSubclass()


def safe_softmax(scores: Tensor) -> Tensor:
    """Returns the softmax over the last dimension; zeros where all scores are minus infinity."""
    weights: Tensor = torch._safe_softmax(scores, -1)
    return weights


def in_transformation() -> bool:
    """Returns whether a transformation of torch.func runs, such as vmap, which has rules of its own."""
    return torch._C._functorch.peek_interpreter_stack() is not None
