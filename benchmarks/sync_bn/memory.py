"""Peak and retained tensor memory of a layer and its activation, counted at every allocation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.progress import progress
from benchmarks.result import Options, Result
from benchmarks.sync_bn.cases import Case, every_format
from benchmarks.sync_bn.fused import FUSED, IN_PLACE, SEPARATE, TORCH, contestants
from benchmarks.sync_bn.pools import RanksOf

SHAPE, TINY = (64, 56), (16, 32)
CHAIN = 8
GOAL = 0.67
NAMES = (FUSED, SEPARATE, IN_PLACE, TORCH)
COLUMNS = ("what", "input", *NAMES, f"{FUSED} / {SEPARATE}")
FORWARD_WITH_INPUT = "forward, with the input"
NOTES = (
    "In multiples of the input's bytes. Counts all allocations and frees of torch's CPU allocator, as "
    "the profiler reports them, in order; each figure is of the running sum. The gradient that is "
    "passed to backward belongs to the caller and is not counted.",
    "forward: the highest sum until the output exists, above the memory used before. With the input: the "
    "same plus the input. kept: the sum when the output exists, which is the output and what is saved for "
    "backward. forward and backward: the highest sum until the gradients exist; the output lives all "
    "the time.",
    f"{CHAIN} blocks: that many layers with their activations in sequence. No convolutions between "
    "them: what those keep is the same for all.",
)


class Bytes(NamedTuple):
    """Bytes beyond those of the input."""

    forward_peak: int
    kept: int
    step_peak: int


def measure(options: Options, ranks_of: RanksOf) -> Result:
    cases = list(every_format([TINY if options.quick else SHAPE]))
    rows = []
    met = []
    with progress("memory", len(cases)) as shown:
        for case in cases:
            shown.doing(case.format)
            (counted,) = ranks_of(1).run(count, case)
            rows += _rows(case, counted)
            met.append(_with_input(case, counted[1][FUSED]) / _with_input(case, counted[1][SEPARATE]))
            shown.done(f"{case.format}: {met[-1]:.2f} × separate")
    verdict = (
        f"Goal: at most {GOAL} × {SEPARATE} in one block's {FORWARD_WITH_INPUT}. Met by "
        f"{sum(round(ratio, 2) <= GOAL for ratio in met)} of {len(met)} formats (the highest is "
        f"{max(met):.3f})."
    )
    return Result(
        title="The activation within the layer: memory",
        columns=COLUMNS,
        rows=rows,
        notes=[*NOTES, verdict],
    )


def count(_rank: int, case: Case) -> dict[int, dict[str, Bytes]]:
    """Returns the bytes by number of blocks and contestant."""
    x, dy = case.tensor(seed=0).requires_grad_(), case.tensor(seed=1)
    return {
        blocks: {name: _bytes_of(_chain(name, case, blocks), x, dy) for name in NAMES}
        for blocks in (1, CHAIN)
    }


def _chain(name: str, case: Case, blocks: int) -> nn.Module:
    return nn.Sequential(*(contestants(case.channels)[name] for _ in range(blocks)))


def _bytes_of(layer: nn.Module, x: Tensor, dy: Tensor) -> Bytes:
    inputs = (x, *layer.parameters())

    def step() -> None:
        torch.autograd.grad(layer(x), inputs, dy)

    step()  # a first step, so that allocations that happen once are not counted
    forward = living_bytes(lambda: layer(x))
    return Bytes(forward_peak=max(forward), kept=forward[-1], step_peak=max(living_bytes(step)))


def living_bytes(work: Callable[[], Any]) -> list[int]:
    """Returns the running sum of bytes that `work` allocates and frees. Its result is freed last."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        returned = work()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    del returned
    return list(accumulate((size for _, size in changes), initial=0))


def _rows(case: Case, counted: dict[int, dict[str, Bytes]]) -> list[Sequence[str]]:
    one, chain = counted[1], counted[CHAIN]
    figures = {
        f"1 block: {FORWARD_WITH_INPUT}": {name: _with_input(case, one[name]) for name in NAMES},
        "1 block: forward": {name: one[name].forward_peak for name in NAMES},
        "1 block: forward and backward": {name: one[name].step_peak for name in NAMES},
        f"{CHAIN} blocks: forward": {name: chain[name].forward_peak for name in NAMES},
        f"{CHAIN} blocks: kept": {name: chain[name].kept for name in NAMES},
        f"{CHAIN} blocks: forward and backward": {name: chain[name].step_peak for name in NAMES},
    }
    return [
        (
            what,
            f"{case.shape} {case.format}",
            *(f"{value / case.bytes:.2f}" for value in values.values()),
            f"{values[FUSED] / values[SEPARATE]:.2f}",
        )
        for what, values in figures.items()
    ]


def _with_input(case: Case, counted: Bytes) -> int:
    return case.bytes + counted.forward_peak
