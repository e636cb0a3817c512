"""Worlds of 1 to 4 ranks that share one set of processes, because starting processes is slow."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import torch.distributed as dist

from testing.ranks import Ranks

Result = TypeVar("Result")
Parameters = ParamSpec("Parameters")

LARGEST = 4
TIMEOUT_SECONDS = 120.0
PRELOAD = (
    "training.rank.rank",
    "training.rank.trainer",
    "training.callbacks.norm_report",
    "training.tracking.mlflow_tracker",
)


class Worlds:
    """A context manager; the processes start with the first `run` and end with the context."""

    def __init__(self) -> None:
        self._ranks = Ranks(LARGEST, TIMEOUT_SECONDS, PRELOAD)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ranks.close()

    def run(
        self,
        world_size: int,
        function: Callable[Concatenate[int, Parameters], Result],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> list[Result]:
        """Runs function(rank, *args) on `world_size` ranks in one process group; returns their results."""
        # A nested pickle, so that the function's modules are imported only in the ranks.
        call = pickle.dumps((function, args, kwargs))
        with tempfile.TemporaryDirectory(prefix="world-") as folder:
            store = (Path(folder) / "store").as_uri()
            return self._ranks.run(_in_world, world_size, store, call)[:world_size]


def _in_world(rank: int, world_size: int, store: str, call: bytes) -> Any:
    if dist.is_initialized():
        dist.destroy_process_group()
    if rank >= world_size:
        return None  # not in this world
    dist.init_process_group(
        "gloo",
        init_method=store,
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=TIMEOUT_SECONDS),
    )
    function, args, kwargs = pickle.loads(call)
    return function(rank, *args, **kwargs)
