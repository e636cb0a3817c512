"""A rank among its peers: the process group that it joins, and what tells Lightning of it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy

from training.protocol import RankAssignment

JOIN_SECONDS = 300.0
COLLECTIVE_SECONDS = 1800.0  # the watchdog looks into ranks that wait, long before


@dataclass(frozen=True, kw_only=True)
class RankContext:
    """In a process group that is there already. strategy: a Lightning DDPStrategy, of the keyword arguments
    of torch's DistributedDataParallel.
    """

    rank: int
    world_size: int
    local_rank: int
    node_rank: int
    environment: Callable[[], Any]
    strategy: Callable[..., Any]


def join(
    assignment: RankAssignment, world_size: int, rendezvous: str, listener: socket.socket | None
) -> RankContext:
    """Blocks until all ranks are in the default process group: NCCL's if they have GPUs, otherwise gloo's.

    rendezvous: "ADDRESS:PORT" of rank 0, which has the listening socket.
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
        torch.cuda.set_device(0)  # of those that this rank sees
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
        strategy=GroupStrategy,
    )


def own_address(rendezvous: str) -> str:
    """The address by which this machine reaches the one of rank 0. Nothing is sent."""
    address, _, port = rendezvous.rpartition(":")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((address, int(port)))
        own: str = probe.getsockname()[0]
        return own


class GroupEnvironment(LightningEnvironment):
    """Lightning finds the ranks of the group that there is."""

    def __init__(self, assignment: RankAssignment) -> None:
        super().__init__()
        self._assignment = assignment

    @property
    def creates_processes_externally(self) -> bool:
        return True

    def world_size(self) -> int:
        return dist.get_world_size()

    def set_world_size(self, size: int) -> None: ...

    def global_rank(self) -> int:
        return dist.get_rank()

    def set_global_rank(self, rank: int) -> None: ...

    def local_rank(self) -> int:
        return self._assignment.local_rank

    def node_rank(self) -> int:
        return self._assignment.node_rank

    def teardown(self) -> None: ...


class GroupStrategy(DDPStrategy):
    """DDP in that group. A rank sees its own GPUs alone, and takes the first of them."""

    @property
    def root_device(self) -> torch.device:
        assert self.parallel_devices is not None
        return self.parallel_devices[0]

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        return {"num_replicas": dist.get_world_size(), "rank": dist.get_rank()}


def use_threads() -> None:
    """As many as OMP_NUM_THREADS says: the process was forked from one that has read another number."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
