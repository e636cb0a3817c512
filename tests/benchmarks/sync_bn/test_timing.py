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


def _rounds_of_two(rounds: int) -> tuple[list[str], dict[str, list[float]]]:
    """Who ran, in order, and the times, which are how many had run by then."""
    ran: list[str] = []

    def clock(step: Step) -> float:
        step()
        return float(len(ran))

    steps = {"a": lambda: ran.append("a"), "b": lambda: ran.append("b")}
    return ran, interleaved(steps, rounds, clock)


def test_contestants_take_turns_after_a_warm_up() -> None:
    ran, milliseconds = _rounds_of_two(20)

    warm_up = 2 * WARM_UP_STEPS
    rounds = [ran[i : i + 2] for i in range(warm_up, len(ran), 2)]
    assert len(rounds) == 20
    assert all(sorted(of_round) == ["a", "b"] for of_round in rounds)
    for name, times in milliseconds.items():
        assert [ran[int(time) - 1] for time in times] == [name] * 20


def test_neither_always_follows_the_other() -> None:
    ran, _ = _rounds_of_two(40)

    first = ran[2 * WARM_UP_STEPS :: 2]
    assert 10 < first.count("a") < 30


def test_all_ranks_have_the_same_order() -> None:
    assert _rounds_of_two(20)[0] == _rounds_of_two(20)[0]


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
