from __future__ import annotations

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.sync_bn.timing import PASSES, WARM_UP_STEPS, Step, copies, interleaved, training_step


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The names of all operations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def test_contestants_take_turns_after_a_warm_up() -> None:
    ran: list[str] = []

    def clock(step: Step) -> float:
        step()
        return float(len(ran))

    steps = {"a": lambda: ran.append("a"), "b": lambda: ran.append("b")}
    milliseconds = interleaved(steps, 3, clock)

    warm_up = 2 * WARM_UP_STEPS
    assert ran[warm_up:] == ["a", "b", "a", "b", "a", "b"]
    assert milliseconds == {
        "a": [warm_up + 1.0, warm_up + 3.0, warm_up + 5.0],
        "b": [warm_up + 2.0, warm_up + 4.0, warm_up + 6.0],
    }


def test_a_step_trains_and_leaves_no_gradient() -> None:
    layer, x = nn.BatchNorm2d(2), torch.randn(2, 2, 2, 2, requires_grad=True)

    with Operations() as operations:
        training_step(layer, x, torch.ones(2, 2, 2, 2))()

    assert "aten::native_batch_norm_backward" in operations.names
    assert [tensor.grad for tensor in (x, *layer.parameters())] == [None, None, None]
    assert layer.num_batches_tracked == 1


def test_the_limit_copies_once_for_a_read_and_a_write() -> None:
    step = copies(torch.randn(2, 2, 2, 2, requires_grad=True))

    with Operations() as operations:
        step()

    assert operations.names == ["aten::copy_"] * (PASSES // 2)
