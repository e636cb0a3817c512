"""What `training.reproducible: bits` needs of the other parts of a specification."""

from __future__ import annotations

from training.spec.errors import located
from training.spec.norm import Norm
from training.spec.resources import Resources
from training.spec.trainer import TrainerOptions
from training.spec.training import Training

_FEWEST = 4
_PER_SAMPLE = (
    "sync_batch_norm",
    "group_norm",
    "layer_norm",
    "instance_norm",
    "filter_response_norm",
    "evonorm_s0",
    "none",
)
_CURVE = "or set training.reproducible to curve"


def shards_of(training: Training, resources: Resources) -> int:
    """Returns into how many shards a micro-batch is cut.

    By default the same for any number of workers up to 4, so that jobs on 1, 2, 3 and 4 workers agree.
    """
    if training.shards is not None:
        return training.shards
    return max(_FEWEST, 1 << (resources.max_workers - 1).bit_length())


def check_bits(training: Training, norm: Norm, resources: Resources, trainer: TrainerOptions) -> None:
    """Raises an error located at the key for what cannot be trained to the last bit."""
    if training.reproducible == "curve":
        if training.shards is not None:
            raise located(
                "training.shards", "is for training.reproducible: bits; set that, or leave shards out"
            )
        return
    shards = shards_of(training, resources)
    if resources.max_workers > shards:
        raise located(
            "training.shards",
            f"{shards} shards cannot be shared by {resources.max_workers} workers; give at least "
            f"{resources.max_workers}, or lower resources.workers",
        )
    if training.sampler == "own":
        raise located(
            "training.sampler", f"own gives each worker batches of its own; choose global, {_CURVE}"
        )
    if norm.kind not in _PER_SAMPLE:
        raise located(
            "norm.kind",
            f"{norm.kind} is not covered by training.reproducible: bits; choose one of "
            f"{', '.join(_PER_SAMPLE)}, {_CURVE}",
        )
    if norm.kind == "sync_batch_norm" and norm.group != "world":
        raise located("norm.group", f"must be world for training.reproducible: bits, {_CURVE}")
    if norm.observe_every is not None:
        raise located("norm.observe_every", f"observes workers, not shards; leave it out, {_CURVE}")
    if trainer.benchmark:
        raise located(
            "trainer.benchmark",
            f"lets each worker choose the kernels that are fast there; leave it out, {_CURVE}",
        )
