"""The built-in data sets, as LightningDataModules.

May import `samples`.
"""

from training.data.arrangement import ArrangedBatches
from training.data.digits import Digits
from training.data.fashion_mnist import FashionMNIST

__all__ = ["ArrangedBatches", "Digits", "FashionMNIST"]
