"""Describe a network without its tensors: its tasks, and how many weights each owns and reads; needs no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from msh.checked import parsed
from msh.errors import invalid

if TYPE_CHECKING:
    from torch import Tensor

    from msh.recipes import Recipe

STATE_VERSION = 4
"""Description version: since 2, a task may read some of another's weights; since 3, `reads` holds names; in 4, which
only states with such a task have, a task may name the `base` that its state lacks."""
EXTRA_STATE = "_extra_state"
"""Key of the description in a module's state dict."""
PARTS = ("private", "stem", "head")
"""Kinds of private tensors, in the order in which a digest takes them."""
BAGS = ("reading", "values", "masks", "scores")
"""Kinds of tensors that a task may have for each prunable tensor."""
TASK_NAME = re.compile(r"[A-Za-z0-9_-]+")
LONGEST_NAME = 230
"""Characters in a task's name, of a byte each: names of files have at most 255 bytes, and need some for other words."""
SHOWN = 40
"""Characters of a longer name that an error shows."""

Family = Literal["uniform", "normal"]
"""Distribution of independent values around 0."""
Families = dict[str, Family]
"""Tensor name to the family of its fresh values, without the uniform ones."""
Phase = Literal["planned", "new", "masked", "compact", "frozen"]


def check_task_name(task: str) -> None:
    """Raise unless a task's name can be a part of keys and of file names.

    Raises:
        ValueError: the name has another character, none or too many.
    """
    if not TASK_NAME.fullmatch(task):
        raise invalid("task name", "letters, digits, '_' and '-'", task)
    if len(task) > LONGEST_NAME:
        bound = f"at most {LONGEST_NAME} characters long"
        raise invalid("task name", bound, f"{task[:SHOWN]}... ({len(task)} characters)")


@dataclass
class TaskState:
    """One task of a network.

    Attributes:
        name: letters, digits, "_" and "-".
        owner: its id in the owner maps.
        phase: "planned" (weights allocated, no values yet), or as in `Subnetwork`.
        reads: earlier tasks whose weights it reads.
        reading: tensor name to uint8 (bytes,), the weights it reads at a bit each; empty where it reads all weights
            of the tasks in `reads`.
        private: "private.NAME", "stem.NAME" and "head.NAME" to tensor. Buffers that equal the backbone's may be
            missing: see `NetworkState.private`.
        values: in training, tensor name to its weights: (*shape) while masked, (k,) while compact.
        masks: while masked, tensor name to its candidates: bool (*shape).
        scores: while masked, tensor name to a score per weight (*shape), if scores are learned.
        kept: while scores choose, tensor name (or "" for all) to its number of selected weights.
        norms: while planned, tensor name to the Euclidean norm its weights will start with.
        granularity: pruned as one: see `GRANULARITIES`.
        blocks: with granularity "block", name of each tensor that is pruned in blocks, to rows and columns of a block.
        recipe: how to rebuild "stem" and "head", and the task's "preprocessing" and "outputs", where known.
        digest: `NetworkState.digest` in the network that the task was copied from, if it was.
        base: `NetworkState.base_digest` of that network, if the copy lacks the tensors to which its weights are added.
    """

    name: str
    owner: int
    phase: Phase = "frozen"
    reads: tuple[str, ...] = ()
    reading: dict[str, Tensor] = field(default_factory=dict)
    private: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)
    scores: dict[str, Tensor] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)
    granularity: str = "weight"
    blocks: dict[str, tuple[int, int]] = field(default_factory=dict)
    recipe: Recipe = field(default_factory=dict)
    digest: str | None = None
    base: str | None = None

    @property
    def private_count(self) -> int | None:
        """Number of values in its stem, head, biases and normalization; None while it is planned."""
        if self.phase == "planned":
            return None
        return sum(tensor.numel() for tensor in self.private.values() if tensor.is_floating_point())

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (key, tensor): the keys of `private`, and "KIND.NAME" for each kind in `BAGS`."""
        yield from self.private.items()
        for kind in BAGS:
            yield from ((f"{kind}.{name}", tensor) for name, tensor in getattr(self, kind).items())

    def put(self, key: str, tensor: Tensor) -> None:
        """Add a tensor under a key of `tensors`.

        Raises:
            ValueError: the key is of no known kind.
        """
        kind, _, name = key.partition(".")
        if kind in PARTS:
            self.private[key] = tensor
        elif kind in BAGS:
            getattr(self, kind)[name] = tensor
        else:
            raise ValueError(f"task {self.name!r} has a tensor {key!r} of no known kind")


@dataclass(frozen=True)
class Capacity:
    """Weight counts by owner, for a layer or several layers together.

    Attributes:
        name: the prunable tensor's, or the group's.
        shape: the tensor's.
        owned: every task to its weight count.
        free: weights that no task owns.
    """

    name: str
    shape: tuple[int, ...]
    owned: dict[str, int]
    free: int

    @property
    def taken(self) -> int:
        """Weights that some task owns."""
        return sum(self.owned.values())

    @property
    def size(self) -> int:
        """Weights that tasks can own."""
        return self.free + self.taken

    @classmethod
    def together(cls, name: str, layers: Sequence[Capacity]) -> Capacity:
        """Add up one network's layers."""
        owned = {task: sum(layer.owned[task] for layer in layers) for task in (layers[0].owned if layers else ())}
        free = sum(layer.free for layer in layers)
        return cls(name, (free + sum(owned.values()),), owned, free)


Number = Annotated[int, Field(ge=0)]


