"""Two ranks: forward and backward of several schemes, after a check that their results agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.result import Options, Result
from benchmarks.sync_bn.cases import Case, every_format
from benchmarks.sync_bn.contest import Contest, Milliseconds
from benchmarks.sync_bn.peers import (
    AutogradSyncBatchNorm,
    PackedSyncBatchNorm,
    UnpackedSyncBatchNorm,
    fairscale_sync_batch_norm,
)
from benchmarks.sync_bn.pools import RanksOf
from benchmarks.sync_bn.timing import Step, interleaved, training_step, wall_clock
from sync_bn import SyncBatchNorm

WORLD_SIZE = 2
ROUNDS_A_REPEAT = 4
SHAPES = ((64, 112), (256, 56), (128, 28), (1024, 14), (2048, 7))
BATCHES = (2, 4, 16)
TINY, TINY_BATCHES = ((32, 6),), (2,)
TOLERANCE = 1e-4
GOAL = 0.6
OURS = "SyncBatchNorm"
Kind = Callable[[int], nn.Module]
FAIRSCALE_IS_INSTALLED = find_spec("fairscale") is not None
PEERS: dict[str, Kind] = {
    "autograd": AutogradSyncBatchNorm,
    **({"fairscale": fairscale_sync_batch_norm} if FAIRSCALE_IS_INSTALLED else {}),
    "two collectives": UnpackedSyncBatchNorm,
}
PACKED = "packed"
CONTESTANTS: dict[str, Callable[[int], nn.Module]] = {
    OURS: SyncBatchNorm,
    **PEERS,
    PACKED: PackedSyncBatchNorm,
}
CONTEST = Contest(
    title="Two ranks, against other schemes",
    ours=OURS,
    peers=(*PEERS, PACKED),
    goals=dict.fromkeys(PEERS, GOAL),
)
NOTES = (
    f"{WORLD_SIZE} processes of one thread each, joined by gloo; float32; the batch is per process. A step "
    "is as in the local work of one rank. It starts after a barrier, which is not timed, and takes as long "
    "as the slower rank's. Medians of {rounds} rounds, in each of which every contestant runs once.",
    "autograd: one differentiable all-reduce of means and means of squares, the rest in plain autograd. "
    "two collectives: an autograd function with an all-reduce for each sum, of values and of their squares, "
    "in plain torch operations. packed: the same with one all-reduce each way. They are in "
    "benchmarks/sync_bn/peers.py, and communicate by gloo; SyncBatchNorm adds in shared memory.",
    "fairscale: fairscale.experimental.nn.SyncBatchNorm as installed, "
    + (
        f"version {version('fairscale')}."
        if FAIRSCALE_IS_INSTALLED
        else "which it was not: pip install fairscale."
    ),
)


class Compared(NamedTuple):
    milliseconds: Milliseconds
    difference: float


class Disagreement(RuntimeError):
    """Contestants give different results, so their times cannot be compared."""


def measure(options: Options, ranks_of: RanksOf) -> Result:
    rounds = ROUNDS_A_REPEAT * options.repeats
    shapes, batches = (TINY, TINY_BATCHES) if options.quick else (SHAPES, BATCHES)
    differences: list[float] = []

    def milliseconds_of(case: Case) -> Milliseconds:
        compared = ranks_of(WORLD_SIZE).run(compare, case, rounds)
        differences.extend(rank.difference for rank in compared)
        return slowest([rank.milliseconds for rank in compared])

    cases = [case for batch in batches for case in every_format(shapes, batch, dtypes=(torch.float32,))]
    timed = CONTEST.hold(cases, milliseconds_of, lambda case: f"{case.format}, batch {case.batch}")
    agreed = (
        "Before timing, all contestants give the same output, gradients and running statistics on each "
        f"input, to {TOLERANCE:g} of the largest value; the largest difference was {max(differences):.1e}."
    )
    return CONTEST.table(timed, [*(note.format(rounds=rounds) for note in NOTES), agreed])


def slowest(ranks: Sequence[Milliseconds]) -> Milliseconds:
    """Returns for each round the time of the slowest rank."""
    return {
        name: [max(times) for times in zip(*(rank[name] for rank in ranks), strict=True)] for name in ranks[0]
    }


def compare(rank: int, case: Case, rounds: int) -> Compared:
    x, dy = case.tensor(seed=2 * rank).requires_grad_(), case.tensor(seed=2 * rank + 1)
    layers = {name: _layer(kind, case.channels) for name, kind in CONTESTANTS.items()}
    difference = largest_difference({name: _results(layer, x, dy) for name, layer in layers.items()})
    steps = {name: training_step(layer, x, dy) for name, layer in layers.items()}
    return Compared(interleaved(steps, rounds, _behind_a_barrier), difference)


def _layer(kind: Kind, channels: int) -> nn.Module:
    layer = kind(channels)
    with torch.no_grad():
        layer.get_parameter("weight").copy_(torch.linspace(0.5, 1.5, channels))
        layer.get_parameter("bias").copy_(torch.linspace(-1, 1, channels))
    return layer


def _results(layer: nn.Module, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    y = layer(x)
    dx, dweight, dbias = torch.autograd.grad(y, (x, *layer.parameters()), dy)
    # Without num_batches_tracked, which fairscale leaves at 0: it has no effect with momentum.
    running = {name: layer.get_buffer(name) for name in ("running_mean", "running_var")}
    return {"output": y.detach(), "dx": dx, "dweight": dweight, "dbias": dbias, **running}


def largest_difference(results: Mapping[str, Mapping[str, Tensor]]) -> float:
    """Returns the difference to ours relative to the largest value. Raises Disagreement if it is above the
    tolerance or not finite.
    """
    largest = 0.0
    for peer, values in results.items():
        for name, expected in results[OURS].items():
            difference = float((values[name] - expected).abs().max() / expected.abs().max())
            if not difference <= TOLERANCE:
                raise Disagreement(
                    f"{peer} and {OURS} differ in {name}: {difference:.1e} of the largest value"
                )
            largest = max(largest, difference)
    return largest


def _behind_a_barrier(step: Step) -> float:
    dist.barrier()
    return wall_clock(step)
