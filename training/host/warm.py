"""Preload of the fork server: importing this module imports what every rank needs.

Nothing here may start a thread or touch a GPU, since neither survives a fork; a test checks that.
"""

from __future__ import annotations

import gc
import logging
import signal

# Ctrl-C during the imports ends this process without a traceback.
signal.signal(signal.SIGINT, signal.SIG_DFL)
gc.disable()  # saves a tenth of the import time; imports create little garbage, which stays

# ruff: noqa: E402
import lightning.pytorch
import matplotlib.backends.backend_agg
import matplotlib.figure
import PIL.Image
import torch.distributed
import torch.distributed.algorithms.ddp_comm_hooks.debugging_hooks
import torch.fx
import torchmetrics.classification

import sync_bn.lightning
import training.callbacks.norm_report
import training.data
import training.host.supervisor
import training.model.modes
import training.models
import training.rank.rank
import training.rank.results
import training.rank.trainer
import training.tracking.fluent
from training.linux import adopt_orphans

__all__ = [
    "PIL",
    "lightning",
    "matplotlib",
    "sync_bn",
    "torch",
    "torchmetrics",
    "training",
]

PIL.Image.preinit()  # imports the formats, which saving the first figure does otherwise
# If a supervisor is killed, its orphans become children of the fork server; the agent finds and kills them.
adopt_orphans()
# One of the imported libraries configures logging; undo that, so that a job's own basicConfig takes effect.
logging.root.handlers.clear()
logging.root.setLevel(logging.WARNING)
# Keeps the imported objects in memory pages shared with the ranks: the collector writes to objects it visits.
gc.freeze()
gc.enable()
