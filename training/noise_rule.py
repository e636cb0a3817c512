"""Which normalisation follows from how noisy the statistics of a worker's samples are. Pure, and light.

noise: the error of a worker's mean against that of the batch, in units of the channels' standard deviation σ
(`sync_bn.Observation.mean_noise`); here a median over layers and steps.
"""

from __future__ import annotations

import math

SYNC, LOCAL, FREE = "sync_batch_norm", "batch_norm", "group_norm"
NOTICEABLE = 0.05
"""Noise of a layer's means, in units of σ, from which training without synchronization is quite another."""
NOISY = 0.25
"""Noise from which the statistics of even the global batch say little about the data."""


def global_noise(noise: float, share: float) -> float:
    """Returns the noise of the batch's means against those of all data: an estimate; NaN if share is 1.

    share: the part of a batch's samples that the worker has. Of n out of N independent samples the mean
    differs from that of all N by s·√(1/n - 1/N), and that of the N from the expectation by s/√N.
    """
    return noise * math.sqrt(share / (1 - share)) if share < 1 else math.nan


def recommended(batch_noise: float) -> str:
    """Returns the norm.kind that follows from `global_noise`."""
    return FREE if batch_noise >= NOISY else SYNC


def reason(noise: float, batch_noise: float) -> str:
    """Returns the norm.kind that follows, and why, in sentences."""
    if recommended(batch_noise) == FREE:
        larger = (batch_noise / NOISY) ** 2  # noise falls with the root of the number of samples
        return (
            f"norm.kind: {FREE}. All workers' samples together are too few for statistics of a batch. "
            f"With batches {max(larger, 1.1):.2g} times as large, {SYNC} would do."
        )
    if noise >= NOTICEABLE:
        return f"norm.kind: {SYNC}. The samples of one worker are too few, those of all are enough."
    return (
        f"norm.kind: {SYNC}. Here a worker's own samples would nearly do, but with {LOCAL} the result "
        "depends on the number of workers."
    )
