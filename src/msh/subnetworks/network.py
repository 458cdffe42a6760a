"""One network, many subnetworks: a dense tensor and an owner id per weight for each prunable tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from msh.compat import Movable
from msh.errors import one_of
from msh.recipes import Recipe
from msh.subnetworks.allocation import FREE, Allocation, CapacityError
from msh.subnetworks.forms import prepare, shown_weight, training_weight, update_choice
from msh.subnetworks.initial import fresh_values, start_values
from msh.subnetworks.loading import register_hooks
from msh.subnetworks.roles import Prunable
from msh.subnetworks.sparse import SparseForm
from msh.subnetworks.state import Masks, NetworkState, check_task_name
from msh.subnetworks.subnetwork import Subnetwork
from msh.subnetworks.tensors import (
    TaskDict,
    TensorBag,
    as_buffers,
    ids_of_tensors,
    name_tensors,
    pack_bits,
    restore,
    same_bits,
    tie_again,
    trainable,
    wide_enough,
    widened,
)
from msh.subnetworks.views import (
    ModuleCache,
    TaskNetwork,
    TrainingNetwork,
    cast_features,
    cast_type,
    copy_structure,
    frozen_network,
    half_precision,
    in_own_type,
)
from msh.subnetworks.weight_norm import make_weight_norms_safe

Reuse = Literal["none", "all", "learned"]


class MultiSubnetwork(Movable):
    """A backbone whose weights belong to tasks.

    Wrapping turns the backbone's parameters into buffers: what trains are the subnetworks' own parameters.
    Weights that no task owns keep the values the backbone came with, so a pretrained backbone can start as such.

    Args:
        backbone: any module; its prunable tensors are found by walking it.
        prunable: which parameters tasks share weight by weight: a predicate of (module, name there, parameter), or
            patterns of dotted names such as "blocks.*.weight"; by the layers' roles when None (see `roles`). The rest
            (biases, normalisation) each task has for itself.
        recipe: how to build the backbone again; files carry it.
        master_weights: train a backbone that comes in bfloat16 or float16 in float32, and compute with these values
            rounded; False trains in its own type. Frozen tasks are stored in its own type either way.
        cache_bytes: bound on the computed weights kept of frozen tasks in use; see `module`.
    Raises:
        ValueError: the backbone has no prunable tensor, or cannot be used by several tasks; the message says why.
    Source: Renn et al. 2022, arXiv 2207.08821; owner map as in Mallya and Lazebnik 2018, PackNet.
    """

    def __init__(
        self,
        backbone: nn.Module,
        prunable: Prunable = None,
        recipe: Mapping[str, Any] | None = None,
        cache_bytes: int = 2**28,
        master_weights: bool = True,
    ) -> None:
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
            self.initial_norms.set(name, widened(weight).norm().reshape(()))
        self.recipe: Recipe = dict(recipe or {})
        self.master_weights = master_weights
        self.subnetworks = TaskDict()
        self.active: str | None = None
        self._modules_in_use = ModuleCache(cache_bytes)
        self._in_training: dict[str, TrainingNetwork] = {}
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

    @property
    def state(self) -> NetworkState:
        """The network as plain data; tensors are shared, so what its methods change in place is changed here too."""
        return self.view(*self.tasks)

    def view(self, *tasks: str) -> NetworkState:
        """`state`, with these tasks and those that they read alone."""
        names = self.names
        named = dict.fromkeys([*tasks, *(other for task in tasks for other in self.subnetwork(task).reads)])
        own = (*names.parameters, *names.buffers, *names.shared)
        return NetworkState(
            weights=dict(self.weights()),
            owners={name: self.owners[name] for name in names.prunable},
            norms={name: self.initial_norms[name] for name in names.prunable},
            defaults={name: self.backbone.get_buffer(name) for name in own},
            tasks={task: self.subnetwork(task).as_state() for task in named},
            active=self.active,
            tied={again: name for again, name in names.tied.items() if name in names.prunable},
            padding=names.padding,
            buffers=tuple(names.buffers),
            shared=tuple(names.shared),
            recipe=self.recipe,
        )

    def masks(self, task: str) -> Masks:
        """The task's own weights: tensor name to bool (*shape)."""
        return self.view(task).owned(task)

    def reading(self, task: str) -> Masks:
        """The weights of earlier tasks that a task reads: tensor name to bool (*shape)."""
        return self.view(task).read(task)

    def held(self, task: str) -> Masks:
        """Join a task's weights and, under `reuse=learned`, those it may read: tensor name to bool (*shape)."""
        return self.view(task).held(task)

    def free(self) -> Masks:
        """Weights that no task owns: tensor name to bool (*shape)."""
        return self.view().free()

    def sizes(self) -> dict[str, int]:
        """Tensor name to the number of weights that tasks can own."""
        return self.view().sizes()

    def digest(self, task: str) -> str:
        """SHA-256 of all that decides a task's outputs: weights it owns or reads, their places, private tensors."""
        self.settle(task)
        return self.view(task).digest(task)

    # ---- the life of a task

    def add_task(
        self,
        task: str,
        head: nn.Module | None = None,
        stem: nn.Module | None = None,
        reuse: Reuse = "none",
        granularity: str = "weight",
        recipe: Mapping[str, Any] | None = None,
    ) -> Subnetwork:
        """Add a task, with no weights yet.

        Args:
            task: its name; letters, digits, "_" and "-".
            head: from the backbone's features to the outputs; identity when None.
            stem: from the task's input to the backbone's; identity when None.
            reuse: "none" reads no other task's weights; "all" reads those of every task frozen so far; with
                "learned" those are candidates beside its own, and pruning chooses among both.
            granularity: what will be pruned as one: "weight", "neuron" or "channel".
            recipe: how to build head and stem again, and what else files should carry of the task.
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
        owner = next(i for i in count(1) if i not in taken)
        frozen = tuple(t for t in self.tasks if self.subnetwork(t).phase == "frozen")
        for name in self.names.prunable:
            self.owners.set(name, wide_enough(self.owners[name], owner))
        sub = Subnetwork(task, owner, frozen if reuse != "none" else (), head, stem)
        sub.granularity, sub.recipe = granularity, dict(recipe or {})
        for name in self.names.parameters:
            sub.private.set(name, nn.Parameter(self._master(self.backbone.get_buffer(name).detach().clone())))
        for name in self.names.buffers:
            sub.private.set(name, self.backbone.get_buffer(name).detach().clone())
        self.subnetworks[task] = sub
        if reuse == "learned" and frozen:
            for name, mask in self.reading(task).items():
                sub.reading.set(name, pack_bits(mask))
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
        base_of = self._read(sub)
        for name, weight in self.weights():
            mask, base, initial_norm = candidates[name], base_of[name], self.initial_norms[name]
            start = weight if generator is None else fresh_values(weight, initial_norm, generator)
            norm = None if allocation is None else allocation.norms[name]
            values = self._master(start_values(start, mask, base, initial_norm, sub.selective, norm))
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
        self._end_choice(sub)
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
        for name in self.names.parameters:
            sub.private.set(name, sub.private[name].to(self.backbone.get_buffer(name).dtype))
        sub.drop_training_state()
        sub.phase = "frozen"
        self._drop_unchanged(sub)
        self.forget_modules(task)

    def _drop_unchanged(self, sub: Subnetwork) -> None:
        """Forget buffers that a task has not changed: the backbone's are used instead, and stored once."""
        for name in self.names.buffers:
            if name in sub.private and same_bits(sub.private[name], self.backbone.get_buffer(name)):
                sub.private.drop(name)

    def _master(self, tensor: Tensor) -> Tensor:
        """A tensor in the type in which it trains."""
        return tensor.float() if self.master_weights and half_precision([tensor]) else tensor

    def _end_choice(self, sub: Subnetwork) -> None:
        """Forget masks and scores; drop from `reads` every task none of whose weights were selected."""
        for bag in (sub.masks, sub.scores):
            bag.clear()
        sub.kept = {}
        if sub.selective:
            counts = self.view(sub.task).read_counts(sub.task)
            sub.reads = tuple(other for other in sub.reads if counts[other])
        if not sub.reads:
            sub.reading.clear()

    @torch.no_grad()
    def release(self, task: str) -> None:
        """Forget a task: its weights are overwritten with fresh random ones and become free.

        Raises:
            KeyError: there is no such task.
            ValueError: other tasks read its weights.
        """
        self.subnetwork(task)
        self.state.release(task)
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
            self._in_training[task] = TrainingNetwork(self, sub)
        return self._in_training[task]

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
        cast = cast_type(weight for _, weight in self.weights())
        if cast is None:
            features = sub.stem(inputs)
            outputs: Tensor = sub.head(functional_call(self.backbone, tensors, (features,), tie_weights=False))
            return outputs
        for name in self.names.parameters:
            tensors[name] = tensors[name].to(self.backbone.get_buffer(name).dtype)
        features = cast_features(in_own_type(sub.stem, inputs), cast)
        return in_own_type(sub.head, functional_call(self.backbone, tensors, (features,), tie_weights=False))

    def training_weights(self, sub: Subnetwork) -> dict[str, Tensor | SparseForm]:
        """Tensor name to what a masked or compact task computes with now; gradients reach the task's values."""
        return {name: training_weight(sub, name, weight) for name, weight in self.weights()}

    def update_choice(self, sub: Subnetwork) -> None:
        """Let the present scores choose what a task computes with, if it has scores that choose."""
        if sub.kept:
            update_choice(sub, self.held)

    def _frozen_network(self, sub: Subnetwork) -> tuple[TaskNetwork, int]:
        with torch.inference_mode(False), torch.no_grad():  # it outlives an inference pass
            state = self.view(sub.task)
            own, read = state.owned(sub.task), state.read(sub.task) if sub.reads else None
            weights = {
                name: shown_weight(weight, own[name] if read is None else own[name] | read[name], bool(sub.reads))
                for name, weight in self.weights()
            }
            size = sum(dense.nbytes for dense, _ in weights.values())
            return frozen_network(self, sub, weights), size

    def _read(self, sub: Subnetwork) -> dict[str, Tensor]:
        """Gather the other tasks' weights that a task reads: tensor name to (*shape), or () if none."""
        nothing = {name: weight.new_zeros(()) for name, weight in self.weights()}
        if not sub.reads:
            return nothing
        masks = self.view(sub.task).read(sub.task)
        return {name: torch.where(masks[name], weight, nothing[name]) for name, weight in self.weights()}

    @torch.no_grad()
    def derive(self, sub: Subnetwork) -> None:
        """Rebuild what follows from masks, owners and values."""
        sub.drop_derived_state()
        if sub.phase in ("masked", "compact"):
            base, own = self._read(sub), self.view(sub.task).owned(sub.task)
            for name in self.names.prunable:
                row = self.names.padding.get(name)
                never = None if row is None or name in self.names.tied.values() else row
                weight = self.backbone.get_buffer(name)
                prepare(sub, name, own[name], base[name].to(sub.values[name].dtype), weight.dtype, never)

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

    def moved(self) -> None:
        """Tie buffers again, which are moved one by one, and rebuild what follows from them."""
        tie_again(self.backbone, self.names)
        for task in self.tasks:
            self.derive(self.subnetwork(task))
        self.forget_modules()

    # ---- saving and loading

    def __getstate__(self) -> dict[str, Any]:
        """All but what is made again when needed: a copy computes in the same form, bit by bit, as the original."""
        return {**self.__dict__, "_in_training": {}}

    def get_extra_state(self) -> str:
        """The tasks as JSON: see `NetworkState.describe`."""
        return self.state.describe()

    def set_extra_state(self, state: str) -> None:
        """Do nothing: it is read before the tensors are loaded."""
