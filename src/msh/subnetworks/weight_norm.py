"""Normalize weights such that a row whose direction is pruned away becomes 0, not NaN."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.weight_norm import WeightNorm

from msh.compat import WeightNormParametrization, pre_hooks, scaled_to_norm


def make_weight_norms_safe(module: nn.Module) -> None:
    """Replace each weight_norm in a module by one that accepts zero rows, in place.

    A row whose direction is all 0 gets weight 0, and zero gradients for its scale and direction. Where no row
    is 0, weights and gradients equal torch's bitwise. Replaces both forms: the parametrization and the
    older hook before the forward pass. Parameters and their names stay.

    Args:
        module: with its submodules; other instances that share its hooks or parametrizations change too.
    """
    for child in list(module.modules()):
        if isinstance(child, ParametrizationList):
            for index, parametrization in enumerate(child):
                if type(parametrization) is WeightNormParametrization:
                    child[index] = SafeWeightNorm(parametrization.dim).train(parametrization.training)
        for key, hook in pre_hooks(child).items():
            if type(hook) is WeightNorm:
                pre_hooks(child)[key] = SafeWeightNormHook(hook.name, hook.dim)


class SafeWeightNorm(WeightNormParametrization):
    """`torch.nn.utils.parametrizations.weight_norm` for directions with zero rows."""

    def forward(self, weight_g: Tensor, weight_v: Tensor) -> Tensor:
        """Compute the weight (*shape) from scale and direction: see `normalized_weight`."""
        return normalized_weight(weight_v, weight_g, self.dim)


class SafeWeightNormHook(WeightNorm):
    """`torch.nn.utils.weight_norm` for directions with zero rows."""

    def compute_weight(self, module: nn.Module) -> Tensor:
        """Compute the weight (*shape) from the module's scale and direction."""
        scale, direction = getattr(module, f"{self.name}_g"), getattr(module, f"{self.name}_v")
        return normalized_weight(direction, scale, self.dim)


def normalized_weight(direction: Tensor, scale: Tensor, dim: int) -> Tensor:
    """Scale each row of a direction to a norm; zero rows stay 0.

    Args:
        direction: (*shape).
        scale: the norm of each row; (*shape) with size 1 but in `dim`, or () when `dim` is -1.
        dim: axis of the rows; -1 makes the whole tensor one row, as in torch.
    Returns:
        (*shape), scale * direction / ||direction|| per row; 0 in zero rows.
    Source: Salimans and Kingma 2016, arXiv 1602.07868, eq. 2.
    """
    empty = direction == 0
    for axis in range(direction.dim()):
        if dim == -1 or axis != dim % direction.dim():
            empty = empty.all(axis, keepdim=True)  # in the end, one per row
    filled = torch.where(empty, torch.ones_like(direction), direction)  # no division by 0, even backward
    weight = scaled_to_norm(filled, scale, dim)
    return torch.where(empty, torch.zeros_like(weight), weight)
