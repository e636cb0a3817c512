"""Where a run starts: at its own last checkpoint, at one of another run, or at its first step. Collective."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from training.callbacks import train_state
from training.callbacks.train_state import TrainState
from training.checkpoints.folder import Checkpoints
from training.checkpoints.listing import LIGHTNING, NoSuchCheckpoint, chosen
from training.checkpoints.manifest import InvalidCheckpoint, Saved
from training.errors import BuildError
from training.model.initial_weights import KEY, read_weights
from training.rank.context import RankContext
from training.spec import Spec

if TYPE_CHECKING:
    from training.callbacks.checkpointing import Store

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class StartingPoint:
    """Where a run starts. All files are readable on this node.

    step: optimizer steps made so far. file: the checkpoint of Lightning to go on from; None: the run starts
    at its first step. state: what belongs to it. weights: for the first step; None: the model's own. best:
    the best metric of the run's own checkpoints, on rank 0; None if there is none. release: to be called when
    all ranks have read the files.
    """

    step: int = 0
    file: Path | None = None
    state: TrainState | None = None
    weights: Mapping[str, Tensor] | None = None
    best: float | None = None
    release: Callable[[], None] = lambda: None


def starting_point(
    spec: Spec, store: Store, source: str | None, context: RankContext, say: Callable[[str], None]
) -> StartingPoint:
    """Returns where the run starts. Collective: every rank must call it.

    store: the run's own. source: the folder or URL of the checkpoints, or the file, that the spec's
    `start_from` names. Only rank 0 searches for a checkpoint, because the search moves broken ones aside.
    Raises BuildError if `start_from` names nothing that the run can start from.
    """
    found: Any = None
    if context.rank == 0 and (latest := store.latest_valid()):
        found = latest, next((each.metric for each in store.listed() if each.best), None)
    found = all_gather(found, context)[0]  # all ranks must resume from the same checkpoint
    if found is not None:
        saved, best = found
        say(f"going on from the checkpoint of step {saved.step}")
        folder = fetched_to_node(store, saved, context).path
        return StartingPoint(
            step=saved.step,
            file=folder / LIGHTNING,
            # Not compared: this run may have constructed other optimizers on another number of workers.
            state=replace(train_state.load(folder), made_with={}),
            best=best,
            release=store.release,
        )
    if spec.start_from is None:
        return StartingPoint()
    if source is None:
        raise BuildError(KEY, "names a job of a service, and none runs this; name a path")
    return _of_another_run(spec, source, context, say)


def _of_another_run(
    spec: Spec, source: str, context: RankContext, say: Callable[[str], None]
) -> StartingPoint:
    assert spec.start_from is not None
    file, release = _file(spec, source, context)
    if spec.start_from.state == "weights":
        say(f"starting with the weights of {file}")
        weights = read_weights(file)
        all_gather(None, context)  # every rank has read it
        release()
        return StartingPoint(weights=weights)
    step, state = _whole_state(spec, file)
    say(f"going on from step {step} of {file}")
    return StartingPoint(step=step, file=file, state=state, release=release)


def _file(spec: Spec, source: str, context: RankContext) -> tuple[Path, Callable[[], None]]:
    """Returns the checkpoint of Lightning, or file of weights, on this node. Collective."""
    if (path := Path(source)).is_file():
        return path, lambda: None
    assert spec.start_from is not None
    store = _store(source, spec)
    found: Any = None
    if context.rank == 0:
        try:
            found = store.read(chosen(store.listed(), spec.start_from.checkpoint).name)
        except (NoSuchCheckpoint, InvalidCheckpoint) as error:
            found = f"the checkpoint {spec.start_from.checkpoint} of {source} cannot be used: {error}"
    found = all_gather(found, context)[0]
    if not isinstance(found, Saved):
        raise BuildError(f"{KEY}.checkpoint", found)
    return fetched_to_node(store, found, context).path / LIGHTNING, store.release


def _store(source: str, spec: Spec) -> Store:
    if "://" not in source:
        return Checkpoints(Path(source), mode=spec.training.checkpoint.mode)
    from training.checkpoints.object_store import ObjectStore

    return ObjectStore(source, mode=spec.training.checkpoint.mode)


def _whole_state(spec: Spec, file: Path) -> tuple[int, TrainState]:
    """Returns step and state of a checkpoint that the run goes on from. Raises BuildError if it cannot."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=False, mmap=True)
        loops = content["loops"]["fit_loop"]
        epochs, batches = loops["epoch_progress"]["current"], loops["epoch_loop.batch_progress"]
    except Exception as error:  # of pickle or zipfile: whatever the file is
        raise BuildError(
            KEY,
            f"{file} is not a checkpoint of a training by Lightning ({type(error).__name__}: {error}), which "
            "state: all needs; start with its weights (state: weights)",
        ) from None
    _raise_if_done(spec, int(content["global_step"]), epochs["processed"])
    within_epoch = batches["current"]["completed"] > 0 and not batches["is_last_batch"]
    if train_state.is_beside(file):
        state = train_state.load(file.parent)
        if within_epoch:
            _raise_if_other_batches(spec, state)
        return state.step, replace(state, finished=False, own_output={})
    if within_epoch:
        raise BuildError(
            KEY,
            f"{file} was saved within an epoch, and what belongs to it is not there; start from one saved at "
            "the end of an epoch, or from the job that saved it (syncbn extend)",
        )
    # Only the random generators are not known: they are seeded from seed and step.
    step = int(content["global_step"])
    return step, TrainState(seed=spec.training.seed, step=step, generators=[], logged=[])


def _raise_if_done(spec: Spec, steps: int, epochs: int) -> None:
    settings = spec.training
    for key, done, limit in (
        ("max_epochs", epochs, settings.max_epochs),
        ("max_steps", steps, settings.max_steps),
    ):
        if limit not in {None, -1} and done >= limit:
            raise BuildError(
                f"training.{key}",
                f"is {limit}, and the checkpoint to go on from has {done} already; give more than {done}",
            )


def _raise_if_other_batches(spec: Spec, state: TrainState) -> None:
    """Raises BuildError if the samples left in the epoch would be others than those not yet trained on."""
    for name, value in train_state.batching(spec).items():
        if name in state.batching and state.batching[name] != value:
            raise BuildError(
                f"training.{name}",
                f"is {value}, and was {state.batching[name]} when the checkpoint was saved within an epoch, "
                "which has to go on with the same batches; keep it, or start from one between two epochs",
            )


def fetched_to_node(store: Store, saved: Saved, context: RankContext) -> Saved:
    """Returns the checkpoint at a path on this node; the node's first rank fetches it. Collective."""
    first = all_gather(context.node_rank, context).index(context.node_rank)
    if context.rank == first != 0:
        saved = store.fetch_to_node(saved)
    return all_gather(saved, context)[first]


def all_gather(own: T, context: RankContext) -> list[T]:
    """Returns the values of all ranks, in rank order. Collective: every rank must call it."""
    values: list[Any] = [None] * context.world_size
    dist.all_gather_object(values, own)
    return values
