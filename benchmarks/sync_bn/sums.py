"""A layer's sum over ranks where it happens, between convolutions: in shared memory, and by gloo."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.result import Options, Result, comparison
from benchmarks.sync_bn.pools import RanksOf
from sync_bn import _sums

WORLD_SIZES = (2, 4)
CHANNELS = (64, 2048)
SUMS_A_TURN = 20
TURNS_A_REPEAT = 10
GLOO, MEMORY = "gloo", "shared memory"
NOTES = (
    "Processes of one thread each. Before each sum, of the 2C + 1 float64 numbers of a layer's forward, is a "
    "convolution, (16, 16, 28, 28) with 16 filters of 3 x 3.",
    f"Milliseconds of the sums on all ranks, with the wait for the rank that comes last; {{turns}} turns of "
    f"{SUMS_A_TURN} sums, in random order.",
)


def measure(options: Options, ranks_of: RanksOf) -> Result:
    turns = 1 if options.quick else TURNS_A_REPEAT * options.repeats
    samples: dict[str, dict[str, list[float]]] = {}
    for world_size in WORLD_SIZES:
        for channels in CHANNELS:
            found = ranks_of(world_size).run(milliseconds, channels, turns)
            samples[f"ms, {world_size} ranks, {channels} channels"] = {
                name: [one for rank in found for one in rank[name]] for name in (GLOO, MEMORY)
            }
    notes = [note.format(turns=turns) for note in NOTES]
    return comparison("A sum over ranks", samples, reference=GLOO, notes=notes)


def milliseconds(rank: int, channels: int, turns: int) -> dict[str, list[float]]:  # noqa: ARG001
    """Returns the times of this rank by kind."""
    _sums.prepare(None, torch.device("cpu"))
    numbers = torch.zeros(2 * channels + 1, dtype=torch.float64)
    in_memory = partial(_sums.add, group=None, what="a sum")
    sums: dict[str, Callable[[Tensor], object]] = {GLOO: dist.all_reduce, MEMORY: in_memory}
    convolution, x = nn.Conv2d(16, 16, 3, padding=1), torch.randn(16, 16, 28, 28)
    times: dict[str, list[float]] = {name: [] for name in sums}
    orders = random.Random(0)  # the same on all ranks
    for _ in range(1 + turns):
        for name in orders.sample(list(sums), len(sums)):
            for _ in range(SUMS_A_TURN):
                with torch.no_grad():
                    convolution(x)
                begun = time.perf_counter()
                done = sums[name](numbers)
                times[name].append(1e3 * (time.perf_counter() - begun))
                if done is False:
                    raise RuntimeError("the ranks share no memory: build sync_bn's library, on Linux")
    return {name: values[SUMS_A_TURN:] for name, values in times.items()}
