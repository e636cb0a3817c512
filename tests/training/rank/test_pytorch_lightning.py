"""A process of its own imports Lightning by both names."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
from training.rank.pytorch_lightning import alias_pytorch_lightning

alias_pytorch_lightning()
import pytorch_lightning as pl
from pytorch_lightning.callbacks.early_stopping import EarlyStopping
from lightning_fabric.utilities.seed import seed_everything

import lightning.fabric.utilities.seed
import lightning.pytorch.callbacks.early_stopping as module

assert pl is lightning.pytorch and pl.LightningModule is lightning.pytorch.LightningModule
assert EarlyStopping is module.EarlyStopping
assert seed_everything is lightning.fabric.utilities.seed.seed_everything
assert (pl.__name__, pl.__spec__.name, module.__spec__.name) == (
    "lightning.pytorch", "lightning.pytorch", "lightning.pytorch.callbacks.early_stopping"
)
try:
    import pytorch_lightning.nothing
except ModuleNotFoundError as error:
    print(error)
"""


def test_both_names_of_lightning_are_one_package() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)

    assert (ended.stderr, ended.returncode) == ("", 0)
    assert ended.stdout == "No module named 'lightning.pytorch.nothing'\n"
