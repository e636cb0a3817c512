"""The process group of a rank."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from training.protocol import RankAssignment
from training.rank.strategy import GroupEnvironment

JOIN_SECONDS = 300.0
COLLECTIVE_SECONDS = 1800.0  # long enough that the watchdog diagnoses waiting ranks first


@dataclass(frozen=True, kw_only=True)
class RankContext:
    """The position of a rank in a process group that is initialised already.

    environment: makes the Lightning ClusterEnvironment.
    """

    rank: int
    world_size: int
    local_rank: int
    node_rank: int
    environment: Callable[[], Any]


def join(
    assignment: RankAssignment, world_size: int, rendezvous: str, listener: socket.socket | None
) -> RankContext:
    """Initialises the default process group, with NCCL if the ranks have GPUs, otherwise with gloo.

    Every rank must call it; blocks until all have joined, for at most JOIN_SECONDS.
    rendezvous: "ADDRESS:PORT" at which rank 0 listens. listener: its listening socket on rank 0, else None.
    """
    address, _, port = rendezvous.rpartition(":")
    store = dist.TCPStore(  # type: ignore[attr-defined]
        address,
        int(port),
        world_size,
        is_master=assignment.rank == 0,
        timeout=timedelta(seconds=JOIN_SECONDS),
        wait_for_workers=False,
        master_listen_fd=listener.detach() if listener is not None else None,
    )
    if assignment.gpus:
        torch.cuda.set_device(0)  # the first of those that this rank sees
    dist.init_process_group(
        "nccl" if assignment.gpus else "gloo",
        store=store,
        rank=assignment.rank,
        world_size=world_size,
        timeout=timedelta(seconds=COLLECTIVE_SECONDS),
    )

    def environment() -> GroupEnvironment:
        return GroupEnvironment(assignment)

    return RankContext(
        rank=assignment.rank,
        world_size=world_size,
        local_rank=assignment.local_rank,
        node_rank=assignment.node_rank,
        environment=environment,
    )


def own_address(rendezvous: str) -> str:
    """Returns the local address from which this machine reaches rank 0's. Sends nothing."""
    address, _, port = rendezvous.rpartition(":")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((address, int(port)))
        own: str = probe.getsockname()[0]
        return own


def apply_thread_count() -> None:
    """Applies OMP_NUM_THREADS to torch: the fork server had another value when it imported torch.

    OpenMP allows a list with a number for each level of nested loops; torch gets the first.
    """
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"].partition(",")[0]))
