"""One network, many subnetworks: a dense tensor and an owner id per weight for each prunable tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from msh.names import one_of
from msh.subnetworks.allocation import FREE, Allocation, Capacity, CapacityError, count_capacity
from msh.subnetworks.forms import frozen_weight, prepare, shown_weight, training_weight, update_choice
from msh.subnetworks.initial import fresh_values, give_back, start_values
from msh.subnetworks.persistence import check_unread, describe, digest, readers_of, register_hooks
from msh.subnetworks.roles import Prunable
from msh.subnetworks.sparse import SparseForm
from msh.subnetworks.subnetwork import Subnetwork, check_task_name, private_order
from msh.subnetworks.tensors import (
    TaskDict,
    TensorBag,
    as_buffers,
    belongs,
    ids_of_tensors,
    name_tensors,
    pack_bits,
    restore,
    same_bits,
    tie_again,
    trainable,
    unpack_bits,
    wide_enough,
)
from msh.subnetworks.views import ModuleCache, TaskNetwork, TrainingNetwork, copy_structure, frozen_network
from msh.subnetworks.weight_norm import make_weight_norms_safe

Reuse = Literal["none", "all", "learned"]


class MultiSubnetwork(nn.Module):
    """A backbone whose weights belong to tasks.

    Wrapping turns the backbone's parameters into buffers: what trains are the subnetworks' own parameters.
    Weights that no task owns keep the values the backbone came with, so a pretrained backbone can start as such.

    Args:
        backbone: any module; its prunable tensors are found by walking it.
        prunable: which parameters tasks share weight by weight: a predicate of (module, name there, parameter), or
            patterns of dotted names such as "blocks.*.weight"; by the layers' roles when None (see `roles`). The rest
            (biases, normalisation) each task has for itself.
        cache_bytes: bound on the computed weights kept of frozen tasks in use; see `module`.
    Raises:
        ValueError: the backbone has no prunable tensor, or cannot be used by several tasks; the message says why.
    Source: Renn et al. 2022, arXiv 2207.08821; owner map as in Mallya and Lazebnik 2018, PackNet.
    """

    def __init__(self, backbone: nn.Module, prunable: Prunable = None, cache_bytes: int = 2**30) -> None:
        super().__init__()
        self.names = name_tensors(backbone, prunable)
        if not self.names.prunable:
            raise ValueError(f"{type(backbone).__name__} has no prunable tensor: nothing to allocate")
        as_buffers(backbone)
        make_weight_norms_safe(backbone)
        copy_structure(backbone)  # each task needs one: refused here rather than after training
        self.backbone = backbone
        self.owners = TensorBag()
        self.initial_norms = TensorBag()
        for name, weight in self.weights():
            self.owners.set(name, torch.zeros(weight.shape, dtype=torch.uint8, device=weight.device))
            self.initial_norms.set(name, weight.float().norm().reshape(()))
        self.subnetworks = TaskDict()
        self.active: str | None = None
        self._modules_in_use = ModuleCache(cache_bytes)
        self._in_training: dict[str, tuple[TrainingNetwork]] = {}
        register_hooks(self)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name, dense tensor (*shape)) of each prunable tensor; every task's weights, and the free ones."""
        for name in self.names.prunable:
            yield name, self.backbone.get_buffer(name)

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, in the order they were added."""
        return list(self.subnetworks)

    def subnetwork(self, task: str) -> Subnetwork:
        """The task's part of the network.

        Raises:
            KeyError: there is no such task.
        """
        if task not in self.subnetworks:
            raise KeyError(f"there is no task {task!r}; the tasks are {self.tasks}")
        found = self.subnetworks[task]
        assert isinstance(found, Subnetwork)
        return found

    def masks(self, task: str) -> dict[str, Tensor]:
        """The task's own weights: tensor name to bool (*shape)."""
        sub = self.subnetwork(task)
        if sub.phase == "masked":
            return {name: sub.masks[name].clone() for name in self.names.prunable}
        return {name: self.owners[name] == sub.owner for name in self.names.prunable}

    def reading(self, task: str) -> dict[str, Tensor]:
        """The weights of earlier tasks that a task reads: tensor name to bool (*shape)."""
        sub = self.subnetwork(task)
        return {name: self._read_mask(sub, name) for name in self.names.prunable}

    def read_counts(self, task: str) -> dict[str, int]:
        """How many weights a task reads of each task that it reads."""
        sub, reading = self.subnetwork(task), self.reading(task)
        theirs = {other: self.masks(other) for other in self.tasks if self.subnetwork(other).owner in sub.reads}
        return {other: sum(int((m & reading[name]).sum()) for name, m in theirs[other].items()) for other in theirs}

    def held(self, task: str) -> dict[str, Tensor]:
        """A task's own weights and, where it chooses what it reads, those of others: tensor name to bool (*shape)."""
        own, sub = self.masks(task), self.subnetwork(task)
        return {name: own[name] | self._read_mask(sub, name) for name in own} if sub.selective else own

    def free(self) -> dict[str, Tensor]:
        """Weights that no task owns: tensor name to bool (*shape)."""
        return {name: self.owners[name] == FREE for name in self.names.prunable}

    def sizes(self) -> dict[str, int]:
        """Tensor name to its number of weights."""
        return {name: weight.numel() for name, weight in self.weights()}

    def capacity(self) -> Capacity:
        """How full the network is."""
        names = {FREE: ""} | {self.subnetwork(task).owner: task for task in self.tasks}
        return count_capacity({name: self.owners[name] for name in self.names.prunable}, names)

    def readers(self, task: str) -> list[str]:
        """Tasks that read this task's weights."""
        return readers_of(self.subnetwork(task).owner, {other: self.subnetwork(other).reads for other in self.tasks})

    def digest(self, task: str) -> str:
        """SHA-256 of all that decides a task's outputs: weights it owns or reads, their places, its private tensors."""
        sub = self.subnetwork(task)
        weights = ((name, weight, self.owners[name] == sub.owner) for name, weight in self._effective(sub))
        unchanged = {f"private.{n}": self.backbone.get_buffer(n) for n in self.names.buffers if n not in sub.private}
        private = sub.private_tensors() | unchanged
        return digest(weights, {n: private[n] for n in sorted(private, key=private_order)}, dict(sub.reading.items()))

    # ---- the life of a task

    def add_task(
        self, task: str, head: nn.Module | None = None, stem: nn.Module | None = None, reuse: Reuse = "none"
    ) -> Subnetwork:
        """Add a task, with no weights yet.

        Args:
            task: its name; letters, digits, "_" and "-".
            head: from the backbone's features to the outputs; identity when None.
            stem: from the task's input to the backbone's; identity when None.
            reuse: "none" reads no other task's weights; "all" reads those of every task frozen so far; with
                "learned" those are candidates beside its own, and pruning chooses among both.
        Raises:
            ValueError: the name is taken or not allowed, or reuse is unknown.
        """
        check_task_name(task)
        if task in self.subnetworks:
            raise ValueError(f"there is already a task {task!r}")
        one_of("reuse", reuse, get_args(Reuse))
        known = ids_of_tensors([self.backbone, *(part for t in self.tasks for part in self.subnetwork(t).own_modules)])
        for part, module in (("stem", stem), ("head", head)):
            if module is not None and known & ids_of_tensors([module]):
                raise ValueError(f"the {part} of task {task!r} is a part of another task or of the backbone: copy it")
        taken = {self.subnetwork(other).owner for other in self.tasks}
        owner = next(i for i in range(1, len(taken) + 2) if i not in taken)
        frozen = [self.subnetwork(t).owner for t in self.tasks if self.subnetwork(t).phase == "frozen"]
        for name in self.names.prunable:
            self.owners.set(name, wide_enough(self.owners[name], owner))
        sub = Subnetwork(task, owner, tuple(frozen) if reuse != "none" else (), head, stem)
        for name in self.names.prunable if reuse == "learned" and frozen else ():
            sub.reading.set(name, pack_bits(self._read_mask(sub, name)))
        for name in self.names.parameters:
            sub.private.set(name, nn.Parameter(self.backbone.get_buffer(name).detach().clone()))
        for name in self.names.buffers:
            sub.private.set(name, self.backbone.get_buffer(name).detach().clone())
        self.subnetworks[task] = sub
        sub.to(next(self.weights())[1].device)
        return sub

    def begin(self, task: str, allocation: Allocation | None = None, generator: torch.Generator | None = None) -> None:
        """Give a new task its candidates: every free weight, at the scale the backbone came with; or an allocation.

        Args:
            task: a new one.
            allocation: fixed before, of weights that are free.
            generator: on the CPU, to draw the task's values anew; None: it starts from those that the backbone came
                with. What earlier tasks leave of these is biased: after a dozen tasks signals no longer pass deep nets.
        Raises:
            CapacityError: nothing is free, nor to be chosen for reading; or another task owns what was planned for it.
        """
        sub, free = self._in_phase(task, "new"), self.free()
        candidates = free if allocation is None else {n: allocation.masks[n].to(free[n].device) for n in free}
        if not sub.selective and not any(bool(mask.any()) for mask in candidates.values()):
            raise CapacityError(f"task {task!r} has nothing to train: no weight of the network is free")
        for name, mask in candidates.items():
            if taken := int((mask & ~free[name]).sum()):
                raise CapacityError(f"of the weights planned for task {task!r}, others own {taken} of layer {name!r}")
        for name, weight in self.weights():
            mask, base, initial_norm = candidates[name], self._read(sub, name), self.initial_norms[name]
            start = weight if generator is None else fresh_values(weight, initial_norm, generator)
            norm = None if allocation is None else allocation.norms[name]
            values = start_values(start, mask, base, initial_norm, sub.selective, norm)
            sub.values.set(name, nn.Parameter(values))
            sub.masks.set(name, mask)
        sub.phase = "masked"
        self.derive(sub)
        self.active = task

    def restrict(self, task: str, masks: Mapping[str, Tensor]) -> None:
        """Narrow the weights of a task in training; what falls outside is 0 (or what it reads there) from now on.

        Args:
            task: a masked task.
            masks: bool, (*shape) for each prunable tensor, each a subset of what it holds: see `held`.
        Raises:
            ValueError: a mask is missing, has another shape, or holds a weight that is not a candidate.
        """
        sub, held = self._in_phase(task, "masked"), self.held(task)
        for name in self.names.prunable:
            if name not in masks or masks[name].shape != sub.masks[name].shape:
                raise ValueError(f"task {task!r}: the mask of layer {name!r} is missing or has another shape")
            if bool((masks[name] & ~held[name]).any()):
                raise ValueError(f"task {task!r}: the mask of layer {name!r} holds weights that are not candidates")
        for name in self.names.prunable:
            sub.narrow(name, masks[name].to(self.owners[name].device))
        self.derive(sub)

    def compact(self, task: str) -> None:
        """Make the task's mask final: it owns these weights from now on, and trains nothing else.

        Its parameters are new objects afterwards: build the optimizer after this call.
        """
        sub = self._in_phase(task, "masked")
        for name in self.names.prunable:
            if count := int((sub.masks[name] & (self.owners[name] != FREE)).sum()):
                raise CapacityError(
                    f"task {task!r} holds {count} weights of layer {name!r} that another task has taken"
                )
        for name in self.names.prunable:
            mask = sub.masks[name]
            kept = sub.values[name].detach()[mask].clone()
            self.owners[name][mask] = sub.owner
            sub.values.set(name, trainable(kept))
        sub.end_choice(self.owners)
        sub.phase = "compact"
        self.derive(sub)

    @torch.no_grad()
    def freeze(self, task: str) -> None:
        """End a task's training: its weights go into the dense tensors, and nothing of it is a parameter any more."""
        sub = self.subnetwork(task)
        if sub.phase == "masked":
            self.compact(task)
        self._in_phase(task, "compact")
        for name, weight in self.weights():
            weight[self.owners[name] == sub.owner] = sub.values[name].detach().to(weight)
        sub.make_untrainable()
        sub.drop_training_state()
        sub.phase = "frozen"
        self._drop_unchanged(sub)
        self.forget_modules(task)

    def _drop_unchanged(self, sub: Subnetwork) -> None:
        """Forget buffers that a task has not changed: the backbone's are used instead, and stored once."""
        for name in self.names.buffers:
            if name in sub.private and same_bits(sub.private[name], self.backbone.get_buffer(name)):
                sub.private.drop(name)

    @torch.no_grad()
    def release(self, task: str) -> None:
        """Forget a task: its weights are overwritten with fresh random ones and become free.

        Raises:
            ValueError: other tasks read its weights.
        """
        sub = self.subnetwork(task)
        check_unread(task, self.readers(task))
        for place, (name, weight) in enumerate(self.weights()):
            give_back(weight, self.owners[name], sub.owner, self.initial_norms[name], place)
        del self.subnetworks[task]
        self.active = None if self.active == task else self.active
        self.forget_modules(task)

    # ---- computing

    def activate(self, task: str) -> None:
        """Make this the task that `forward` computes when it is given none."""
        self.subnetwork(task)
        self.active = task

    def forward(self, inputs: Tensor, task: str | None = None) -> Tensor:
        """Compute one task's outputs.

        A frozen task computes in evaluation mode, whatever mode the network is in.

        Args:
            inputs: (batch, *the task's input shape).
            task: which one; the active one when None.
        Returns:
            (batch, *the head's outputs).
        Raises:
            ValueError: no task is given and none is active.
        """
        task = task if task is not None else self.active
        if task is None:
            raise ValueError("no task is active: name one, or call activate first")
        sub = self.subnetwork(task)
        if sub.phase != "frozen" and torch.compiler.is_compiling():
            self.update_choice(sub)
            return self._run(sub, self.training_weights(sub), inputs)
        outputs: Tensor = self.module(task)(inputs)
        return outputs

    def module(self, task: str) -> nn.Module:
        """One task as a module of its own: (batch, *the task's input shape) to (batch, *the head's outputs).

        A frozen task's is built when first asked for, under a lock, and kept while the computed weights of all that
        are kept stay within `cache_bytes`. It is always in evaluation mode, holds ordinary buffers, and may be called
        by several threads, compiled and exported. That of a task in training takes the task's present tensors before
        each forward pass.

        Raises:
            KeyError: there is no such task.
            ValueError: the task has no weights yet.
        """
        sub = self.subnetwork(task)
        if sub.phase == "frozen":
            return self._modules_in_use.get(task, lambda: self._frozen_network(sub))
        if sub.phase == "new":
            raise ValueError(f"task {task!r} has no weights yet: call begin first")
        if task not in self._in_training:
            self._in_training[task] = (TrainingNetwork(self, sub),)
        return self._in_training[task][0]

    def forget_modules(self, task: str | None = None) -> None:
        """Drop modules that `module` keeps, of one task or of all: they are built again from the present tensors."""
        self._modules_in_use.forget(task)
        for name in [*self._in_training] if task is None else [task]:
            self._in_training.pop(name, None)

    def _run(self, sub: Subnetwork, weights: Mapping[str, Any], inputs: Tensor) -> Tensor:
        """A forward pass that torch.compile can follow from end to end."""
        tensors = {**weights, **dict(sub.private.items())}
        for again, name in self.names.tied.items():
            if name in tensors:
                tensors[again] = tensors[name]
        outputs: Tensor = sub.head(functional_call(self.backbone, tensors, (sub.stem(inputs),), tie_weights=False))
        return outputs

    def training_weights(self, sub: Subnetwork) -> dict[str, Tensor | SparseForm]:
        """Tensor name to what a masked or compact task computes with now; gradients reach the task's values."""
        return {name: training_weight(sub, name, weight) for name, weight in self.weights()}

    def update_choice(self, sub: Subnetwork) -> None:
        """Let the present scores choose what a task computes with, if it has scores that choose."""
        if sub.kept:
            update_choice(sub, self.held)

    def _frozen_network(self, sub: Subnetwork) -> tuple[TaskNetwork, int]:
        with torch.inference_mode(False), torch.no_grad():  # it outlives an inference pass
            weights = {n: shown_weight(w, mask, bool(sub.reads)) for n, w, mask in self._readable(sub)}
            size = sum(dense.nbytes for dense, _ in weights.values())
            return frozen_network(self, sub, weights), size

    def _effective(self, sub: Subnetwork) -> Iterator[tuple[str, Tensor]]:
        """(name, (*shape)): what the task computes with; 0 where it neither owns nor reads."""
        if sub.phase in ("masked", "compact"):
            self.update_choice(sub)
            for name, weight in self.training_weights(sub).items():
                yield name, (weight.dense() if isinstance(weight, SparseForm) else weight).detach()
            return
        for name, weight, mask in self._readable(sub):
            yield name, frozen_weight(weight, mask)

    def _readable(self, sub: Subnetwork) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(name, dense tensor (*shape), bool (*shape): what a frozen task owns or reads)."""
        for name, weight in self.weights():
            own = self.owners[name] == sub.owner
            yield name, weight, own | self._read_mask(sub, name) if sub.reads else own

    def _read(self, sub: Subnetwork, name: str) -> Tensor:
        """What the task reads of other tasks' weights in a tensor: (*shape), or () if nothing."""
        weight = self.backbone.get_buffer(name)
        nothing = weight.new_zeros(())
        return torch.where(self._read_mask(sub, name), weight, nothing) if sub.reads else nothing

    def _read_mask(self, sub: Subnetwork, name: str) -> Tensor:
        if name in sub.reading:
            return unpack_bits(sub.reading[name], self.owners[name].shape)
        return belongs(self.owners[name], torch.tensor(sub.reads))

    @torch.no_grad()
    def derive(self, sub: Subnetwork) -> None:
        """Rebuild what follows from masks, owners and values."""
        sub.drop_derived_state()
        if sub.phase in ("masked", "compact"):
            for name in self.names.prunable:
                held = sub.masks[name] if sub.phase == "masked" else self.owners[name] == sub.owner
                prepare(sub, name, held, self._read(sub, name))

    def _in_phase(self, task: str, phase: str) -> Subnetwork:
        sub = self.subnetwork(task)
        if sub.phase != phase:
            raise ValueError(f"task {task!r} is {sub.phase}; this needs a task that is {phase}")
        return sub

    def settle(self, task: str) -> None:
        """Undo what an optimizer has just done outside a masked task's mask, without waiting for the next forward."""
        sub = self.subnetwork(task)
        if sub.phase == "masked":
            for name in self.names.prunable:
                if name not in sub.whole:
                    restore(sub.values[name], sub.bits[name], sub.base[name])

    def _apply(self, fn: Any, recurse: bool = True) -> MultiSubnetwork:
        """As every move to another device or type does; buffers are moved one by one, so tie them again."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        tie_again(self.backbone, self.names)
        for task in self.tasks:
            self.derive(self.subnetwork(task))
        self.forget_modules()
        return self

    # ---- saving and loading

    def __getstate__(self) -> dict[str, Any]:
        """All but what is made again when needed: a copy computes in the same form, bit by bit, as the original."""
        return {**self.__dict__, "_in_training": {}}

    def get_extra_state(self) -> str:
        """The tasks as JSON: names, owner ids, what they read, phases. Plain text, so that loading runs no code."""
        return describe(self)

    def set_extra_state(self, state: str) -> None:
        """Taken over before the tensors are loaded; nothing is left to do."""
