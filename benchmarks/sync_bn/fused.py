"""The activation fused into the layer, compared with a separate one."""

from __future__ import annotations

from torch import nn

from benchmarks.result import Options, Result
from benchmarks.sync_bn.cases import RESNET50, TINY, Case, every_format
from benchmarks.sync_bn.contest import Contest, Milliseconds
from benchmarks.sync_bn.ours import DistributedSyncBatchNorm
from benchmarks.sync_bn.pools import RanksOf
from benchmarks.sync_bn.timing import interleaved, training_step

ROUNDS_A_REPEAT = 4
FUSED = "fused"
SEPARATE, IN_PLACE = "SyncBatchNorm + ReLU", "SyncBatchNorm + ReLU in place"
TORCH = "BatchNorm2d + ReLU"
GOAL = 0.8
CONTEST = Contest(
    title="The activation within the layer: time",
    ours=FUSED,
    peers=(SEPARATE, IN_PLACE, TORCH),
    goals={SEPARATE: GOAL, IN_PLACE: GOAL},
)
NOTES = (
    f"{FUSED} is SyncBatchNorm(activation='relu'). Inputs, steps and rounds ({{rounds}} here) as in the "
    "local work of one rank; every SyncBatchNorm takes its code path for several ranks.",
)


def contestants(channels: int) -> dict[str, nn.Module]:
    return {
        FUSED: DistributedSyncBatchNorm(channels, activation="relu"),
        SEPARATE: nn.Sequential(DistributedSyncBatchNorm(channels), nn.ReLU()),
        IN_PLACE: nn.Sequential(DistributedSyncBatchNorm(channels), nn.ReLU(inplace=True)),
        TORCH: nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU()),
    }


def measure(options: Options, ranks_of: RanksOf) -> Result:
    rounds = ROUNDS_A_REPEAT * options.repeats
    cases = list(every_format(TINY if options.quick else RESNET50))
    timed = CONTEST.hold(cases, lambda case: ranks_of(1).run(_times, case, rounds)[0])
    return CONTEST.table(timed, [note.format(rounds=rounds) for note in NOTES])


def _times(_rank: int, case: Case, rounds: int) -> Milliseconds:
    x, dy = case.tensor(seed=0).requires_grad_(), case.tensor(seed=1)
    layers = contestants(case.channels)
    return interleaved({name: training_step(layer, x, dy) for name, layer in layers.items()}, rounds)
