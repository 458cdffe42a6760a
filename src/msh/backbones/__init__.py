"""Plain networks, from an input of a fixed shape to a feature vector; they know nothing of tasks."""

from msh.backbones.conv import PaperConv
from msh.backbones.mlp import MLP
from msh.backbones.resnet import ResNet18
from msh.backbones.transformer import Transformer

__all__ = ["MLP", "PaperConv", "ResNet18", "Transformer"]
