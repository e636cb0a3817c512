"""The layer on a GPU: time, host waits, capture in a CUDA graph. Reports nothing without a GPU."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm as TorchSyncBatchNormFunction

from benchmarks.progress import progress
from benchmarks.result import Options, Result
from benchmarks.sync_bn import gpu_checks
from benchmarks.sync_bn.cases import RESNET50, TINY, Case, every_format
from benchmarks.sync_bn.contest import Contest, Milliseconds
from benchmarks.sync_bn.ours import DistributedSyncBatchNorm
from benchmarks.sync_bn.pools import RanksOf
from benchmarks.sync_bn.timing import PASSES, Step, copies, interleaved, training_step

TITLE = "On a GPU"
BATCH, TINY_BATCH = 32, 4
ROUNDS_A_REPEAT = 7
STEPS_A_ROUND = 10
OURS, TORCH_SYNC, TORCH, LIMIT = "SyncBatchNorm", "torch.nn.SyncBatchNorm", "BatchNorm2d", "limit"
CONTEST = Contest(title="Time on the GPU", ours=OURS, peers=(TORCH_SYNC, TORCH, LIMIT))
NOTES = (
    f"The distinct BatchNorm inputs of ResNet-50 at 224 × 224, {BATCH} samples. A step is forward and "
    "backward in training mode, with running statistics and the gradients of input, weight and bias. "
    f"Medians of {{rounds}} rounds, in each of which every contestant does {STEPS_A_ROUND} steps between "
    "two CUDA events: the time of small inputs is that of launching their kernels.",
    f"{OURS} takes its code path for several ranks in an NCCL group of one. {TORCH_SYNC} is the autograd "
    "function of that layer, called for the same group: its own kernels, all-gather and all-reduce; the "
    "layer itself would fall back to BatchNorm2d on one rank.",
    f"{LIMIT}: {PASSES} passes over memory at the speed of copying the input.",
)


class TorchSyncBatchNorm(nn.SyncBatchNorm):
    """torch's layer on its code path for several ranks, which it does not take in a group of one."""

    def forward(self, input: Tensor) -> Tensor:
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        group, world_size = dist.group.WORLD, 1
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


CONTESTANTS: dict[str, type[nn.Module]] = {
    OURS: DistributedSyncBatchNorm,
    TORCH_SYNC: TorchSyncBatchNorm,
    TORCH: nn.BatchNorm2d,
}


def measure(options: Options, _ranks_of: RanksOf) -> Result:
    if not torch.cuda.is_available():
        return Result(title=TITLE, columns=("GPU",), rows=[("no GPU at hand; nothing is claimed",)])
    with _nccl_group_of_one():
        parts = [_times(options), _checks()]
    return Result(title=TITLE, notes=[_device()], parts=parts)


def _device() -> str:
    nccl = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, cuDNN {cudnn}, NCCL {nccl}."


@contextmanager
def _nccl_group_of_one() -> Iterator[None]:
    device = torch.device("cuda", torch.cuda.current_device())
    with tempfile.TemporaryDirectory(prefix="sync-bn-") as folder:
        store = (Path(folder) / "store").as_uri()
        dist.init_process_group(
            "nccl",
            init_method=store,
            rank=0,
            world_size=1,
            timeout=timedelta(minutes=2),
            device_id=device,
        )
        try:
            yield
        finally:
            dist.destroy_process_group()


def _times(options: Options) -> Result:
    rounds = ROUNDS_A_REPEAT * options.repeats
    shapes, batch = (TINY, TINY_BATCH) if options.quick else (RESNET50, BATCH)
    timed = CONTEST.hold(list(every_format(shapes, batch)), lambda case: _times_of(case, rounds))
    return CONTEST.table(timed, [note.format(rounds=rounds) for note in NOTES])


def _times_of(case: Case, rounds: int) -> Milliseconds:
    x, dy = case.tensor(seed=0, device="cuda").requires_grad_(), case.tensor(seed=1, device="cuda")
    steps = {name: training_step(kind(case.channels).cuda(), x, dy) for name, kind in CONTESTANTS.items()}
    return interleaved({**steps, LIMIT: copies(x)}, rounds, event_clock)


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


def _checks() -> Result:
    cases = list(every_format([(64, 28)], TINY_BATCH))
    with progress("GPU checks", len(cases) * len(CONTESTANTS)) as shown:
        rows = []
        for case in cases:
            for name, kind in CONTESTANTS.items():
                rows.append((name, case.format, *gpu_checks.run(kind(case.channels).cuda(), case)))
                shown.done(f"{name}, {case.format}: {rows[-1][-1]}")
    return Result(
        title="Properties on the GPU", columns=gpu_checks.COLUMNS, rows=rows, notes=gpu_checks.NOTES
    )
