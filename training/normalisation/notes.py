"""Sentences for the job's log on what a kind of normalisation does with this batch on these workers."""

from __future__ import annotations

from training.spec import Spec, shares


def norm_notes(spec: Spec, world_size: int) -> list[str]:
    """Returns what depends on the number of workers, or on the step."""
    norm = spec.norm
    if norm.kind == "batch_renorm":
        return [
            f"norm.kind batch_renorm: r = 1 and d = 0 in the first {norm.plain_steps} steps; r within "
            f"[1/{norm.r_max:g}, {norm.r_max:g}] from step {norm.r_steps} on, d within ±{norm.d_max:g} from "
            f"step {norm.d_steps} on"
        ]
    if norm.kind == "ghost_batch_norm":
        return [f"norm.kind ghost_batch_norm: {_ghost(spec, world_size)}"]
    if norm.kind == "batch_norm" and world_size > 1:
        return ["norm.kind batch_norm: results depend on the number of workers"]
    return []


def _ghost(spec: Spec, world_size: int) -> str:
    samples, batch = spec.norm.samples, spec.training.global_batch_size
    own = "the running statistics are those of worker 0's virtual batches"
    if world_size == 1:
        return f"virtual batches of {samples} samples"
    if batch is None:
        return f"virtual batches are cut from each worker's share, and {own}"
    micro_batches = shares(batch, spec.training.accumulate_grad_batches)
    sizes = {share for size in micro_batches for share in shares(size, world_size)}
    if any(size % samples for size in sizes):
        shown = " or ".join(map(str, sorted(sizes)))
        return (
            f"virtual batches of {samples} samples are cut from each worker's share, of {shown}; make every "
            f"share a multiple of {samples}, or results depend on the number of workers; {own}"
        )
    return f"full batches are cut into the same virtual batches of {samples} samples as on one worker; {own}"
