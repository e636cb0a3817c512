"""The built-in data sets, as LightningDataModules.

May import `samples`.
"""

from training.data.arrangement import ArrangedBatches
from training.data.digits import Digits
from training.data.fashion_mnist import FashionMNIST
from training.data.volumes import SyntheticVolumes

__all__ = ["ArrangedBatches", "Digits", "FashionMNIST", "SyntheticVolumes"]
