"""What code sees that asks for its rank, as if it ran on another worker."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_only

from training.group_internals import seen_as_rank
from training.rank.strategy import GroupEnvironment

VARIABLES = (
    "RANK",
    "LOCAL_RANK",
    "NODE_RANK",
    "GROUP_RANK",
    "ROLE_RANK",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "ROLE_WORLD_SIZE",
    "SLURM_NTASKS",
)
"""Of the environment: numbers that launchers give to a worker."""


@contextmanager
def on_another_worker(environment: object) -> Iterator[None]:
    """In this context the rank, the number of ranks and the position on the hosts are greater by one.

    So torch.distributed, Lightning and the variables that are set tell. The ranks must not communicate in it.
    environment: Lightning's; one of a launcher's own, such as torchrun's, reads the variables.
    """
    told: AbstractContextManager[None] = nullcontext()
    if isinstance(environment, GroupEnvironment):
        told = environment.elsewhere()
    variables = {name: os.environ[name] for name in VARIABLES if os.environ.get(name, "").isdigit()}
    rank_zero: int = getattr(rank_zero_only, "rank", 0)
    with seen_as_rank(dist.get_rank() + 1, dist.get_world_size() + 1), told:
        os.environ.update({name: str(int(value) + 1) for name, value in variables.items()})
        rank_zero_only.rank = rank_zero + 1  # type: ignore[attr-defined]
        try:
            yield
        finally:
            rank_zero_only.rank = rank_zero  # type: ignore[attr-defined]
            os.environ.update(variables)
