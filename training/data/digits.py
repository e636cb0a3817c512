"""scikit-learn's handwritten digits: 1,797 grey images of 8×8, included in the library."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.utils.data import TensorDataset

from training.data.splits import Splits


class Digits(Splits):
    """Images (1, 8, 8) float32 in [0, 1] and labels int64: 1,257 for training, 180 validation, 360 test.

    The splits are stratified and always the same.
    """

    def setup(self, stage: str | None = None) -> None:  # noqa: ARG002 (Lightning's signature)
        images, labels = load_digits(return_X_y=True)
        data = TensorDataset(
            torch.as_tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16,
            torch.as_tensor(labels, dtype=torch.int64),
        )
        rest, test = train_test_split(range(len(data)), test_size=360, stratify=labels, random_state=0)
        train, val = train_test_split(rest, test_size=180, stratify=labels[rest], random_state=0)
        self.train, self.val, self.test = (TensorDataset(*data[part]) for part in (train, val, test))
