"""The parts of the benchmark, each with one or more tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from benchmarks.result import Options, Result
from benchmarks.sync_bn import communication, fused, gpu, local, memory, ranks, sums
from benchmarks.sync_bn.pools import RanksOf, pools
from sync_bn._native import is_built


class Part(NamedTuple):
    what: str
    measure: Callable[[Options, RanksOf], Result]


PARTS = {
    "local": Part("one rank's own work, against torch's unsynchronized layer", local.measure),
    "ranks": Part("two ranks, against other schemes of synchronization", ranks.measure),
    "sums": Part("a sum over ranks between convolutions: in shared memory, and by gloo", sums.measure),
    "fused": Part("the activation in the layer, against one behind it", fused.measure),
    "memory": Part("the bytes that both take", memory.measure),
    "communication": Part("calls and bytes, up to 1,024 ranks", communication.measure),
    "gpu": Part("the same on a GPU, if there is one", gpu.measure),
}


def measure(options: Options, names: Sequence[str] = tuple(PARTS)) -> Result:
    with pools() as ranks_of:
        parts = [PARTS[name].measure(options, ranks_of) for name in names]
    return Result(title="Synchronized batch normalisation", notes=[_kernels()], parts=parts)


def _kernels() -> str:
    return f"sync_bn's compiled CPU kernels are {'in use' if is_built() else 'not built'}."
