"""All experiments, by name."""

from __future__ import annotations

from benchmarks.paper.batch_noise import BATCH_NOISE
from benchmarks.paper.depth import DEPTH
from benchmarks.paper.figure_1 import FIGURE_1
from benchmarks.paper.identity import IDENTITY
from benchmarks.paper.inference import INFERENCE
from benchmarks.paper.initialisation import INITIALISATION
from benchmarks.paper.learning_rates import LEARNING_RATES
from benchmarks.paper.segmentation import SEGMENTATION
from benchmarks.paper.shift import SHIFT

EXPERIMENTS = {
    each.name: each
    for each in (
        FIGURE_1,
        LEARNING_RATES,
        INITIALISATION,
        DEPTH,
        SHIFT,
        IDENTITY,
        INFERENCE,
        BATCH_NOISE,
        SEGMENTATION,
    )
}
