"""Where a run starts: at its own last checkpoint, or at its first step. Collective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from training.checkpoints.manifest import Saved
from training.rank.context import RankContext

if TYPE_CHECKING:
    from training.callbacks.checkpointing import Store

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class StartingPoint:
    """A checkpoint to go on from, readable on this node; None: the run starts at its first step.

    best: the best metric of the run's checkpoints, on rank 0; None if there is none.
    """

    saved: Saved | None = None
    best: float | None = None


def starting_point(store: Store, context: RankContext, say: Callable[[str], None]) -> StartingPoint:
    """Returns where the run starts. Collective: every rank must call it.

    Only rank 0 searches for a checkpoint, because the search moves broken ones aside.
    """
    found: Any = None
    if context.rank == 0 and (latest := store.latest_valid()):
        found = latest, next((each.metric for each in store.listed() if each.best), None)
    found = all_gather(found, context)[0]  # all ranks must resume from the same checkpoint
    if found is None:
        return StartingPoint()
    saved, best = found
    say(f"going on from the checkpoint of step {saved.step}")
    return StartingPoint(saved=fetched_to_node(store, saved, context), best=best)


def fetched_to_node(store: Store, saved: Saved, context: RankContext) -> Saved:
    """Returns the checkpoint at a path on this node; the node's first rank fetches it. Collective."""
    first = all_gather(context.node_rank, context).index(context.node_rank)
    if context.rank == first != 0:
        saved = store.fetch_to_node(saved)
    return all_gather(saved, context)[first]


def all_gather(own: T, context: RankContext) -> list[T]:
    """Returns the values of all ranks, in rank order. Collective: every rank must call it."""
    import torch.distributed as dist

    values: list[Any] = [None] * context.world_size
    dist.all_gather_object(values, own)
    return values
