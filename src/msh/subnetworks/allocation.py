"""Select exactly k weights by score, and turn budgets into numbers of weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import Literal, get_args

import torch
from torch import Tensor

from msh.errors import invalid, one_of
from msh.subnetworks.options import LAYERED, Scope
from msh.subnetworks.tensors import count_true, kth_highest, selected

FREE = 0
"""Owner id of a weight that no task owns. Tasks have ids 1, 2, ..."""


def top_k_mask(scores: Tensor, k: int, candidates: Tensor | None = None) -> Tensor:
    """Keep the k highest-scoring weights.

    Args:
        scores: (*shape), higher is kept; unitless.
        k: number kept, 0 <= k <= candidates.
        candidates: bool, (*shape); only these can be kept. All weights when None.
    Returns:
        bool, (*shape), exactly k True, a subset of the candidates; ties go to the lower flat index.
    Raises:
        ValueError: k is out of range, shapes differ, or a candidate's score is NaN.
    Source: Mallya and Lazebnik 2018, PackNet, sec. 3.
    """
    named = None if candidates is None else {"scores": candidates}
    return top_k_masks({"scores": scores}, k, named)["scores"]


def top_k_masks(
    scores: Mapping[str, Tensor], k: int, candidates: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Keep the k highest-scoring weights over several tensors together.

    Args:
        scores: tensor name to (*shape), higher is kept; unitless.
        k: number kept over all tensors, 0 <= k <= candidates.
        candidates: tensor name to bool (*shape); only these can be kept.
    Returns:
        Tensor name to bool (*shape), exactly k True in all; ties go to the earlier tensor, then to the lower flat
        index.
    Raises:
        ValueError: k is out of range, shapes differ, or a candidate's score is NaN.
    """
    flat = torch.cat([score.detach().reshape(-1) for score in scores.values()])
    allowed = None
    if candidates is not None:
        for name, score in scores.items():
            if candidates[name].shape != score.shape:
                raise ValueError(
                    f"candidates[{name!r}] have shape {tuple(candidates[name].shape)}, "
                    f"the scores have {tuple(score.shape)}"
                )
        allowed = torch.cat([candidates[name].reshape(-1) for name in scores])
    ranked = flat if allowed is None else selected(flat, allowed)
    if not 0 <= k <= ranked.numel():
        raise invalid("k", f"in [0, {ranked.numel()}], the number of candidates", k)
    if ranked.isnan().any():
        raise ValueError(f"{int(ranked.isnan().sum())} scores are NaN")
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    if k:
        threshold = kth_highest(ranked, k)
        chosen = flat >= threshold if allowed is None else (flat >= threshold) & allowed
        if surplus := count_true(chosen) - k:
            ties = (chosen & (flat == threshold)).nonzero().squeeze(1)
            chosen[ties[-surplus:]] = False
    parts = chosen.split([score.numel() for score in scores.values()])
    return {name: part.view(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)}


