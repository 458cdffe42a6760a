"""Hold many subnetworks in one network: a dense tensor and an owner id per weight for each prunable tensor."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from typing import Any, get_args

import torch
from torch import Tensor, nn

from msh.compat import Movable
from msh.errors import one_of
from msh.recipes import Recipe
from msh.subnetworks.allocation import FREE, Allocation, CapacityError
from msh.subnetworks.description import Phase, check_task_name
from msh.subnetworks.forms import prepare, shown_form, training_weight
from msh.subnetworks.initial import Initialisers, start_values
from msh.subnetworks.loading import register_hooks
from msh.subnetworks.options import Reuse
from msh.subnetworks.roles import Prunable
from msh.subnetworks.small import SmallTensors, computes_small, sliced_to_units
from msh.subnetworks.sparse import FrozenForm, SparseForm
from msh.subnetworks.state import Masks, NetworkState
from msh.subnetworks.subnetwork import Subnetwork
from msh.subnetworks.tensors import (
    TaskDict,
    TensorBag,
    as_buffers,
    buffer_of,
    count_true,
    ids_of_tensors,
    make_gradients_dense,
    name_tensors,
    only_at,
    pack_bits,
    restore,
    same_bits,
    selected,
    tie_again,
    trainable,
    wide_enough,
    widened,
)
from msh.subnetworks.unit_graph import UnitGraph
from msh.subnetworks.views import (
    FrozenTasks,
    ModuleCache,
    TaskNetwork,
    TrainingNetwork,
    copy_structure,
    find_places,
    frozen_network,
    half_precision,
    is_linear_weight,
)
from msh.subnetworks.weight_norm import make_weight_norms_safe

log = logging.getLogger(__name__)


class MultiSubnetwork(Movable):
    """Wrap a backbone whose weights belong to tasks.

    Wrapping turns the backbone's parameters into buffers: only the subnetworks have parameters to train. Weights that
    no task owns keep the backbone's values, so a pretrained backbone can start from them.

    Args:
        backbone: any module; its prunable tensors are found by walking it.
        prunable: selects the parameters that tasks share weight by weight: a predicate of (module, name there,
            parameter), or patterns of dotted names such as "blocks.*.weight"; by the layers' roles when None (see
            `roles`). Every task has a private copy of the others (biases, normalisation).
        recipe: how to rebuild the backbone; files carry it.
        master_weights: train a bfloat16 or float16 backbone in float32, and compute with these values rounded; False
            trains in the backbone's type. Frozen tasks are stored in the backbone's type either way.
        small_while_masked: compute a masked task of whole units as the smaller network of its candidates' units, once
            cuts have left few enough; torch.compile would compile again after each cut.
        cache_bytes: bound on the computed weights cached for frozen tasks; see `module`.
    Raises:
        ValueError: the backbone has no prunable tensor, or several tasks cannot use it; the message says why.
    Source: Renn et al. 2022, arXiv 2207.08821; owner map as in Mallya and Lazebnik 2018, PackNet.
    """

    def __init__(
        self,
        backbone: nn.Module,
        prunable: Prunable = None,
        recipe: Mapping[str, Any] | None = None,
        cache_bytes: int = 2**28,
        master_weights: bool = True,
        small_while_masked: bool = False,
    ) -> None:
        super().__init__()
        self.names = name_tensors(backbone, prunable)
        if not self.names.prunable:
            raise ValueError(f"{type(backbone).__name__} has no prunable tensor: nothing to allocate")
        as_buffers(backbone)
        make_weight_norms_safe(backbone)
        make_gradients_dense(backbone)
        copy_structure(backbone)  # each task needs a copy: fail here rather than after training
        self.backbone = backbone
        self.initialisers = Initialisers.of(backbone, self.names.prunable, self.names.were_parameters)
        self.owners = TensorBag()
        self.initial_norms = TensorBag()
        for name, weight in self.weights():
            self.owners.set(name, torch.zeros(weight.shape, dtype=torch.uint8, device=weight.device))
            self.initial_norms.set(name, widened(weight).norm().reshape(()))
        self.recipe: Recipe = dict(recipe or {})
        self.master_weights, self.small_while_masked = master_weights, small_while_masked
        self.subnetworks = TaskDict()
        self.active: str | None = None
        self._modules_in_use = ModuleCache(cache_bytes)
        self._in_training: dict[str, TrainingNetwork] = {}
        self.graphs: dict[str, UnitGraph] = {}
        """Granularity to the backbone's units, which `trace_units` finds once."""
        register_hooks(self)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, dense tensor (*shape)) of each prunable tensor: every task's weights, and the free ones."""
        for name in self.names.prunable:
            yield name, buffer_of(self.backbone, name)

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, in the order they were added."""
        return list(self.subnetworks)

    def subnetwork(self, task: str) -> Subnetwork:
        """Look a task's subnetwork up.

        Raises:
            KeyError: there is no such task.
        """
        if task not in self.subnetworks:
            raise KeyError(f"there is no task {task!r}; the tasks are {self.tasks}")
        sub = self.subnetworks[task]
        assert isinstance(sub, Subnetwork)
        return sub

    def in_phase(self, task: str, phase: Phase) -> Subnetwork:
        """Look up the subnetwork of a task that must be in a phase.

        Raises:
            KeyError: there is no such task.
            ValueError: it is in another phase.
        """
        sub = self.subnetwork(task)
        if sub.phase != phase:
            raise ValueError(f"task {task!r} is {sub.phase}; this needs a task that is {phase}")
        return sub

    @property
    def state(self) -> NetworkState:
        """The network as plain data; tensors are shared, so the state's in-place methods change the network."""
        return self.view(*self.tasks)

    def view(self, *tasks: str) -> NetworkState:
        """Restrict `state` to these tasks and the ones they read."""
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
            draws=self.initialisers.families,
            recipe=self.recipe,
        )

    def masks(self, task: str) -> Masks:
        """Mark the weights a task owns: tensor name to bool (*shape)."""
        return self.view(task).owned(task)

    def reading(self, task: str) -> Masks:
        """Mark the weights of earlier tasks that a task reads: tensor name to bool (*shape)."""
        return self.view(task).read(task)

    def held(self, task: str) -> Masks:
        """Join a task's weights and, under `reuse=learned`, those it may read: tensor name to bool (*shape)."""
        return self.view(task).held(task)

    def free(self) -> Masks:
        """Mark the weights that no task owns: tensor name to bool (*shape)."""
        return self.view().free()

    def sizes(self) -> dict[str, int]:
        """Count the weights of each tensor that tasks can own."""
        return self.view().sizes()

    def digest(self, task: str) -> str:
        """SHA-256 of all that decides a task's outputs: weights it owns or reads, their indices, private tensors."""
        self.settle(task)
        return self.view(task).digest(task)

    # ---- a task's phases

    def add_task(
        self,
        task: str,
        head: nn.Module | None = None,
        stem: nn.Module | None = None,
        reuse: Reuse = "none",
        granularity: str = "weight",
        recipe: Mapping[str, Any] | None = None,
        blocks: Mapping[str, tuple[int, int]] | None = None,
    ) -> Subnetwork:
        """Add a task, with no weights yet.

        Args:
            task: its name; letters, digits, "_" and "-".
            head: from the backbone's features to the outputs; identity when None.
            stem: from the task's input to the backbone's; identity when None.
            reuse: "none" reads no other task's weights; "all" reads the weights of every frozen task; with "learned"
                they are candidates like its own, and pruning selects among both.
            granularity: pruned as one: see `GRANULARITIES`.
            recipe: how to rebuild head and stem, and other facts about the task for its files.
            blocks: with granularity "block", `Blocks.sizes`: the task's layers compute in these blocks.
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
                raise ValueError(f"the {part} of task {task!r} shares a tensor with another task or backbone: copy it")
        taken = {self.subnetwork(other).owner for other in self.tasks}
        owner = next(i for i in count(1) if i not in taken)
        frozen = tuple(t for t in self.tasks if self.subnetwork(t).phase == "frozen")
        for name in self.names.prunable:
            self.owners.set(name, wide_enough(self.owners[name], owner))
        sub = Subnetwork(task, owner, frozen if reuse != "none" else (), head, stem)
        sub.granularity, sub.blocks, sub.recipe = granularity, dict(blocks or {}), dict(recipe or {})
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
        """Give a new task its candidates: every free weight, at the backbone's initial scale; or an allocation.

        Args:
            task: a new one.
            allocation: free weights, planned before.
            generator: on the CPU, to redraw the task's values; None starts from the backbone's. The free ones among
                these are biased, as earlier tasks took the largest: after a dozen tasks signals no longer pass deep
                networks.
        Raises:
            CapacityError: no weight is free or readable; or another task owns weights planned for this one.
            ValueError: the allocation has no mask for a layer, or one of another shape.
        """
        sub, free = self.in_phase(task, "new"), self.free()
        if allocation is not None and (missing := [n for n in free if n not in allocation.masks]):
            raise ValueError(f"task {task!r}: no mask is allocated to it in layer {missing[0]!r}")
        candidates = free if allocation is None else {n: allocation.masks[n].to(free[n].device) for n in free}
        if not sub.selective and not any(bool(mask.any()) for mask in candidates.values()):
            raise CapacityError(f"task {task!r} has nothing to train: no weight of the network is free")
        for name, mask in candidates.items():
            if mask.shape != free[name].shape:
                raise ValueError(f"task {task!r}: the mask allocated to it in layer {name!r} has another shape")
            if taken := count_true(mask & ~free[name]):
                raise CapacityError(f"task {task!r}: other tasks own {taken} weights allocated to it in layer {name!r}")
        base_of = self._read(sub)
        for name, weight in self.weights():
            mask, base, initial_norm = candidates[name], base_of[name], self.initial_norms[name]
            start = weight if generator is None else self.initialisers.draw(name, weight, initial_norm, generator)
            norm = None if allocation is None else allocation.norms[name]
            values = self._master(start_values(start, mask, base, initial_norm, sub.selective, norm))
            sub.values.set(name, nn.Parameter(values))
            sub.masks.set(name, mask)
        sub.phase = "masked"
        self.derive(sub)
        self.active = task

    def restrict(self, task: str, masks: Mapping[str, Tensor]) -> None:
        """Narrow the weights of a task in training; weights outside become 0 (or the weight it reads there).

        Args:
            task: a masked task.
            masks: bool, (*shape) for each prunable tensor, each a subset of `held`.
        Raises:
            ValueError: a mask is missing, has another shape, or marks a weight that is not a candidate.
        """
        sub, held = self.in_phase(task, "masked"), self.held(task)
        for name in self.names.prunable:
            if name not in masks or masks[name].shape != sub.masks[name].shape:
                raise ValueError(f"task {task!r}: the mask of layer {name!r} is missing or has another shape")
            if bool((masks[name] & ~held[name]).any()):
                raise ValueError(f"task {task!r}: the mask of layer {name!r} marks weights that are not candidates")
        for name in self.names.prunable:
            sub.narrow(name, masks[name].to(self.owners[name].device))
        self.derive(sub)

    def compact(self, task: str) -> None:
        """Make the task's mask final: the task owns these weights, and trains no others.

        Build the optimizer after this call: it replaces the task's parameters.

        Raises:
            CapacityError: another task has taken a weight of the mask.
        """
        sub = self.in_phase(task, "masked")
        for name in self.names.prunable:
            if taken := count_true(sub.masks[name] & (self.owners[name] != FREE)):
                raise CapacityError(f"task {task!r} holds {taken} weights of layer {name!r} that another task owns")
        for name in self.names.prunable:
            mask = sub.masks[name]
            values = selected(sub.values[name], mask).clone()  # (k,), in memory of torch's
            self.owners[name][mask] = sub.owner
            sub.values.set(name, trainable(values))
        self._end_choice(sub)
        sub.phase = "compact"
        self.derive(sub)
        if task in self._in_training:  # now, as a compiler could not
            self._in_training[task].prepared()

    @torch.no_grad()
    def freeze(self, task: str) -> None:
        """End a task's training: write its weights into the dense tensors, and turn its parameters into buffers."""
        sub = self.subnetwork(task)
        if sub.phase == "masked":
            self.compact(task)
        self.in_phase(task, "compact")
        self._warn_of_lost(task)
        for name, weight in self.weights():
            weight[self.owners[name] == sub.owner] = sub.values[name].detach().to(weight)
        sub.make_untrainable()
        for name in self.names.parameters:
            sub.private.set(name, sub.private[name].to(self.backbone.get_buffer(name).dtype))
        sub.drop_training_state()
        sub.phase = "frozen"
        self._drop_unchanged(sub)
        self.forget_modules(task)

    def _warn_of_lost(self, task: str) -> None:
        trained = self._in_training.get(task)
        if trained is not None and (lost := trained.changed_but_not_stored()):
            log.warning(
                "task %s: what training has written into %s is lost, as no file holds it: register such tensors as "
                "persistent buffers",
                *(task, ", ".join(lost)),
            )

    def _drop_unchanged(self, sub: Subnetwork) -> None:
        """Drop buffers that a task has not changed: it uses the backbone's, which are stored once."""
        for name in self.names.buffers:
            if name in sub.private and same_bits(sub.private[name], self.backbone.get_buffer(name)):
                sub.private.drop(name)

    def _master(self, tensor: Tensor) -> Tensor:
        """Cast a tensor to the type in which it trains."""
        return tensor.float() if self.master_weights and half_precision([tensor]) else tensor

    def _end_choice(self, sub: Subnetwork) -> None:
        """Drop masks and scores, and from `reads` every task none of whose weights were selected."""
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
        """Remove a task: its weights become free and are overwritten with fresh random ones.

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
        """Make this the default task of `forward`."""
        self.subnetwork(task)
        self.active = task

    def forward(self, inputs: Tensor, task: str | None = None) -> Tensor:
        """Compute one task's outputs.

        A frozen task computes in evaluation mode, whatever mode the network is in.

        Args:
            inputs: (batch, *the task's input shape).
            task: its name; the active task when None.
        Returns:
            (batch, *the head's outputs).
        Raises:
            ValueError: `task` is None and no task is active.
        """
        task = task if task is not None else self.active
        if task is None:
            raise ValueError("no task is active: pass a task, or call activate first")
        if torch.compiler.is_compiling():
            from msh.subnetworks.uncompiled import module_of

            module = module_of(self, task)
        else:
            module = self.module(task)
        outputs: Tensor = module(inputs)
        return outputs

    def module(self, task: str) -> nn.Module:
        """Build one task's module: (batch, *the task's input shape) to (batch, *the head's outputs).

        A frozen task's module is built on first use, under a lock, and cached while the computed weights of all
        cached modules stay within `cache_bytes`. It is always in evaluation mode, holds ordinary buffers, and may be
        called by several threads, compiled and exported. The module of a task in training takes the task's current
        tensors before each forward pass.

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
        return self._in_training[task].prepared()

    def forget_modules(self, task: str | None = None) -> None:
        """Drop the cached module of a task, or all: `module` rebuilds them from the current tensors."""
        self._modules_in_use.forget(task)
        for name in [*self._in_training] if task is None else [task]:
            self._in_training.pop(name, None)

    def training_weights(self, sub: Subnetwork, small: SmallTensors | None = None) -> dict[str, Tensor | SparseForm]:
        """Compute a masked or compact task's weights by tensor name; gradients reach the task's values.

        Args:
            sub: the task's subnetwork.
            small: the task's slices, for the weights of its units alone.
        """
        sliced = {} if small is None else small.shapes
        weights: dict[str, Tensor | SparseForm] = {}
        for name, weight in self.weights():
            if small is not None and name in sliced:
                if sub.phase == "masked" and name not in sub.whole:
                    restore(sub.values[name], sub.bits[name], sub.base[name])
                form = small.form(name, sub.values[name])
                weights[name] = form if isinstance(form, SparseForm) else form.to(weight.dtype)
            else:
                weights[name] = training_weight(sub, name, weight)
        return weights

    def update_choice(self, sub: Subnetwork) -> None:
        """Select a task's weights by its current scores, if it has scores that choose."""
        if sub.kept:
            from msh.subnetworks.uncompiled import update_choice

            update_choice(sub, self.held)

    def without_rest(self) -> FrozenTasks | None:
        """Build the modules of all tasks without weights that they do not compute with.

        Linear layers that may be sparse hold the task's values alone, and make a dense weight when an input first
        needs it; so these modules cannot be exported.

        Returns:
            The modules, which do not hold the network; None where they take more than `cache_bytes`, or a task is
            still in training.
        """
        modules, size = {}, 0
        for task in self.tasks:
            if (sub := self.subnetwork(task)).phase != "frozen" or size > self._modules_in_use.limit:
                return None
            modules[task], own = self._frozen_network(sub, lean=True)
            size += own
        if size > self._modules_in_use.limit:
            return None
        return FrozenTasks(modules, next(self.weights())[1].device)

    def _frozen_network(self, sub: Subnetwork, lean: bool = False) -> tuple[TaskNetwork, int]:
        """Build a frozen task's module; `lean`: see `without_rest`. Return it, and the bytes of its weights."""
        with torch.inference_mode(False), torch.no_grad():  # the module outlives an inference pass
            state = self.view(sub.task)
            owned = {} if sub.reads else state.owned(sub.task)
            weights: dict[str, tuple[Tensor | None, FrozenForm | None]] = {}
            size = 0
            small = sliced_to_units(self, sub.task)
            places = find_places(self.backbone, self.names) if lean and owned else {}
            for name in self.names.prunable:
                if small is not None and name in small.shapes:
                    rest = not (lean and all(map(is_linear_weight, places[name])))
                    weights[name], bytes_of = _shown(small.form(name, state.weights[name][owned[name]]), rest)
                    size += bytes_of
                    continue
                if lean and owned and all(map(is_linear_weight, places[name])):
                    form = shown_form(state.weights[name], owned[name], sub.blocks.get(name))
                    if form is not None:
                        weights[name], size = (None, form), size + 2 * form.sparse().nbytes  # and a column each
                        continue
                dense = only_at(owned[name], state.weights[name]) if owned else state.weight(sub.task, name)
                weights[name] = dense, shown_form(dense, owned[name], sub.blocks.get(name), dense) if owned else None
                size += dense.nbytes
            return frozen_network(self, sub, weights, small), size

    def _read(self, sub: Subnetwork) -> dict[str, Tensor]:
        """Gather the other tasks' weights that a task reads: tensor name to (*shape), or () if none."""
        if not sub.reads:
            return {name: weight.new_zeros(()) for name, weight in self.weights()}
        masks = self.view(sub.task).read(sub.task)
        return {name: only_at(masks[name], weight) for name, weight in self.weights()}

    @torch.no_grad()
    def derive(self, sub: Subnetwork) -> None:
        """Rebuild the tensors that follow from masks, owners and values."""
        sub.drop_derived_state()
        if self.small_while_masked and computes_small(sub):
            self.forget_modules(sub.task)  # its slices follow from the masks
        if sub.phase in ("masked", "compact"):
            base, own = self._read(sub), self.view(sub.task).owned(sub.task)
            for name in self.names.prunable:
                row = self.names.padding.get(name)
                never = None if row is None or name in self.names.tied.values() else row
                weight = self.backbone.get_buffer(name)
                prepare(sub, name, own[name], base[name].to(sub.values[name].dtype), weight.dtype, never)

    def settle(self, task: str) -> None:
        """Undo an optimizer's changes outside a masked task's mask now, rather than in the next forward pass."""
        sub = self.subnetwork(task)
        if sub.phase == "masked":
            for name in self.names.prunable:
                if name not in sub.whole:
                    restore(sub.values[name], sub.bits[name], sub.base[name])

    def moved(self) -> None:
        """Tie buffers again, which are moved one by one, and rebuild the tensors that follow from them."""
        tie_again(self.backbone, self.names)
        for task in self.tasks:
            self.derive(self.subnetwork(task))
        self.forget_modules()

    # ---- saving and loading

    def __getstate__(self) -> dict[str, Any]:
        """Leave out modules that are rebuilt when needed: a copy computes bitwise as the original."""
        return {**self.__dict__, "_in_training": {}}

    def get_extra_state(self) -> str:
        """Describe the tasks as JSON: see `NetworkState.describe`."""
        return self.state.describe()

    def set_extra_state(self, state: str) -> None:
        """Do nothing: the description is read before the tensors are loaded."""


def _shown(weight: Tensor | SparseForm, rest: bool) -> tuple[tuple[Tensor | None, FrozenForm | None], int]:
    """Return a small weight of a frozen task as `frozen_network` takes it, and its bytes; `rest`: also as a matrix."""
    if not isinstance(weight, SparseForm):
        return (weight, None), weight.nbytes
    dense, values = weight.dense() if rest else None, weight.sparse()
    return (dense, FrozenForm(weight.pattern, values, dense)), 2 * values.nbytes if dense is None else dense.nbytes


@contextmanager
def dense_leaves(network: MultiSubnetwork, task: str) -> Iterator[dict[str, Tensor]]:
    """Compute a compact task with full-size weights, whose gradients reach free weights too, inside the context.

    Yields:
        Tensor name to (*shape), a leaf: the task's values, what it reads, and 0 elsewhere.
    """
    sub = network.in_phase(task, "compact")
    leaves = {name: tensor.requires_grad_() for name, tensor in dense_values(network, task).items()}
    network.forget_modules(task)
    sub.exposed = dict(leaves)
    try:
        yield leaves
    finally:
        sub.exposed = {}
        network.forget_modules(task)


def dense_values(network: MultiSubnetwork, task: str) -> dict[str, Tensor]:
    """Write a compact task's values between what it reads, or zeros: tensor name to (*shape)."""
    sub, dense = network.subnetwork(task), {}
    for name, weight in network.weights():
        values = sub.values[name].detach()
        base = sub.base[name].to(values.dtype).expand(weight.shape).reshape(-1)
        dense[name] = base.index_copy(0, sub.index[name], values).view(weight.shape)
    return dense
