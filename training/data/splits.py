"""The LightningDataModule of three splits that are ready in memory."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset


class Splits(LightningDataModule):
    """A subclass sets `train`, `val` and `test` in `setup`.

    The loaders say what is loaded and that training is shuffled; the batch size is the job's.
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
