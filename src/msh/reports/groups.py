"""Many things as few: neighbours put together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """Neighbours that are shown as one.

    Attributes:
        name: what they are called.
        places: of its members.
    """

    name: str
    places: range


def in_groups(names: Sequence[str], most: int) -> list[Group]:
    """Names one by one, or, where there are more than `most`, neighbours together in groups of one size."""
    size = -(-len(names) // most)
    groups = []
    for start in range(0, len(names), max(size, 1)):
        places = range(start, min(start + size, len(names)))
        named = names[start] if len(places) == 1 else f"{names[start]} to {names[places[-1]]}"
        groups.append(Group(named, places))
    return groups


def grouped(groups: Iterable[Group], what: str) -> str:
    """What a caption says of groups; nothing where there are none."""
    size = max((len(group.places) for group in groups), default=1)
    return f" Up to {size} {what} are drawn as one." if size > 1 else ""
