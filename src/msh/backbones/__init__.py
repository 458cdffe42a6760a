"""Plain networks that map inputs with a fixed shape to feature vectors; they know nothing about tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msh import importer

if TYPE_CHECKING:
    from msh.backbones.adapted import Adapted as Adapted
    from msh.backbones.conv import PaperConv as PaperConv
    from msh.backbones.mlp import MLP as MLP
    from msh.backbones.resnet import ResNet18 as ResNet18
    from msh.backbones.transformer import Transformer as Transformer

# torchvision takes a second and 70 MB, and only ResNet18 needs it
__getattr__ = importer(
    __name__,
    {
        "MLP": "msh.backbones.mlp",
        "Adapted": "msh.backbones.adapted",
        "PaperConv": "msh.backbones.conv",
        "ResNet18": "msh.backbones.resnet",
        "Transformer": "msh.backbones.transformer",
    },
)
