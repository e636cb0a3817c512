"""A LightningDataModule of three splits that are in memory."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset


class Splits(LightningDataModule):
    """The base class of data modules with three splits: a subclass sets them in `setup`.

    The loaders shuffle the training split only; their batch size is ignored in favour of the spec's.
    """

    train: Dataset[Any]
    val: Dataset[Any]
    test: Dataset[Any]

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.test)
