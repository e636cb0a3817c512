"""Process groups of ranks that share statistics: all ranks, those of a node, or k consecutive ones."""

import socket
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist


def process_group_of(
    size: Literal["world", "node"] | int, *, node: int | str | None = None
) -> dist.ProcessGroup | None:
    """Returns the process group of the ranks that share statistics with this one.

    Returns None, the default group, if that is all ranks.

    size: "world": all ranks; "node": those on the same host; a number k: k consecutive ranks, of which the
        first is a multiple of k.
    node: with "node", an id that is equal on the ranks of one node and differs between nodes, for clusters
        whose nodes share a host, for example. None: the host.

    Collective for "node" and numbers: every rank must call it after init_process_group, with the same size;
    it blocks until all have. With NCCL, set the device first. For "world" it does not communicate. Not
    idempotent: each call creates new groups, so call it once.

    Raises ValueError, on every rank alike, if k does not divide the world size, or if `size` is invalid.
    """
    if size == "world":
        return None
    members = _by_node(node) if size == "node" else _by_number(size)
    if len(members) == 1:
        return None
    group: dist.ProcessGroup
    # Every rank must take part in the creation of every group, even those without it.
    group, _ = dist.new_subgroups_by_enumeration(members)  # type: ignore[no-untyped-call]
    return group


def _by_node(node: int | str | None) -> list[list[int]]:
    nodes: list[Any] = [None] * dist.get_world_size()
    # A rank does not know which others are on its host. Every rank reaches this collective.
    dist.all_gather_object(nodes, host() if node is None else node)
    members: dict[Any, list[int]] = {}
    for rank, its_node in enumerate(nodes):
        members.setdefault(its_node, []).append(rank)
    return list(members.values())


def _by_number(size: Any) -> list[list[int]]:
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(f"size is {size!r}; expected 'world', 'node' or a number of ranks ≥ 1")
    world_size = dist.get_world_size()
    if world_size % size:
        possible = ", ".join(str(k) for k in range(1, world_size + 1) if world_size % k == 0)
        raise ValueError(
            f"{world_size} ranks cannot be cut into groups of {size}; take a number that divides "
            f"{world_size} ({possible}), 'node' or 'world'"
        )
    return [list(range(first, first + size)) for first in range(0, world_size, size)]


def host() -> tuple[str, str]:
    """Returns the host name and, since several hosts may have the same one, Linux's boot id."""
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    return socket.gethostname(), boot_id.read_text() if boot_id.exists() else ""
