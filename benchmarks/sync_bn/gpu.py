"""The layer on a GPU: time, host waits, capture in a CUDA graph. Reports nothing without a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm as TorchSyncBatchNormFunction

from benchmarks.progress import progress
from benchmarks.result import Options, Result
from benchmarks.sync_bn import gpu_checks
from benchmarks.sync_bn.cases import RESNET50, TINY, Case, every_format
from benchmarks.sync_bn.contest import Contest, Milliseconds
from benchmarks.sync_bn.ours import DistributedSyncBatchNorm, LocalSyncBatchNorm
from benchmarks.sync_bn.pools import RanksOf
from benchmarks.sync_bn.ranks import Kind, slowest
from benchmarks.sync_bn.timing import PASSES, Clock, Step, copies, interleaved, training_step
from sync_bn import _triton
from testing.ranks import Ranks

TITLE = "On a GPU"
BATCH, TINY_BATCH = 32, 4
ROUNDS_A_REPEAT = 7
STEPS_A_ROUND = 10
TIMEOUT_SECONDS = 300.0  # of one input; Triton compiles kernels for the first
OURS, LOCAL, LIMIT = "SyncBatchNorm", "SyncBatchNorm without all-reduces", "limit"
TORCH_SYNC, TORCH, APEX = "torch.nn.SyncBatchNorm", "BatchNorm2d", "apex SyncBatchNorm"
NOTES = (
    f"The distinct BatchNorm inputs of ResNet-50 at 224 × 224, {BATCH} samples. A step is forward and "
    "backward in training mode, with running statistics and the gradients of input, weight and bias. "
    f"Medians of {{rounds}} rounds, in each of which every contestant does {STEPS_A_ROUND} steps between "
    "two CUDA events: the time of small inputs is that of launching their kernels. Of several ranks the "
    "slowest counts.",
    "{ranks} in an NCCL group, each on its own GPU. On one rank "
    f"{OURS} takes its code path for several ranks, and {TORCH_SYNC} is the autograd "
    "function of that layer, called for the same group: its own kernels, all-gather and all-reduce; the "
    "layer itself would fall back to BatchNorm2d.",
    f"{LIMIT}: {PASSES} passes over memory at the speed of copying the input.",
)


class TorchSyncBatchNorm(nn.SyncBatchNorm):
    """torch's layer on its code path for several ranks, which it does not take in a group of one."""

    def forward(self, input: Tensor) -> Tensor:
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        group, world_size = dist.group.WORLD, dist.get_world_size()
        y: Tensor = TorchSyncBatchNormFunction.apply(  # type: ignore[no-untyped-call]
            input,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            self.eps,
            self.momentum,
            group,
            world_size,
        )
        return y


def _apex(channels: int) -> nn.Module:
    layer: nn.Module = import_module("apex.parallel").SyncBatchNorm(channels)
    return layer


CONTESTANTS: dict[str, Kind] = {
    OURS: DistributedSyncBatchNorm,
    LOCAL: LocalSyncBatchNorm,
    TORCH_SYNC: TorchSyncBatchNorm,
    **({APEX: _apex} if find_spec("apex") else {}),
    TORCH: nn.BatchNorm2d,
}
CONTEST = Contest(
    title="Time on the GPU",
    ours=OURS,
    peers=(*(name for name in CONTESTANTS if name not in (OURS, LOCAL)), LIMIT),
    beside=(LOCAL,),
)


def measure(options: Options, _ranks_of: RanksOf) -> Result:
    if not torch.cuda.is_available():
        return Result(title=TITLE, columns=("GPU",), rows=[("no GPU at hand; nothing is claimed",)])
    with Ranks(torch.cuda.device_count(), TIMEOUT_SECONDS, backend="nccl") as ranks:
        parts = [_times(options, ranks), _checks(ranks)]
    return Result(title=TITLE, notes=[_device()], parts=parts)


def _device() -> str:
    nccl = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    names = ", ".join(map(torch.cuda.get_device_name, range(torch.cuda.device_count())))
    triton = _triton.version() or "not installed"
    return f"{names}, CUDA {torch.version.cuda}, cuDNN {cudnn}, NCCL {nccl}, Triton {triton}."


def _times(options: Options, ranks: Ranks) -> Result:
    rounds = ROUNDS_A_REPEAT * options.repeats
    shapes, batch = (TINY, TINY_BATCH) if options.quick else (RESNET50, BATCH)
    cases = list(every_format(shapes, batch, (torch.float32, torch.float16, torch.bfloat16)))
    work = partial(times_of, names=tuple(CONTESTANTS), device="cuda", rounds=rounds, clock=event_clock)
    timed = CONTEST.hold(cases, lambda case: slowest(ranks.run(work, case)))
    return CONTEST.table(timed, [note.format(rounds=rounds, ranks=ranks.world_size) for note in NOTES])


def times_of(
    rank: int, case: Case, names: Sequence[str], device: str, rounds: int, clock: Clock
) -> Milliseconds:
    """Runs in each rank."""
    x = case.tensor(seed=2 * rank, device=device).requires_grad_()
    dy = case.tensor(seed=2 * rank + 1, device=device)
    layers = {name: CONTESTANTS[name](case.channels).to(device) for name in names}
    steps = {name: training_step(layer, x, dy) for name, layer in layers.items()}
    return interleaved({**steps, LIMIT: copies(x)}, rounds, clock)


def event_clock(step: Step) -> float:
    """Returns the milliseconds of the GPU's stream for one step, including waits for launches."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    begin.record()
    for _ in range(STEPS_A_ROUND):
        step()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / STEPS_A_ROUND


def _checks(ranks: Ranks) -> Result:
    cases = list(every_format([(64, 28)], TINY_BATCH))
    names = [name for name in CONTESTANTS if name != LOCAL]
    with progress("GPU checks", len(cases) * len(names)) as shown:
        rows = []
        for case in cases:
            for name in names:
                rows.append((name, case.format, *ranks.run(_checked, name, case)[0]))
                shown.done(f"{name}, {case.format}: {rows[-1][-1]}")
    return Result(
        title="Properties on the GPU", columns=gpu_checks.COLUMNS, rows=rows, notes=gpu_checks.NOTES
    )


def _checked(_rank: int, name: str, case: Case) -> tuple[str, str, str]:
    return gpu_checks.run(CONTESTANTS[name](case.channels).cuda(), case)
