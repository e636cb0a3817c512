"""Calls and bytes of a layer by number of ranks: computed, and counted for numbers that can run here."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.progress import progress
from benchmarks.result import Options, Result
from benchmarks.sync_bn.cases import Case
from benchmarks.sync_bn.figure import draw
from benchmarks.sync_bn.pools import RanksOf
from sync_bn import SyncBatchNorm
from sync_bn._sums import FOLDER_VARIABLE

CHANNELS = 256
WORLD_SIZES = tuple(2**power for power in range(1, 11))
COUNTED_WORLD_SIZES, QUICK_WORLD_SIZES = (2, 3, 4), (2,)
FLOAT32, FLOAT64 = 4, 8
STEPS_BEFORE = 3  # uncounted, because a layer may exchange something only once
NOTES = (
    f"A layer of {CHANNELS} channels; bytes are nearly proportional to the channels. Bytes that each rank "
    "sends in ring algorithms: an all-reduce of p bytes among W ranks sends 2·(W - 1)/W·p, an all-gather of "
    "p bytes from each (W - 1)·p.",
    "SyncBatchNorm: one all-reduce forward (2C + 1 float64), one backward (2C float64). "
    "torch.nn.SyncBatchNorm, from its source: one all-gather forward (2C + 1 float32 from each rank, into "
    "a buffer of W times that), one all-reduce backward (2C float32); it sends float32 also for inputs "
    "of half precision.",
)
COUNTED_NOTES = (
    "Counted in every rank at each call into a process group, with gloo, in one forward and one backward "
    "of the layer on a CPU: the bytes of the tensors that are handed to it. Computed: 8·(2C + 1) forward, "
    "8·2C backward. Ranks of one host, which would add as many in shared memory, are told not to.",
)


class Traffic(NamedTuple):
    """Bytes that one rank sends."""

    forward: float
    backward: float


class Calls(NamedTuple):
    """The calls of one rank into process groups, by the operation's name."""

    names: Sequence[str]
    payload: int


def our_payload(channels: int) -> Traffic:
    return Traffic(FLOAT64 * (2 * channels + 1), FLOAT64 * 2 * channels)


def ours_sent(channels: int, world_size: int) -> Traffic:
    forward, backward = our_payload(channels)
    return Traffic(_all_reduce(forward, world_size), _all_reduce(backward, world_size))


def torch_sent(channels: int, world_size: int) -> Traffic:
    gathered = (world_size - 1) * FLOAT32 * (2 * channels + 1)
    return Traffic(gathered, _all_reduce(FLOAT32 * 2 * channels, world_size))


def _all_reduce(payload: float, world_size: int) -> float:
    return 2 * (world_size - 1) / world_size * payload


def measure(options: Options, ranks_of: RanksOf) -> Result:
    ours = {world_size: ours_sent(CHANNELS, world_size) for world_size in WORLD_SIZES}
    theirs = {world_size: torch_sent(CHANNELS, world_size) for world_size in WORLD_SIZES}
    parts = [_computed(ours, theirs), _counted(options, ranks_of)]
    if options.quick:
        drawn = "No figure with --quick."
    else:
        drawn = draw({"SyncBatchNorm": _sums(ours), "torch.nn.SyncBatchNorm": _sums(theirs)}, CHANNELS)
    return Result(title="Communication", notes=[drawn], parts=parts)


def _sums(traffic: Mapping[int, Traffic]) -> dict[int, float]:
    return {world_size: sum(bytes_) for world_size, bytes_ in traffic.items()}


def _computed(ours: Mapping[int, Traffic], theirs: Mapping[int, Traffic]) -> Result:
    columns = (
        "ranks",
        "SyncBatchNorm, forward",
        "backward",
        "torch.nn.SyncBatchNorm, forward",
        "backward",
        "ours / torch's, both ways",
    )
    rows = [
        (
            f"{world_size:,}",
            *(f"{bytes_:,.0f}" for bytes_ in (*ours[world_size], *theirs[world_size])),
            f"{sum(ours[world_size]) / sum(theirs[world_size]):.3f}",
        )
        for world_size in ours
    ]
    return Result(title="Bytes that a rank sends, computed", columns=columns, rows=rows, notes=NOTES)


def _counted(options: Options, ranks_of: RanksOf) -> Result:
    rows: list[Sequence[str]] = []
    world_sizes = QUICK_WORLD_SIZES if options.quick else COUNTED_WORLD_SIZES
    with progress("communication", len(world_sizes)) as shown:
        for world_size in world_sizes:
            shown.doing(f"{world_size} ranks")
            of_ranks = ranks_of(world_size).run(count, CHANNELS)
            rows += _counted_rows(world_size, of_ranks)
            shown.done(f"{world_size} ranks")
    columns = ("ranks", "direction", "calls of each rank", "bytes counted", "bytes computed", "equal")
    return Result(title="Calls and bytes, counted", columns=columns, rows=rows, notes=COUNTED_NOTES)


def _counted_rows(world_size: int, of_ranks: Sequence[tuple[Calls, Calls]]) -> Iterator[Sequence[str]]:
    directions = zip(("forward", "backward"), zip(*of_ranks, strict=True), our_payload(CHANNELS), strict=True)
    for direction, calls, computed in directions:
        payloads = sorted({call.payload for call in calls})
        names = sorted({" + ".join(call.names) or "none" for call in calls})
        equal = "yes" if payloads == [computed] else "no"
        counted = " or ".join(f"{payload:,}" for payload in payloads)
        yield str(world_size), direction, " or ".join(names), counted, f"{computed:,}", equal


def count(rank: int, channels: int) -> tuple[Calls, Calls]:
    """Returns the calls of one forward and of one backward."""
    case = Case(batch=rank + 1, channels=channels, side=2)  # each rank has a different number of samples
    x, dy = case.tensor(seed=rank).requires_grad_(), case.tensor(seed=rank)
    layer = SyncBatchNorm(channels, process_group=dist.new_group())
    with patch.dict(os.environ, {FOLDER_VARIABLE: "0"}):  # what is counted goes through the group
        for _ in range(STEPS_BEFORE):
            torch.autograd.grad(layer(x), x, dy)
    with CountCalls() as forward:
        y = layer(x)
    with CountCalls() as backward:
        torch.autograd.grad(y, (x, *layer.parameters()), dy)
    return forward.calls(), backward.calls()


class CountCalls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation of this thread, and so every collective, whatever interface was used."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names: list[str] = []
        self._payload = 0

    def calls(self) -> Calls:
        return Calls(self._names, self._payload)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        collective = func.namespace in {"c10d", "_c10d_functional"} and "wait" not in str(func)
        if collective and "wrap" not in str(func):
            self._names.append(str(func).split(".")[1].strip("_"))
            self._payload += sum(tensor.nbytes for tensor in _tensors(args))
        return func(*args, **(kwargs or {}))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