class Counts(TypedDict):
    """JSON that `Holdings.describe` writes."""

    owned: list[list[Number]]
    selected: dict[str, dict[str, Number]]
    read: dict[str, list[Number]]


@dataclass(frozen=True)
class Holdings:
    """Count the weights that each task of a network owns and reads, and its private values.

    Attributes:
        tasks: by name; their tensors may be missing.
        layers: each layer's weights by owner.
        selected: for each task that selects the weights it reads: other task to the number of its weights.
        read: for the same tasks: layer to the number of weights.
        private: task to its private values; None while it is planned.
    """

    tasks: Mapping[str, TaskState]
    layers: Sequence[Capacity]
    selected: Mapping[str, Mapping[str, int]]
    read: Mapping[str, Mapping[str, int]]
    private: Mapping[str, int | None]

    @cached_property
    def total(self) -> Capacity:
        """All layers' weights together by owner."""
        return Capacity.together("all layers", self.layers)

    @cached_property
    def used(self) -> dict[str, dict[str, int]]:
        """Each task's weights by owner: the weights it owns and the ones it reads."""
        owned, used = self.total.owned, {}
        for task, entry in self.tasks.items():
            read = self.selected.get(task, {name: owned[name] for name in entry.reads if name in owned})
            used[task] = {task: owned.get(task, 0), **read}
        return used

    def describe(self) -> str:
        """Write the counts as JSON, for `read_holdings`."""
        counts = {
            "owned": [list(layer.owned.values()) for layer in self.layers],
            "selected": self.selected,
            "read": {task: list(numbers.values()) for task, numbers in self.read.items()},
        }
        return json.dumps(counts)


def read_holdings(
    text: str,
    tasks: Mapping[str, TaskState],
    sizes: Mapping[str, tuple[tuple[int, ...], int]],
    private: Mapping[str, int | None],
) -> Holdings:
    """Read the JSON that `Holdings.describe` writes.

    Args:
        text: the JSON.
        tasks: by name, from `read_description`.
        sizes: layer to its (shape, number of weights that tasks can own).
        private: as in `Holdings`.
    Raises:
        ValueError: it is damaged, or counts weights of another network.
    """
    counts: Any = parsed({"counts": text}, "counts", Counts)
    owned, read = counts["owned"], counts["read"]
    if len(owned) != len(sizes) or any(len(row) != len(tasks) for row in owned):
        raise ValueError("counts: they are of other layers or tasks")
    layers = []
    for row, (name, (shape, size)) in zip(owned, sizes.items(), strict=True):
        if sum(row) > size:
            raise ValueError(f"counts: layer {name!r} has {size} weights, and tasks own {sum(row)}")
        layers.append(Capacity(name, shape, dict(zip(tasks, row, strict=True)), size - sum(row)))
    if not read.keys() == counts["selected"].keys() <= tasks.keys() or any(len(r) != len(sizes) for r in read.values()):
        raise ValueError("counts: they are of other layers or tasks")
    by_layer = {task: dict(zip(sizes, numbers, strict=True)) for task, numbers in read.items()}
    return Holdings(tasks, layers, counts["selected"], by_layer, private)


# ---- reading descriptions


Side = Annotated[int, Field(ge=1)]
"""Rows or columns of a block."""


class Row(TypedDict):
    """A task in a description."""

    task: str
    owner: Annotated[int, Field(ge=1, lt=2**20)]  # counts by id take memory for the highest one
    reads: list[str] | list[int]
    phase: Phase
    kept: NotRequired[dict[str, int]]
    granularity: NotRequired[str]
    blocks: NotRequired[dict[str, tuple[Side, Side]]]
    recipe: NotRequired[dict[str, Any]]
    norms: NotRequired[dict[str, float]]
    digest: NotRequired[str | None]
    base: NotRequired[str | None]


class Description(TypedDict):
    """JSON that `NetworkState.describe` writes."""

    version: int
    tasks: list[Row]
    active: str | None


def read_description(text: str | None) -> tuple[dict[str, TaskState], str | None]:
    """Read (tasks without tensors, active task) from the JSON that `NetworkState.describe` writes.

    Raises:
        ValueError: the description is missing, damaged, or from a later release.
    """
    if text is None:
        raise ValueError(f"the state has no {EXTRA_STATE}: it is not a MultiSubnetwork's")
    version = parsed({EXTRA_STATE: text}, EXTRA_STATE, dict[str, Any]).get("version")
    if isinstance(version, int) and version > STATE_VERSION:
        raise ValueError(f"the state has version {version}; this release reads up to {STATE_VERSION}")
    described: Any = parsed({EXTRA_STATE: text}, EXTRA_STATE, Description)
    rows, active = described["tasks"], described["active"]
    names = {row["owner"]: row["task"] for row in rows}
    if len(names) < len(rows) or len(set(names.values())) < len(rows):
        raise ValueError(f"{EXTRA_STATE} is damaged: a task, or an owner id, is there twice")
    if active not in (None, *names.values()):
        raise ValueError(f"{EXTRA_STATE} is damaged: the active task {active!r} is missing")
    tasks = {}
    for row in rows:
        check_task_name(task := row.pop("task"))
        unknown = [other for other in row["reads"] if isinstance(other, int) and other not in names]
        if unknown:
            raise ValueError(f"{EXTRA_STATE} is damaged: task {task!r} reads {unknown[0]}, which is no task")
        row["reads"] = tuple(names.get(other, other) for other in row["reads"])
        tasks[task] = TaskState(task, **row)
    return tasks, active
