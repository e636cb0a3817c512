"""Sums over shards in which no bit depends on which worker has which shard: they are added as a tree.

A sum of floating-point numbers depends on its order. Here neighbours are added in pairs, their sums in pairs
again, and at last the nodes that have no neighbour, from the right:

    0   1   2   3   4
     \\ /     \\ /    |
      +       +     |
       \\     /      |
          +         |
            \\      /
               +
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from sync_bn import _large_sums
from sync_bn._large_sums import LargeSums, Piece
from training.bits.exchange import Exchange, dealt

Node = tuple[int, int]
"""Its first shard, and how many it has: a power of 2 that divides the first."""
Nodes = dict[Node, Tensor]


def add(nodes: Nodes, node: Node, values: Tensor) -> None:
    """Adds a node, in any order, and with its neighbour the nodes above it. Takes the values' memory."""
    first, shards = node
    while (neighbour := (first ^ shards, shards)) in nodes:
        other = nodes.pop(neighbour)
        # The left one first: where both are NaN, the sum is the first.
        values = other.add_(values) if neighbour[0] < first else values.add_(other)
        first, shards = min(first, neighbour[0]), 2 * shards
    nodes[first, shards] = values


def root(nodes: Nodes) -> Tensor:
    """Returns the sum of all shards, given all their nodes. Takes the memory of the values."""
    total, *others = (values for _, values in sorted(nodes.items(), key=lambda each: each[0], reverse=True))
    for values in others:
        total = values.add_(total)
    return total


def whole_nodes(shards: range) -> list[Node]:
    """Returns the largest nodes that lie within consecutive shards.

    >>> whole_nodes(range(1, 7))
    [(1, 1), (2, 2), (4, 2), (6, 1)]
    """
    nodes, first = [], shards.start
    while first < shards.stop:
        size = first & -first or 1 << (shards.stop.bit_length() - 1)
        while first + size > shards.stop:
            size //= 2
        nodes.append((first, size))
        first += size
    return nodes


def root_of_ranks(own: Sequence[Sequence[Tensor]], exchange: Exchange) -> None:
    """Replaces the tensors of this rank's first node by the sums over all shards. Collective.

    own: the tensors of each of `whole_nodes` of this rank's shards, all (n,) and of one dtype. Each rank adds
    an equal part of the numbers of all ranks. So if every rank has one node, as many numbers are sent as in
    an all-reduce; ranks of one host exchange them in memory that they share.
    """
    if exchange.memory is None:
        _send(own, exchange)
        return
    for of_nodes in zip(*map(_large_sums.pieces, own), strict=True):
        _share(of_nodes, exchange, exchange.memory)


def _send(own: Sequence[Sequence[Tensor]], exchange: Exchange) -> None:
    world_size = exchange.world_size
    sizes = [len(values) for values in own[0]]
    rest = -sum(sizes) % world_size
    part = (sum(sizes) + rest) // world_size
    nodes: Nodes = {}
    for index, nodes_of in enumerate(_nodes_of_ranks(exchange)):
        given = [*own[index], own[0][0].new_zeros(rest)] if index < len(own) else [own[0][0].new_empty(0)]
        sent = torch.cat(given)
        received = sent.new_empty(part * len(nodes_of))
        parts = [part if rank in nodes_of else 0 for rank in range(world_size)]
        dist.all_to_all_single(received, sent, parts, [len(sent) // world_size] * world_size)
        for node, values in zip(nodes_of.values(), torch.split(received, part), strict=True):
            add(nodes, node, values)
    total = own[0][0].new_empty(part * world_size)
    dist.all_gather(list(torch.split(total, part)), root(nodes))
    for values, numbers in zip(own[0], torch.split(total, [*sizes, rest]), strict=False):
        values.copy_(numbers)


def _share(own: Sequence[Piece], exchange: Exchange, memory: LargeSums) -> None:
    nodes: Nodes = {}
    for index, nodes_of in enumerate(_nodes_of_ranks(exchange)):
        parts = memory.own_parts(own[index] if index < len(own) else None, own[0], "gradients")
        for rank, node in nodes_of.items():
            add(nodes, node, parts[rank].clone())
    memory.gather(root(nodes), own[0], "gradients")


def _nodes_of_ranks(exchange: Exchange) -> list[dict[int, Node]]:
    """Returns the first node of each rank, by the rank, then the second of those that have one, and so on."""
    ranks = range(exchange.world_size)
    of_rank = [whole_nodes(dealt(exchange.shards, rank, exchange.world_size)) for rank in ranks]
    return [
        {rank: of_rank[rank][index] for rank in ranks if index < len(of_rank[rank])}
        for index in range(max(map(len, of_rank)))
    ]
