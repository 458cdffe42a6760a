"""Group neighbours, where there are too many to show each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """Neighbours that are shown as one.

    Attributes:
        name: from the first to the last.
        places: its members' indices.
    """

    name: str
    places: range


def in_groups(names: Sequence[str], most: int) -> list[Group]:
    """Group names: each alone, or, if there are more than `most`, neighbours in equally large groups."""
    size = -(-len(names) // most)
    groups = []
    for start in range(0, len(names), max(size, 1)):
        places = range(start, min(start + size, len(names)))
        groups.append(Group(_span(names[start], names[places[-1]]), places))
    return groups


def _span(first: str, last: str) -> str:
    """Name a range; dotted names' common parts appear once: "layers.0 to 4.weight"."""
    if first == last:
        return first
    starts, ends = first.split("."), last.split(".")
    same = [a == b for a, b in zip(starts, ends, strict=False)]
    if len(starts) == len(ends) and same.count(False) == 1 and len(same) > 1:
        place = same.index(False)
        starts[place] += f" to {ends[place]}"
        return ".".join(starts)
    return f"{first} to {last}"


def grouped(groups: Iterable[Group], noun: str) -> str:
    """Return a caption's sentence about groups; "" if nothing is grouped."""
    size = max((len(group.places) for group in groups), default=1)
    return f" Up to {size} {noun} are drawn as one." if size > 1 else ""
