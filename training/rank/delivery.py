"""The model that a run delivers: as it is after the last step, or that of the best checkpoint. Collective."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule

from training.checkpoints.listing import LIGHTNING, NoSuchCheckpoint, chosen
from training.errors import BuildError
from training.rank.context import RankContext
from training.rank.starting_point import all_gather, fetched_to_node
from training.spec import Spec

if TYPE_CHECKING:
    from training.callbacks.checkpointing import Store


def deliver(module: LightningModule, spec: Spec, store: Store, context: RankContext, step: int) -> str:
    """Gives a trained module the weights that the run delivers, and returns in words which these are.

    Collective: every rank must call it. step: the last one. Raises BuildError if the best checkpoint is
    wanted and there is none.
    """
    settings = spec.training.checkpoint
    if settings.deliver == "last":
        return f"last: step {step}"
    found: Any = None
    if context.rank == 0:
        with suppress(NoSuchCheckpoint):
            found = store.read(chosen(store.listed(), "best").name)
    found = all_gather(found, context)[0]
    if found is None:
        raise BuildError(
            "training.checkpoint.deliver",
            f"is best, and no checkpoint is the best one, because {settings.monitor!r} was not logged, or "
            "was never finite; the checkpoints are kept. Name a metric that is logged in "
            "training.checkpoint.monitor, or set deliver to last",
        )
    file = fetched_to_node(store, found, context).path / LIGHTNING
    content = torch.load(file, map_location="cpu", weights_only=False)
    module.on_load_checkpoint(content)
    module.load_state_dict(content["state_dict"], strict=module.strict_loading)
    all_gather(None, context)  # every rank has read it
    store.release()
    return f"best: step {found.step}, {settings.monitor} {found.metric:.6g}"