def choose(
    scores: Mapping[str, Tensor], kept: Mapping[str, int], candidates: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Keep the highest scores among the candidates, over all tensors together or in each.

    Args:
        scores: tensor name to (*shape), higher is kept; unitless.
        kept: tensor name to the number kept there, or {"": number over all tensors}.
        candidates: tensor name to bool (*shape); only these can be kept.
    Returns:
        Tensor name to bool (*shape).
    Raises:
        ValueError: a number kept exceeds the candidates, or a candidate's score is NaN.
    """
    if "" in kept:
        return top_k_masks(scores, kept[""], candidates)
    return {name: top_k_mask(scores[name], kept[name], candidates[name]) for name in scores}


def choose_at_most(
    scores: Mapping[str, Tensor],
    kept: Mapping[str, int],
    candidates: Mapping[str, Tensor],
    chooser: Callable[..., dict[str, Tensor]] = choose,
) -> dict[str, Tensor]:
    """Like `choose`, but keep all candidates where these are fewer; a score that is NaN counts as 0.

    Args:
        scores, kept, candidates: as for `choose`.
        chooser: `choose`, or a granularity's.
    """
    finite = {name: scores[name].detach().nan_to_num(0.0) for name in candidates}
    return chooser(finite, at_most(kept, candidates), candidates)


def at_most(kept: Mapping[str, int], candidates: Mapping[str, Tensor]) -> dict[str, int]:
    """Lower the numbers kept, by tensor name or "" for all, to the numbers of candidates, bool (*shape) each."""
    counts = {name: count_true(mask) for name, mask in candidates.items()}
    counts[""] = sum(counts.values())
    return {name: min(k, counts[name]) for name, k in kept.items()}


@dataclass(frozen=True)
class Allocation:
    """Weights that one task will own, fixed before it is trained.

    Attributes:
        masks: bool, (*shape) for each prunable tensor.
        norms: tensor name to the Euclidean norm that these weights start with.
    """

    masks: dict[str, Tensor]
    norms: dict[str, float]


class CapacityError(ValueError):
    """A task asks for more weights than are free, or would get no weight."""


class EmptyLayerError(CapacityError):
    """A task would have no weight in a layer."""


@dataclass(frozen=True)
class Budget:
    """Number of weights a task may keep: either `density`, `weights` or `share`.

    Attributes:
        density: kept share of the prunable weights, in (0, 1].
        weights: kept number of weights over the whole network, >= 1.
        share: "equal" divides the free weights equally among this task and the later ones.
        scope: "tensor" keeps the same share of every prunable tensor; "erk" and "epl" keep a larger share of small
            tensors (see `layer_counts`; not with `share`); "network" lets the scores decide between tensors.
    """

    density: float | None = None
    weights: int | None = None
    share: Literal["equal"] | None = None
    scope: Scope = "tensor"

    def __post_init__(self) -> None:
        keys = [key for key in ("density", "weights", "share") if getattr(self, key) is not None]
        if len(keys) != 1:
            raise ValueError(f"a budget needs exactly one of density, weights, share; got {keys or 'none'}")
        if self.density is not None and not 0.0 < self.density <= 1.0:
            raise invalid("density", "in (0, 1]", self.density)
        if self.weights is not None and self.weights < 1:
            raise invalid("weights", ">= 1", self.weights)
        if self.share is not None:
            one_of("share", self.share, ["equal"])
        one_of("scope", self.scope, get_args(Scope))
        if self.scope in LAYERED and self.share is not None:
            raise ValueError(f"scope {self.scope!r} cannot be combined with share: pass density or weights")

    def counts(
        self,
        sizes: Mapping[str, int],
        free: Mapping[str, int],
        tasks_left: int = 1,
        shapes: Mapping[str, Sequence[int]] | None = None,
    ) -> dict[str, int]:
        """Count the weights to keep in each tensor, or (scope "network") in all tensors, under the key "".

        Args:
            sizes: tensor name to its weight count.
            free: tensor name to its free weights; with scopes "erk" and "epl" to the most it may give.
            tasks_left: tasks still to be served, this one included; used by `share` alone.
            shapes: tensor name to its shape; only scopes "erk" and "epl" need them.
        Raises:
            ValueError: scope "erk" or "epl" lacks the shapes, or asks for more weights than there are.
        """
        if self.scope in LAYERED:
            if shapes is None:
                raise ValueError(f"scope {self.scope!r} needs the shapes of the tensors")
            return layer_counts(self.scope, shapes, self.total(sizes), free)
        if self.scope == "network":
            sizes, free = {"": sum(sizes.values())}, {"": sum(free.values())}
        if self.share is not None:
            return {name: number // tasks_left for name, number in free.items()}
        total = sum(sizes.values())
        density = self.density if self.density is not None else (self.weights or 0) / total
        wanted = {name: round(density * size) for name, size in sizes.items()}
        if self.weights is not None:
            _spread(wanted, self.weights - sum(wanted.values()), sizes)
        return wanted

    def total(self, sizes: Mapping[str, int]) -> int:
        """Count the weights to keep in all tensors, unless the budget is a share."""
        assert self.share is None
        return self.weights if self.weights is not None else round((self.density or 0.0) * sum(sizes.values()))


def layer_counts(
    scope: Scope, shapes: Mapping[str, Sequence[int]], total: int, most: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Divide weights among tensors: small tensors keep a larger share than large ones.

    A tensor that cannot give its part gives all it may, and the others divide the rest.

    Args:
        scope: "erk", in proportion to the sum of each tensor's dimensions (Erdos-Renyi-Kernel); "epl", the same
            number in each tensor (equal per layer).
        shapes: tensor name to its shape.
        total: weights to divide, 0 <= total <= sum(most).
        most: tensor name to the most weights it may give; all its weights when None.
    Returns:
        Tensor name to weight count, `total` in all. Fractions are rounded down, and the remainder goes to
        the largest fractions, ties to the earlier tensor.
    Raises:
        ValueError: total is out of range.
    Source: Evci et al. 2020, RigL, sec. 3 (1); Price and Tanner 2021, Dense for the Price of Sparse.
    """
    most = {name: prod(shape) for name, shape in shapes.items()} if most is None else most
    part = {name: sum(shape) if scope == "erk" else 1 for name, shape in shapes.items()}
    if not 0 <= total <= sum(most.values()):
        raise invalid("total", f"in [0, {sum(most.values())}], the number of weights", total)
    exact: dict[str, Fraction] = {}
    while len(exact) < len(shapes):
        open_names = [name for name in shapes if name not in exact]
        rest = total - sum(exact.values())
        each = Fraction(rest) / sum(part[name] for name in open_names)
        full = [name for name in open_names if each * part[name] > most[name]]
        exact |= {name: Fraction(most[name]) for name in full}
        if not full:
            exact |= {name: each * part[name] for name in open_names}
    counts = {name: int(exact[name]) for name in shapes}
    by_fraction = sorted(shapes, key=lambda name: counts[name] - exact[name])
    for name in by_fraction[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def _spread(counts: dict[str, int], rest: int, sizes: Mapping[str, int]) -> None:
    """Add the rounding remainder to the tensors, largest first, so that the sum is exact."""
    order = sorted(counts, key=lambda name: -sizes[name])
    step = 1 if rest > 0 else -1
    for i in range(abs(rest)):
        counts[order[i % len(order)]] += step
