"""One rank's local work, forward and backward, compared with torch's plain layer and memory bandwidth."""

from __future__ import annotations

from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.result import Options, Result
from benchmarks.sync_bn.cases import RESNET50, TINY, Case, every_format
from benchmarks.sync_bn.contest import Contest, Milliseconds
from benchmarks.sync_bn.ours import DistributedSyncBatchNorm
from benchmarks.sync_bn.pools import RanksOf
from benchmarks.sync_bn.timing import (
    PASSES,
    WARM_UP_STEPS,
    Step,
    copies,
    interleaved,
    training_step,
)

ROUNDS_A_REPEAT = 7
OURS, TORCH, LIMIT, ALL_REDUCES = "SyncBatchNorm", "BatchNorm2d", "limit", "all-reduces"
CONTEST = Contest(title="Local work of one rank", ours=OURS, peers=(TORCH, LIMIT), beside=(ALL_REDUCES,))
NOTES = (
    "The distinct BatchNorm inputs of ResNet-50 at 224 × 224, 16 samples. One process of one thread; a "
    "step is forward and backward in training mode, with running statistics and the gradients of input, "
    "weight and bias. Medians of {rounds} rounds, in each of which every contestant runs once, after "
    f"{WARM_UP_STEPS} steps of each.",
    f"{OURS} takes its code path for several ranks, without the two all-reduces themselves: "
    f"{ALL_REDUCES} is the time of these alone, in a gloo group of one.",
    f"{LIMIT} is {PASSES} passes over memory of the input's size, the minimum of a step (forward "
    "reads x for the statistics, reads x and writes y; backward reads x and dy for the sums, reads x and "
    f"dy and writes dx), at the speed of {PASSES // 2} copies of x, in the same rounds, into memory that "
    "exists already.",
    "Both layers allocate new memory for their results, as in training; it is freed within the step.",
)


def measure(options: Options, ranks_of: RanksOf) -> Result:
    rounds = ROUNDS_A_REPEAT * options.repeats
    cases = list(every_format(TINY if options.quick else RESNET50))
    timed = CONTEST.hold(cases, lambda case: ranks_of(1).run(_times, case, rounds)[0])
    return CONTEST.table(timed, [note.format(rounds=rounds) for note in NOTES])


def _times(_rank: int, case: Case, rounds: int) -> Milliseconds:
    x, dy = case.tensor(seed=0).requires_grad_(), case.tensor(seed=1)
    all_reduces = _all_reduces(case.channels)
    steps = {
        OURS: training_step(DistributedSyncBatchNorm(case.channels), x, dy),
        TORCH: training_step(nn.BatchNorm2d(case.channels), x, dy),
        LIMIT: copies(x),
        ALL_REDUCES: all_reduces,
    }
    with patch.object(dist, "all_reduce", lambda *_, **__: None):
        return interleaved(steps, rounds)


def _all_reduces(channels: int) -> Step:
    """Returns a step that only does the all-reduces of the layer's step."""
    buffers = [
        torch.zeros(2 * channels + 1, dtype=torch.float64),
        torch.zeros(2 * channels, dtype=torch.float64),
    ]

    all_reduce = dist.all_reduce

    def step() -> None:
        for buffer in buffers:
            all_reduce(buffer)

    return step
