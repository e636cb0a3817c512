"""Silences what Lightning says about things that are intended here."""

from __future__ import annotations

import logging
import warnings


def silence_lightning() -> None:
    """Silences Lightning's tips, and its warnings about things that are intended here."""
    # MLflow imports Lightning under its other name, and then Lightning uses that name's logger.
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
    warnings.filterwarnings("ignore", message=".*recommended to use `self.log.*sync_dist=True.*")
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
