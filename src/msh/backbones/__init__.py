"""Plain networks that map inputs with a fixed shape to feature vectors; they know nothing about tasks."""

from msh.backbones.adapted import Adapted
from msh.backbones.conv import PaperConv
from msh.backbones.mlp import MLP
from msh.backbones.resnet import ResNet18
from msh.backbones.transformer import Transformer

__all__ = ["MLP", "Adapted", "PaperConv", "ResNet18", "Transformer"]
