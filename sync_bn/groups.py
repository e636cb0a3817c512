"""Which ranks share their statistics: all, those of one node, or a given number of them."""

import socket
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist


def process_group_of(
    size: Literal["world", "node"] | int, *, node: int | str | None = None
) -> dist.ProcessGroup | None:
    """The group of the ranks that share statistics with this one; None if they are all, the default group.

    size: "world", all ranks; "node", those on the same host; a number k, k ranks that follow each other, of
        which the first is a multiple of k.
    node: what tells the ranks of one node from those of another, where that is not the host: a node's rank or
        name in a cluster whose nodes share a host, for example.

    Collective for "node" and numbers: every rank calls it after init_process_group, with the same size, and
    blocks until all have; for "world" it exchanges nothing. With NCCL each rank has set its device before.
    Each call makes new groups, so call it once.

    Raises ValueError, on every rank alike, for a k that does not divide the number of ranks, and for anything
    that is no size.
    """
    if size == "world":
        return None
    members = _by_node(node) if size == "node" else _by_number(size)
    if len(members) == 1:
        return None
    group: dist.ProcessGroup
    # Every rank takes part in making every group, also those that it is not in.
    group, _ = dist.new_subgroups_by_enumeration(members)  # type: ignore[no-untyped-call]
    return group


def _by_node(node: int | str | None) -> list[list[int]]:
    nodes: list[Any] = [None] * dist.get_world_size()
    # Nobody knows alone who else is on its host. Every rank gets here.
    dist.all_gather_object(nodes, _host() if node is None else node)
    members: dict[Any, list[int]] = {}
    for rank, its_node in enumerate(nodes):
        members.setdefault(its_node, []).append(rank)
    return list(members.values())


def _by_number(size: Any) -> list[list[int]]:
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(f"size is {size!r}; expected 'world', 'node' or a number of ranks from 1")
    world_size = dist.get_world_size()
    if world_size % size:
        possible = ", ".join(str(k) for k in range(1, world_size + 1) if world_size % k == 0)
        raise ValueError(
            f"{world_size} ranks cannot be cut into groups of {size}; take a number that divides "
            f"{world_size} ({possible}), 'node' or 'world'"
        )
    return [list(range(first, first + size)) for first in range(0, world_size, size)]


def _host() -> tuple[str, str]:
    """The host's name and, because several may have the same one, Linux's number for its running system."""
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    return socket.gethostname(), boot_id.read_text() if boot_id.exists() else ""
