"""What the fork server imports once, so that no rank has to: importing this module is its whole effect.

Nothing here may start a thread or touch a GPU, since neither survives a fork; a test holds that.
"""

from __future__ import annotations

import gc
import logging

gc.disable()  # a tenth of the time of these imports; they make little that it could free

# ruff: noqa: E402
import lightning.pytorch
import matplotlib.backends.backend_agg
import matplotlib.figure
import torch.distributed
import torch.fx
import torchmetrics.classification

import sync_bn.lightning
import training.callbacks.norm_report
import training.data
import training.host.supervisor
import training.model.export
import training.models
import training.rank.rank
import training.rank.trainer
from training.linux import adopt_orphans

__all__ = [
    "lightning",
    "matplotlib",
    "sync_bn",
    "torch",
    "torchmetrics",
    "training",
]

# Orphans of a supervisor that was killed stay below the fork server, where the agent finds and ends them.
adopt_orphans()
# Some library has set up logging for itself, and a job's own set-up would do nothing.
logging.root.handlers.clear()
logging.root.setLevel(logging.WARNING)
# What is shared with every rank stays shared: the collector writes to each object that it looks at.
gc.collect()
gc.freeze()
gc.enable()
