"""Score weights by a criterion; the lowest scores are pruned first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Score = Callable[[Tensor, Tensor | None, torch.Generator], Tensor]


@dataclass(frozen=True)
class Criterion:
    """A score per weight.

    Attributes:
        name: as in configs.
        needs_gradient: True if it needs the gradient of the task's loss on a sample.
        score: (weight (*shape), gradient (*shape) or None, generator) to scores (*shape), higher is kept.
        learned: True if it takes scores that train with the weights instead of the weights.
    """

    name: str
    needs_gradient: bool
    score: Score
    learned: bool = False

    def __call__(self, weight: Tensor, gradient: Tensor | None, generator: torch.Generator) -> Tensor:
        """Score a tensor's weights.

        Args:
            weight: (*shape), the task's current weights; or its learned scores.
            gradient: (*shape), of the loss with respect to the weight; None if not needed.
            generator: on the CPU, for random scores.
        Returns:
            float, (*shape), higher is kept; unitless.
        Raises:
            ValueError: a gradient is needed and missing.
        """
        if self.needs_gradient and gradient is None:
            raise ValueError(f"criterion {self.name!r} needs the gradient of the loss")
        return self.score(weight.detach(), gradient, generator)


def _magnitude(weight: Tensor, gradient: Tensor | None, generator: torch.Generator) -> Tensor:
    return weight.abs()


def _gradient(weight: Tensor, gradient: Tensor | None, generator: torch.Generator) -> Tensor:
    assert gradient is not None
    return gradient.abs()


def _weight_gradient(weight: Tensor, gradient: Tensor | None, generator: torch.Generator) -> Tensor:
    assert gradient is not None
    return (weight * gradient).abs()


def _learned(scores: Tensor, gradient: Tensor | None, generator: torch.Generator) -> Tensor:
    return scores


def _random(weight: Tensor, gradient: Tensor | None, generator: torch.Generator) -> Tensor:
    import torch  # settings name the criteria, and need no torch

    return torch.rand(weight.shape, generator=generator).to(weight.device)


MAGNITUDE = Criterion("magnitude", False, _magnitude)
"""|w|. Source: Han et al. 2015."""
GRADIENT = Criterion("gradient", True, _gradient)
"""|dL/dw|. Source: Renn et al. 2022, arXiv 2207.08821."""
WEIGHT_GRADIENT = Criterion("weight_gradient", True, _weight_gradient)
"""|w dL/dw|. Source: Lee et al. 2019, SNIP, eq. 6."""
RANDOM = Criterion("random", False, _random)
"""Uniform in [0, 1): the control that every other criterion should beat."""
LEARNED = Criterion("learned", False, _learned, learned=True)
"""Scores that train with the weights: see `msh.subnetworks.learned`. Source: Mallya et al. 2018; Kang et al. 2022."""

CRITERIA = {c.name: c for c in (MAGNITUDE, GRADIENT, WEIGHT_GRADIENT, RANDOM, LEARNED)}
