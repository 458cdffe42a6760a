"""One task's subnetwork as a module: its tensors, head and stem, and its weights while they train."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from msh.compat import own_buffers
from msh.subnetworks.sparse import Pattern
from msh.subnetworks.state import Phase, TaskState
from msh.subnetworks.tensors import TensorBag, as_buffers, as_parameters, pack_bits


class Subnetwork(nn.Module):
    """What one task has for itself, and its weights while they are in training.

    Its phases: "new" (no weights yet) -> "masked" (parameters have the tensors' full shape; a mask says which
    weights are still candidates, and pruning narrows it) -> "compact" (parameters are only the weights the task
    owns) -> "frozen" (no parameters at all).

    Attributes:
        task: the task's name.
        owner: its id in the owner maps.
        reads: earlier tasks whose weights it reads.
        granularity, recipe: as in `TaskState`.
        reading: uint8, (bytes,), a mask at a bit a weight: which of their weights it reads; nothing where it reads all.
        phase: see above.
        stem: from the task's input to the backbone's, or identity.
        head: from the backbone's features to the task's outputs, or identity.
        private: biases, normalisation affine and statistics, under the backbone's names.
        values: the weights in training: (*shape) while masked, (k,) while compact, none otherwise.
        masks: bool, (*shape), while masked: the candidates.
        scores: (*shape), while masked, if they are learned: a score per weight, which trains as the values do.
        kept: while scores choose: tensor name, or "" for all, to how many weights it computes with.
        index: int64, (k,), while compact: flat places of the values. Not saved: the owner maps say it.
        dense: (*shape), while compact: the buffer that the values are scattered into, where one is needed. Not saved.
        base: (*shape) or (), while masked or compact: what is read of other tasks. Not saved.
        bits: int8, (*shape), while masked: the masks as bits. Not saved.
        chosen: (*shape), while scores choose: 0 at candidates that are not chosen, else 1. Not saved.
        patterns: while masked or compact: places of the values, of tensors that may be computed with in sparse form.
    """

    def __init__(self, task: str, owner: int, reads: tuple[str, ...], head: nn.Module | None, stem: nn.Module | None):
        super().__init__()
        self.task, self.owner, self.reads = task, owner, reads
        self.phase: Phase = "new"
        self.granularity = "weight"
        self.recipe: dict[str, Any] = {}
        self.stem = stem if stem is not None else nn.Identity()
        self.head = head if head is not None else nn.Identity()
        self.private = TensorBag()
        self.reading = TensorBag()
        self.values = TensorBag()
        self.masks = TensorBag()
        self.scores = TensorBag()
        self.kept: dict[str, int] = {}
        self.chosen = TensorBag()
        self.index = TensorBag()
        self.dense = TensorBag()
        self.base = TensorBag()
        self.bits = TensorBag()
        self.patterns: dict[str, Pattern] = {}
        self.whole: set[str] = set()
        """Tensors whose every weight is a candidate: these need no masking."""
        self.untrained: list[tuple[nn.Module, str]] = []
        self.written: dict[str, int] = {}
        """Version of each tensor's values when they were last scattered."""

    @property
    def scored(self) -> bool:
        """Tell whether it has learned scores."""
        return any(True for _ in self.scores)

    @property
    def selective(self) -> bool:
        """Tell whether it selects which weights of earlier tasks it reads, rather than reading all."""
        return any(True for _ in self.reading)

    def drop_training_state(self) -> None:
        """Forget values, masks, scores and all that follows from them."""
        for bag in (self.values, self.masks, self.scores):
            bag.clear()
        self.kept = {}
        self.drop_derived_state()

    def narrow(self, name: str, held: Tensor) -> None:
        """Let a masked task hold these weights of a tensor only: bool, (*shape), a subset of what it holds."""
        if self.selective:
            self.reading.set(name, pack_bits(held & ~self.masks[name]))
        self.masks.set(name, held & self.masks[name])

    def drop_derived_state(self) -> None:
        """Forget what follows from masks, owners and values."""
        for bag in (self.index, self.dense, self.base, self.bits, self.chosen):
            bag.clear()
        for derived in (self.whole, self.patterns, self.written):
            derived.clear()

    @property
    def own_modules(self) -> tuple[nn.Module, nn.Module]:
        """Stem and head."""
        return self.stem, self.head

    def make_untrainable(self) -> None:
        """Turn what is left of parameters into buffers."""
        for module in (self.stem, self.head, self.private, self.values):
            self.untrained += as_buffers(module)

    def make_trainable(self) -> None:
        """Undo `make_untrainable`."""
        as_parameters([(module, name) for module, name in self.untrained if name in own_buffers(module)])
        self.untrained.clear()

    def as_state(self) -> TaskState:
        """This task as plain data; tensors are shared."""
        return TaskState(
            name=self.task,
            owner=self.owner,
            phase=self.phase,
            reads=self.reads,
            reading=dict(self.reading.items()),
            private=self.private_tensors(),
            values={name: tensor.detach() for name, tensor in self.values.items()},
            masks=dict(self.masks.items()),
            scores={name: tensor.detach() for name, tensor in self.scores.items()},
            kept=self.kept,
            granularity=self.granularity,
            recipe=self.recipe,
        )

    def private_tensors(self) -> dict[str, Tensor]:
        """Stem, head and private tensors: their names, prefixed by which of the three, to tensors."""
        found = {f"private.{name}": tensor.detach() for name, tensor in sorted(self.private.items())}
        for part in ("stem", "head"):
            state = getattr(self, part).state_dict()
            found.update({f"{part}.{name}": state[name] for name in sorted(state)})
        return found
