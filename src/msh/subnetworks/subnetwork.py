"""Hold one task's subnetwork as a module: its tensors, head and stem, and its weights while they train."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from msh.compat import own_buffers
from msh.subnetworks.description import Phase, TaskState
from msh.subnetworks.sparse import Pattern
from msh.subnetworks.tensors import TensorBag, as_buffers, as_parameters, pack_bits


class Subnetwork(nn.Module):
    """One task's private tensors, and its weights while they train.

    Its phases: "new" (no weights yet) -> "masked" (parameters have the tensors' full shape; a mask marks the
    candidates, and pruning narrows it) -> "compact" (parameters are only the weights the task owns) -> "frozen" (no
    parameters at all).

    Attributes:
        task: the task's name.
        owner: its id in the owner maps.
        reads: earlier tasks whose weights it reads.
        granularity, blocks, recipe: as in `TaskState`.
        reading: uint8, (bytes,), the weights it reads of these tasks at a bit each; empty where it reads all.
        phase: see above.
        stem: from the task's input to the backbone's, or identity.
        head: from the backbone's features to the task's outputs, or identity.
        private: biases, normalisation affine and statistics, under the backbone's names.
        values: the weights in training: (*shape) while masked, (k,) while compact, none otherwise.
        masks: bool, (*shape), while masked: the candidates.
        scores: (*shape), while masked, if they are learned: a score per weight, which trains as the values do.
        kept: while scores choose: tensor name, or "" for all, to the number of weights it computes with.
        index: int64, (k,), while compact: flat indices of the values. Not saved: owner maps determine them.
        dense: (*shape), while compact: the buffer that the values are scattered into, where needed. Not saved.
        base: (*shape) or (), while masked or compact: the weights read from other tasks. Not saved.
        bits: int8, (*shape), while masked: the masks as bits. Not saved.
        chosen: (*shape), while scores choose: 0 at candidates that were not chosen, else 1. Not saved.
        patterns: while masked or compact: indices of the values, for tensors that may be used in sparse form.
        whole: names of tensors whose every weight is a candidate, which need no mask; to the row of an embedding that
            stays 0, if there is one.
        exposed: while `dense_leaves` is in use: tensor name to the weight (*shape) to compute with.
        written: tensor name to the version of its values when they were last scattered.
    """

    def __init__(self, task: str, owner: int, reads: tuple[str, ...], head: nn.Module | None, stem: nn.Module | None):
        super().__init__()
        self.task, self.owner, self.reads = task, owner, reads
        self.phase: Phase = "new"
        self.granularity = "weight"
        self.blocks: dict[str, tuple[int, int]] = {}
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
        self.whole: dict[str, int | None] = {}
        self.exposed: dict[str, Tensor] = {}
        self.untrained: list[tuple[nn.Module, str]] = []
        self.written: dict[str, int] = {}

    @property
    def scored(self) -> bool:
        """True if it has learned scores."""
        return any(True for _ in self.scores)

    @property
    def selective(self) -> bool:
        """True if it selects the weights of earlier tasks it reads, rather than reading all."""
        return any(True for _ in self.reading)

    def drop_training_state(self) -> None:
        """Drop values, masks, scores and the tensors that follow from them."""
        for bag in (self.values, self.masks, self.scores):
            bag.clear()
        self.kept = {}
        self.drop_derived_state()

    def narrow(self, name: str, held: Tensor) -> None:
        """Restrict a masked task to a subset of the weights it holds in a tensor: bool, (*shape)."""
        if self.selective:
            self.reading.set(name, pack_bits(held & ~self.masks[name]))
        self.masks.set(name, held & self.masks[name])

    def drop_derived_state(self) -> None:
        """Drop the tensors that follow from masks, owners and values."""
        for bag in (self.index, self.dense, self.base, self.bits, self.chosen):
            bag.clear()
        for derived in (self.whole, self.patterns, self.written):
            derived.clear()

    @property
    def own_modules(self) -> tuple[nn.Module, nn.Module]:
        """Stem and head."""
        return self.stem, self.head

    def make_untrainable(self) -> None:
        """Turn all parameters into buffers."""
        for module in (self.stem, self.head, self.private, self.values):
            self.untrained += as_buffers(module)

    def make_trainable(self) -> None:
        """Undo `make_untrainable`."""
        as_parameters([(module, name) for module, name in self.untrained if name in own_buffers(module)])
        self.untrained.clear()

    def as_state(self) -> TaskState:
        """Describe the task as plain data; tensors are shared."""
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
            blocks=self.blocks,
            recipe=self.recipe,
        )

    def private_tensors(self) -> dict[str, Tensor]:
        """List private tensors, stem and head as in `TaskState.private`."""
        tensors = {f"private.{name}": tensor.detach() for name, tensor in sorted(self.private.items())}
        for part in ("stem", "head"):
            state = getattr(self, part).state_dict()
            tensors |= {f"{part}.{name}": state[name] for name in sorted(state)}
        return tensors
