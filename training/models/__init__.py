"""Small networks with BatchNorm for images and vectors, in plain torch.

May import nothing else of this project.
"""

from training.models.convnet import ConvNet
from training.models.mlp import MLP
from training.models.resnet import ResNet, resnet18

__all__ = ["MLP", "ConvNet", "ResNet", "resnet18"]
