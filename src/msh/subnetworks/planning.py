"""Serve budgets on paper: how many weights of each layer every task gets, before any training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache

from msh.subnetworks.allocation import LAYERED, Budget, CapacityError, EmptyLayerError
from msh.subnetworks.empty import ALLOW, decimals_from

Counts = Mapping[str, int]
Shapes = Mapping[str, Sequence[int]]


def check_free(task: str, wanted: Counts, free: Counts, allow_empty: bool = False) -> None:
    """Raise when a task's budget is more than what is free, or leaves it a layer without any weight.

    Args:
        task: the task's name, for the message.
        wanted: as `Budget.counts` returns it.
        free: tensor name to its number of free weights.
        allow_empty: let layers be empty, but not all of them.
    Raises:
        EmptyLayerError: naming task, layer and free.
        CapacityError: naming task, layer, wanted and free.
    """
    if problem := _find_empty(task, wanted, free, allow_empty):
        raise EmptyLayerError(f"{problem}; raise its density, or give the network more weights, or {ALLOW}")
    _check_enough(task, wanted, free)


def _check_enough(task: str, wanted: Counts, free: Counts) -> None:
    for name, count in wanted.items():
        available = sum(free.values()) if name == "" else free[name]
        if count > available:
            raise CapacityError(
                f"task {task!r} wants {count} weights of {_layer(name)}, but only {available} are free; "
                "lower its density, or give the network more weights"
            )


def _find_empty(task: str, wanted: Counts, free: Counts, allow_empty: bool = False) -> str:
    """The first layer of which a budget has no weight, as a sentence; "" if there is none."""
    if allow_empty and any(wanted.values()):
        return ""
    for name, count in wanted.items():
        if count < 1:
            available = sum(free.values()) if name == "" else free[name]
            return f"task {task!r} would get no weight of {_layer(name)}, of which {available} are free"
        if name == "" and count < len(free):
            return f"task {task!r} would get {count} weights of the whole network, fewer than its {len(free)} layers"
    return ""


def _layer(name: str) -> str:
    return "the whole network" if name == "" else f"layer {name!r}"


def plan_counts(
    sizes: Counts,
    budgets: Mapping[str, Budget],
    free: Counts | None = None,
    shapes: Shapes | None = None,
    allow_empty: bool = False,
) -> dict[str, dict[str, int]]:
    """Serve the tasks' budgets in order, on paper.

    With scopes "erk" and "epl" a tensor that is too small for what all of them would like of it is shared out among
    them in proportion to their budgets, and they take the rest of these elsewhere.

    Args:
        sizes: tensor name to its number of weights.
        budgets: task name to its budget, in the order they will be served.
        free: tensor name to its number of free weights; all of them when None.
        shapes: tensor name to its shape; only budgets of scopes "erk" and "epl" need them.
        allow_empty: let a budget be so small that a task gets no weight of some layers.
    Returns:
        Task name to what `Budget.counts` gives it.
    Raises:
        EmptyLayerError: a task would get no weight of a layer; the message has the smallest budget that works.
        CapacityError: a task asks for more than what the tasks before it leave.
    """
    plan: dict[str, dict[str, int]] = {}
    for task, wanted, left in _serve(sizes, budgets, sizes if free is None else free, shapes):
        if problem := _find_empty(task, wanted, left, allow_empty):
            raise EmptyLayerError(f"{problem}: {_cure(sizes, budgets, task, free, shapes)}")
        _check_enough(task, wanted, left)
        plan[task] = wanted
    return plan


def _serve(
    sizes: Counts, budgets: Mapping[str, Budget], free: Counts, shapes: Shapes | None
) -> Iterator[tuple[str, dict[str, int], dict[str, int]]]:
    """(task, what it gets, what was free before): whether that is enough, the caller checks."""
    left = dict(free)
    for position, (task, budget) in enumerate(budgets.items()):
        most = left
        if budget.scope in LAYERED:
            coming = [each.total(sizes) for each in list(budgets.values())[position:]]
            _check_enough(task, {"": coming[0]}, left)
            most = _fair_part(left, coming[0], sum(coming))
        wanted = budget.counts(sizes, most, len(budgets) - position, shapes)
        yield task, wanted, left
        left = _take(left, wanted)


def _fair_part(free: Counts, wanted: int, by_all: int) -> dict[str, int]:
    """Of each tensor, the part of its free weights that a task's budget is of all budgets still to be served."""
    by_all = max(1, wanted, min(by_all, sum(free.values())))
    return {name: -(-available * wanted // by_all) for name, available in free.items()}


def _take(free: Counts, wanted: Counts) -> dict[str, int]:
    """What is left; where it is not known yet which tensors will give, each gives in proportion."""
    if "" not in wanted:
        return {name: free[name] - wanted[name] for name in free}
    count, total = wanted[""], sum(free.values())
    left, owed = {}, count
    for name, available in free.items():
        part = min(owed, -(-available * count // total)) if total else 0
        left[name], owed = available - part, owed - part
    return left


# ---- the smallest budget that works


def _cure(sizes: Counts, budgets: Mapping[str, Budget], task: str, free: Counts | None, shapes: Shapes | None) -> str:
    asked = budgets[task]
    if asked.share is not None:
        return f"share = {asked.share!r} leaves too little for so many tasks; give the network more weights, or {ALLOW}"
    key = "density" if asked.density is not None else "weights"
    least = least_budget(sizes, budgets, task, free, shapes)
    if least is None:
        return f"{key} = {getattr(asked, key)}, and no other works; give the network more weights, or {ALLOW}"
    return f"{key} must be >= {getattr(least, key)}, got {getattr(asked, key)}; or {ALLOW}"


def least_budget(
    sizes: Counts,
    budgets: Mapping[str, Budget],
    task: str,
    free: Counts | None = None,
    shapes: Shapes | None = None,
) -> Budget | None:
    """Find the smallest budget that leaves a task no layer without any weight.

    Tasks with the same budget get what it gets; the budgets of the others stay.

    Args:
        sizes: tensor name to its number of weights.
        budgets: as for `plan_counts`.
        task: whose budget, a density or a number of weights, is to be replaced.
        free: as for `plan_counts`.
        shapes: as for `plan_counts`.
    Returns:
        The budget, a density rounded up to four digits; None if none works.
    """
    asked, total = budgets[task], sum(sizes.values())

    @cache
    def works(budget: Budget) -> bool:
        tried = {name: budget if other == asked else other for name, other in budgets.items()}
        try:
            for name, wanted, left in _serve(sizes, tried, sizes if free is None else free, shapes):
                _check_enough(name, wanted, left)
                if budgets[name] == asked and _find_empty(name, wanted, left):
                    return False
        except CapacityError:
            return False
        return True

    def found(weights: float) -> Budget | None:
        """The smallest budget of so many weights, if it works."""
        if asked.density is None:
            options = [replace(asked, weights=round(weights))]
        else:
            options = [replace(asked, density=d) for d in decimals_from((weights - 0.5) / total) if d <= 1.0]
        return next(filter(works, options), None)

    first, last = _limits(asked, sizes, shapes)
    if asked.scope == "tensor" and asked.density is not None:
        return found(first + 0.5)  # below, the smallest layer is rounded to none; more takes more of every layer
    first = max(round(first), len(sizes))
    for weights in range(first, min(last, total) + 1):
        if budget := found(weights):
            return budget
    return _beyond(found, min(last, total), total)


def _limits(asked: Budget, sizes: Counts, shapes: Shapes | None) -> tuple[float, int]:
    """Weights in all below which rounding leaves a layer empty, and from which on it leaves none empty."""
    if asked.scope == "tensor":
        half = sum(sizes.values()) / (2 * min(sizes.values()))
        return half, int(3 * half) + 1
    if asked.scope == "network" or shapes is None:
        return len(sizes), len(sizes)
    parts = [sum(shape) if asked.scope == "erk" else 1 for shape in shapes.values()]
    return len(sizes), -(-sum(parts) // min(parts))


def _beyond(found: Callable[[float], Budget | None], fails: int, total: int) -> Budget | None:
    """Search larger budgets by bisection: they help where tasks with larger ones leave nothing of a small layer."""
    works = fails
    while works < total:
        works = min(total, works + works // 8 + 1)
        if found(works):
            while works - fails > 1:
                middle = (fails + works) // 2
                fails, works = (fails, middle) if found(middle) else (middle, works)
            return found(works)
        fails = works
    return None
