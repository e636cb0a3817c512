"""Small networks with BatchNorm for images and vectors, in plain torch.

May import nothing else of this project.
"""

from training.models.convnet import ConvNet
from training.models.fully_connected import FullyConnected
from training.models.inception import SmallInception
from training.models.mlp import MLP
from training.models.resnet import ResNet, resnet18

__all__ = ["MLP", "ConvNet", "FullyConnected", "ResNet", "SmallInception", "resnet18"]
