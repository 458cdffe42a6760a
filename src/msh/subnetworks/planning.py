"""Plan each task's weight count per layer, before any training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache

from msh.errors import requirement
from msh.subnetworks.allocation import Budget, CapacityError, EmptyLayerError
from msh.subnetworks.empty import ALLOW, decimals_from
from msh.subnetworks.options import LAYERED

ROUNDING = 1e-9
"""Relative error of a sum of densities."""
Counts = Mapping[str, int]
Shapes = Mapping[str, Sequence[int]]


def check_free(task: str, wanted: Counts, free: Counts, allow_empty: bool = False) -> None:
    """Raise if a task's budget exceeds the free weights, or leaves a layer without a weight.

    Args:
        task: its name, for the message.
        wanted: from `Budget.counts`.
        free: tensor name to its free weights.
        allow_empty: allow some layers to be empty, but not all.
    Raises:
        EmptyLayerError: naming task, layer and free.
        CapacityError: naming task, layer, wanted and free.
    """
    if problem := _find_empty(task, wanted, free, allow_empty):
        raise EmptyLayerError(f"{problem}; raise its density, or give the network more weights, or {ALLOW}")
    _check_enough(task, wanted, free)


def _check_enough(task: str, wanted: Counts, free: Counts) -> None:
    for name, count in wanted.items():
        if count > _free(free, name):
            raise CapacityError(
                f"task {task!r} wants {count} weights of {_layer(name)}, but only {_free(free, name)} are free; "
                "lower its density, or give the network more weights"
            )


def _find_empty(task: str, wanted: Counts, free: Counts, allow_empty: bool = False) -> str:
    """Describe the first layer in which a budget has no weight; "" if every layer has one."""
    if allow_empty and any(wanted.values()):
        return ""
    for name, count in wanted.items():
        if count < 1:
            return f"task {task!r} would get no weight of {_layer(name)}, of which {_free(free, name)} are free"
        if name == "" and count < len(free):
            return f"task {task!r} would get {count} weights of the whole network, fewer than its {len(free)} layers"
    return ""


def _free(free: Counts, name: str) -> int:
    return sum(free.values()) if name == "" else free[name]


def _layer(name: str) -> str:
    return "the whole network" if name == "" else f"layer {name!r}"


def plan_counts(
    sizes: Counts,
    budgets: Mapping[str, Budget],
    free: Counts | None = None,
    shapes: Shapes | None = None,
    allow_empty: bool = False,
    owning: int = 0,
) -> dict[str, dict[str, int]]:
    """Plan the tasks' budgets in order.

    With scopes "erk" and "epl", tasks divide a tensor that is too small for all of them in proportion to their
    budgets, and take the remaining weights from other tensors. Where densities fit, but not once each is rounded to
    whole weights, a late task takes the weights that are left.

    Args:
        sizes: tensor name to its weight count.
        budgets: task name to its budget, in training order.
        free: tensor name to its free weights; all weights when None.
        shapes: tensor name to its shape; only scopes "erk" and "epl" need them.
        allow_empty: allow a budget that gives a task no weight in some layers.
        owning: number of other tasks that own the rest, and may have been rounded up.
    Returns:
        Task name to its `Budget.counts`.
    Raises:
        EmptyLayerError: a task would get no weight in a layer; the message has the smallest budget that works.
        CapacityError: a task asks for more weights than earlier tasks leave free.
    """
    plan: dict[str, dict[str, int]] = {}
    for task, wanted, remaining in _serve(sizes, budgets, sizes if free is None else free, shapes, owning):
        if problem := _find_empty(task, wanted, remaining, allow_empty):
            raise EmptyLayerError(f"{problem}: {_cure(sizes, budgets, task, free, shapes)}")
        _check_enough(task, wanted, remaining)
        plan[task] = wanted
    return plan


def _serve(
    sizes: Counts, budgets: Mapping[str, Budget], free: Counts, shapes: Shapes | None, owning: int = 0
) -> Iterator[tuple[str, dict[str, int], dict[str, int]]]:
    """Yield (task, its counts, the free counts before it); the caller checks them."""
    remaining, densities = dict(free), 0.0
    for position, (task, budget) in enumerate(budgets.items()):
        most = remaining
        densities += budget.density if budget.density is not None else math.inf
        if budget.scope in LAYERED:
            total = budget.total(sizes)
            if 0 < (fitted := _fitted({"": total}, remaining, densities, sizes, free, owning)[""]) < total:
                budget = replace(budget, density=None, weights=fitted)
            coming = [budget.total(sizes), *(each.total(sizes) for each in list(budgets.values())[position + 1 :])]
            _check_enough(task, {"": coming[0]}, remaining)
            most = _fair_part(remaining, coming[0], sum(coming))
        wanted = budget.counts(sizes, most, len(budgets) - position, shapes)
        wanted = _fitted(wanted, remaining, densities, sizes, free, owning)
        yield task, wanted, remaining
        remaining = _take(remaining, wanted)


def _fitted(
    wanted: Counts, remaining: Counts, densities: float, sizes: Counts, free: Counts, owning: int
) -> dict[str, int]:
    """Lower counts to the remaining weights where nothing but rounding makes them larger.

    Args:
        wanted, remaining: of one task.
        densities: sum of those planned so far, the task's included; infinite where one has another budget.
        sizes, free: before the first of these tasks.
        owning: number of tasks before, each of which may own half a weight more than its density.
    """
    fitted = dict(wanted)
    for name, count in wanted.items():
        size = sum(sizes.values()) if name == "" else sizes[name]
        if count > _free(remaining, name) and densities * size <= _free(free, name) + owning / 2 + ROUNDING * size:
            fitted[name] = _free(remaining, name)
    return fitted


def _fair_part(free: Counts, wanted: int, by_all: int) -> dict[str, int]:
    """Scale each tensor's free weights by a task's share in all remaining budgets."""
    by_all = max(1, wanted, min(by_all, sum(free.values())))
    return {name: -(-available * wanted // by_all) for name, available in free.items()}


def _take(free: Counts, wanted: Counts) -> dict[str, int]:
    """Subtract a task's weights from the free ones; a number over all tensors is taken in proportion."""
    if "" not in wanted:
        return {name: free[name] - wanted[name] for name in free}
    count, total = wanted[""], sum(free.values())
    remaining, owed = {}, count
    for name, available in free.items():
        part = min(owed, -(-available * count // total)) if total else 0
        remaining[name], owed = available - part, owed - part
    return remaining


# ---- the smallest budget that works


def _cure(sizes: Counts, budgets: Mapping[str, Budget], task: str, free: Counts | None, shapes: Shapes | None) -> str:
    asked = budgets[task]
    if asked.share is not None:
        return f"share {asked.share!r} leaves too little for so many tasks; give the network more weights, or {ALLOW}"
    key = "density" if asked.density is not None else "weights"
    least = least_budget(sizes, budgets, task, free, shapes)
    if least is None:
        return f"no {key} works, got {getattr(asked, key)}; give the network more weights, or {ALLOW}"
    return f"{requirement(key, f'>= {getattr(least, key)}', getattr(asked, key))}; or {ALLOW}"


def least_budget(
    sizes: Counts,
    budgets: Mapping[str, Budget],
    task: str,
    free: Counts | None = None,
    shapes: Shapes | None = None,
) -> Budget | None:
    """Find the smallest budget that gives a task a weight in every layer.

    Tasks with the same budget get the new one too; other budgets stay.

    Args:
        sizes: tensor name to its weight count.
        budgets: as for `plan_counts`.
        task: has the density or weight count to replace.
        free: as for `plan_counts`.
        shapes: as for `plan_counts`.
    Returns:
        The budget, a density rounded up to four digits; None if no budget works.
    """
    asked, total = budgets[task], sum(sizes.values())

    @cache
    def works(budget: Budget) -> bool:
        tried = {name: budget if other == asked else other for name, other in budgets.items()}
        try:
            for name, wanted, remaining in _serve(sizes, tried, sizes if free is None else free, shapes):
                _check_enough(name, wanted, remaining)
                if budgets[name] == asked and _find_empty(name, wanted, remaining):
                    return False
        except CapacityError:
            return False
        return True

    def find(weights: float) -> Budget | None:
        """Return the smallest budget with this many weights, if it works."""
        if asked.density is None:
            options = [replace(asked, weights=round(weights))]
        else:
            options = [replace(asked, density=d) for d in decimals_from((weights - 0.5) / total) if d <= 1.0]
        return next(filter(works, options), None)

    first, last = _limits(asked, sizes, shapes)
    if asked.scope == "tensor" and asked.density is not None:
        return find(first + 0.5)  # smaller rounds the smallest layer to 0; larger takes more of every layer
    first = max(round(first), len(sizes))
    for weights in range(first, min(last, total) + 1):
        if budget := find(weights):
            return budget
    return _beyond(find, min(last, total), total)


def _limits(asked: Budget, sizes: Counts, shapes: Shapes | None) -> tuple[float, int]:
    """Bound the total: below the first number rounding empties a layer, from the second on it empties none."""
    if asked.scope == "tensor":
        half = sum(sizes.values()) / (2 * min(sizes.values()))
        return half, int(3 * half) + 1
    if asked.scope == "network" or shapes is None:
        return len(sizes), len(sizes)
    parts = [sum(shape) if asked.scope == "erk" else 1 for shape in shapes.values()]
    return len(sizes), -(-sum(parts) // min(parts))


def _beyond(find: Callable[[float], Budget | None], fails: int, total: int) -> Budget | None:
    """Search larger budgets by bisection: they help where tasks with larger ones use up a small layer."""
    works = fails
    while works < total:
        works = min(total, works + works // 8 + 1)
        if find(works):
            while works - fails > 1:
                middle = (fails + works) // 2
                fails, works = (fails, middle) if find(middle) else (middle, works)
            return find(works)
        fails = works
    return None
