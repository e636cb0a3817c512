"""Callbacks for `trainer.callbacks` that measure a network while it trains, as papers on BatchNorm do.

May import `callbacks`, `data`, `errors`, `model`, `sync_bn`.
"""

from training.probes.folding import Folding
from training.probes.gradients import GradientChange
from training.probes.inputs import InputMoments, InputPercentiles
from training.probes.noise import BatchNoise
from training.probes.statistics import StatisticsSources

__all__ = [
    "BatchNoise",
    "Folding",
    "GradientChange",
    "InputMoments",
    "InputPercentiles",
    "StatisticsSources",
]
