"""Weight normalization that gives 0, not NaN, where pruning leaves a row's direction with no weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.weight_norm import WeightNorm

from msh.compat import WeightNormParametrization, pre_hooks, scaled_to_norm


def make_weight_norms_safe(module: nn.Module) -> None:
    """Replace the computation of each weight_norm in a module by one that accepts rows of zeros, in place.

    A row whose direction is all 0 gets the weight 0, and gradients of 0 for its scale and its direction. Where no row
    is 0, weights and gradients are bitwise those of torch. Both forms of weight_norm are replaced: the parametrization,
    and the older hook before the forward pass. Parameters and their names stay.

    Args:
        module: with its submodules; other instances that share its hooks or parametrizations change too.
    """
    for child in list(module.modules()):
        if isinstance(child, ParametrizationList):
            for place, parametrization in enumerate(child):
                if type(parametrization) is WeightNormParametrization:
                    child[place] = SafeWeightNorm(parametrization.dim).train(parametrization.training)
        for key, hook in pre_hooks(child).items():
            if type(hook) is WeightNorm:
                pre_hooks(child)[key] = SafeWeightNormHook(hook.name, hook.dim)


class SafeWeightNorm(WeightNormParametrization):
    """The parametrization of `torch.nn.utils.parametrizations.weight_norm`, for directions with rows of zeros."""

    def forward(self, weight_g: Tensor, weight_v: Tensor) -> Tensor:
        """Scale (see `normalized_weight`) and direction (*shape) to the weight (*shape)."""
        return normalized_weight(weight_v, weight_g, self.dim)


class SafeWeightNormHook(WeightNorm):
    """The hook of `torch.nn.utils.weight_norm`, for directions with rows of zeros."""

    def compute_weight(self, module: nn.Module) -> Tensor:
        """The weight (*shape), from the module's scale and direction."""
        scale, direction = getattr(module, f"{self.name}_g"), getattr(module, f"{self.name}_v")
        return normalized_weight(direction, scale, self.dim)


def normalized_weight(direction: Tensor, scale: Tensor, dim: int) -> Tensor:
    """Scale each row of a direction to a norm, and leave rows of zeros at 0.

    Args:
        direction: (*shape).
        scale: the norm of each row; (*shape) with size 1 but in `dim`, or () when `dim` is -1.
        dim: the axis that counts the rows; -1 makes the whole tensor one row, as in torch.
    Returns:
        (*shape), scale * direction / norm of direction; 0 in rows of zeros.
    Source: Salimans and Kingma 2016, arXiv 1602.07868, eq. 2.
    """
    empty = direction == 0
    for axis in range(direction.dim()):
        if dim == -1 or axis != dim % direction.dim():
            empty = empty.all(axis, keepdim=True)  # of a row, at last
    filled = torch.where(empty, torch.ones_like(direction), direction)  # no division by 0, nor in the backward pass
    weight = scaled_to_norm(filled, scale, dim)
    return torch.where(empty, torch.zeros_like(weight), weight)
