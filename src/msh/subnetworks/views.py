"""Build a module tree per task: a copy of the backbone's structure with the task's tensors."""

from __future__ import annotations

import copy
import dis
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from threading import RLock
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from msh.compat import hook_registries, non_persistent, own_buffers
from msh.subnetworks.attention import TrainedAttention
from msh.subnetworks.description import Phase
from msh.subnetworks.small import SmallTensors, sliced_in_training
from msh.subnetworks.sparse import FrozenForm, LeanLinear, SparseForm, SparseLinear, TrainedLinear
from msh.subnetworks.tensors import TensorNames, buffer_of, put_tensor, same_bits

if TYPE_CHECKING:
    from msh.subnetworks.network import MultiSubnetwork
    from msh.subnetworks.subnetwork import Subnetwork

Place = tuple[nn.Module, str]
"""A module of a tree and the name of a tensor there."""
Weight = Tensor | SparseForm
LINEAR = (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)
"""Layers that may compute with a sparse weight."""
KNOWN = ("builtins", "torch.", "msh.", "transformers.", "timm.")
"""Modules of classes without checkpoints, or with a flag that turns them on."""


def copy_structure(module: nn.Module) -> nn.Module:
    """Copy a module tree but share its tensors and hooks: hooks registered on the original later run in the copy too.

    Raises:
        ValueError: an attribute in the tree cannot be copied.
    """
    memo: dict[int, Any] = {}
    for child in module.modules():
        for shared in (*child.parameters(recurse=False), *child.buffers(recurse=False), *hook_registries(child)):
            memo[id(shared)] = shared
        for value in vars(child).values():
            if isinstance(value, Tensor) and not value.is_leaf:  # computed by a hook, again in each forward pass
                memo[id(value)] = value.detach()
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:  # an attribute may raise any type
        raise ValueError(
            f"{type(module).__name__} cannot be copied, and each task needs a copy of its structure: {error}"
        ) from error


def find_places(tree: nn.Module, names: TensorNames) -> dict[str, list[Place]]:
    """Find every place in a backbone's copy that uses each tensor; tied tensors have several."""
    places = {name: [_place(tree, name)] for name in names.all}
    for again, name in names.tied.items():
        places[name].append(_place(tree, again))
    return places


def _place(tree: nn.Module, name: str) -> Place:
    path, _, leaf = name.rpartition(".")
    return tree.get_submodule(path), leaf


def is_linear_weight(place: Place) -> bool:
    """Tell whether a place is the weight of a layer that may compute with a sparse one."""
    holder, leaf = place
    return leaf == "weight" and type(holder) in LINEAR


def _takes_form(holder: nn.Module, leaf: str) -> bool:
    """Tell whether a tensor of a module in training is its form, in place of a parameter or buffer."""
    attention = isinstance(holder, TrainedAttention) and leaf == "in_proj_weight"
    return attention or (isinstance(holder, TrainedLinear) and leaf == "weight")


class TaskNetwork(nn.Module):
    """Chain one task's stem, backbone and head as an ordinary module: tensors in, tensors out.

    Args:
        task: its name.
        stem: from the task's input to the backbone's, or identity.
        backbone: computes the task's features.
        head: from the features to the task's outputs, or identity.
        frozen: stay in evaluation mode, also after `train()`.
        cast: type to which the input of a backbone is cast whose weights are not all float32; None: they are.
    """

    def __init__(
        self,
        task: str,
        stem: nn.Module,
        backbone: nn.Module,
        head: nn.Module,
        frozen: bool = True,
        cast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.task, self.frozen, self.cast_type = task, frozen, cast
        self.stem, self.backbone, self.head = stem, backbone, head
        self.train(not frozen)

    def train(self, mode: bool = True) -> TaskNetwork:
        """Set training mode, unless the task is frozen."""
        super().train(mode and not self.frozen)
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, *the task's input shape) to (batch, *the head's outputs)."""
        return self.answers(self.features(inputs))

    def features(self, inputs: Tensor) -> Tensor:
        """(batch, *the task's input shape) to the head's inputs, (batch, features)."""
        if not torch.jit.is_scripting() and self.cast_type is not None:  # type: ignore[attr-defined]
            cast: Tensor = self.backbone(cast_features(in_own_type(self.stem, inputs), self.cast_type))
            return cast
        features: Tensor = self.backbone(self.stem(inputs))
        return features

    def answers(self, features: Tensor) -> Tensor:
        """(batch, features) to (batch, *the head's outputs)."""
        if not torch.jit.is_scripting() and self.cast_type is not None:  # type: ignore[attr-defined]
            return in_own_type(self.head, features)
        outputs: Tensor = self.head(features)
        return outputs


def cast_type(weights: Iterable[Tensor]) -> torch.dtype | None:
    """Return the type to which a backbone's inputs are cast: its first weight's; None if all are float32."""
    types = [weight.dtype for weight in weights if weight.is_floating_point()]
    return types[0] if any(dtype != torch.float32 for dtype in types) else None


def half_precision(weights: Iterable[Tensor]) -> torch.dtype | None:
    """Return the weights' type if it is bfloat16 or float16, else None."""
    return next((w.dtype for w in weights if w.dtype in (torch.bfloat16, torch.float16)), None)


def cast_features(features: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast a backbone's input to the backbone's type, except tokens, and any input under autocast."""
    if not features.is_floating_point() or torch.is_autocast_enabled(features.device.type):
        return features
    return features.to(dtype)


def in_own_type(part: nn.Module, inputs: Tensor) -> Tensor:
    """Compute a stem's or head's outputs in its tensors' type; tokens are not cast."""
    own = next((p.dtype for p in (*part.parameters(), *part.buffers()) if p.is_floating_point()), inputs.dtype)
    outputs: Tensor = part(inputs.to(own) if inputs.is_floating_point() else inputs)
    return outputs


def frozen_network(
    network: MultiSubnetwork,
    sub: Subnetwork,
    weights: Mapping[str, tuple[Tensor | None, FrozenForm | None]],
    small: SmallTensors | None = None,
) -> TaskNetwork:
    """Build a frozen task's module.

    Args:
        network: holds the task.
        sub: the task's subnetwork, frozen.
        weights: tensor name to its weight (*shape), and the sparse form where that may cost less; a weight that only
            linear layers use may be None where there is a form.
        small: slices private tensors, where the weights are those of the task's units alone.
    """
    tree = copy_structure(network.backbone)
    places = find_places(tree, network.names)
    for name, (dense, form) in weights.items():
        for place in places[name]:
            if dense is not None:
                put_tensor(*place, dense)
            else:
                delattr(*place)
            if form is not None and is_linear_weight(place):
                place[0].__class__ = LeanLinear if dense is None else SparseLinear
                vars(place[0])["form"] = form
                if dense is None:
                    place[0].register_buffer("values", form.values)
    private = dict(sub.private.items())
    if small is not None:
        for name in network.names.buffers:  # unchanged ones are the backbone's
            private.setdefault(name, network.backbone.get_buffer(name))
        if (last := small.fit(tree)) is not None:
            vars(last)["others"] = small.others(network, private)
        private = {name: small.private(name, tensor) for name, tensor in private.items()}
    for name, tensor in private.items():
        for place in places[name]:
            put_tensor(*place, tensor)
    cast = cast_type(weight for _, weight in network.weights())
    return TaskNetwork(sub.task, copy_structure(sub.stem), tree, copy_structure(sub.head), cast=cast)


class TrainingNetwork(nn.Module):
    """Compute with a masked or compact task's current tensors, which it takes before each forward pass.

    After a forward pass with gradients the computed weights stay in place until the next one, so that a backward pass
    that recomputes parts of it (gradient checkpointing) uses the same ones.

    Args:
        network: holds the task.
        sub: the task's subnetwork.
    """

    def __init__(self, network: MultiSubnetwork, sub: Subnetwork) -> None:
        super().__init__()
        self.subnetwork = sub
        self.backbone = copy_structure(network.backbone)
        self._network = (network,)  # in a tuple: it is no part of this module
        self._places = find_places(self.backbone, network.names)
        for name in network.names.prunable:
            for holder, leaf in self._places[name]:
                if is_linear_weight((holder, leaf)):
                    holder.__class__ = TrainedLinear
                elif type(holder) is nn.MultiheadAttention and leaf == "in_proj_weight" and name in sub.blocks:
                    holder.__class__ = TrainedAttention
                if _takes_form(holder, leaf):
                    delattr(holder, leaf)
        for name in network.names.transient:
            for place in self._places[name]:
                put_tensor(*place, network.backbone.get_buffer(name).clone())
        self._modes = list(zip(network.backbone.modules(), self.backbone.modules(), strict=True))
        self._checkpoints = uses_checkpoints(self.backbone)
        self._cast = cast_type(weight for _, weight in network.weights())
        self._slices: SmallTensors | None = None
        self._last: nn.Module | None = None
        self._prepared_for: Phase | None = None
        self.training = network.training

    def train(self, mode: bool = True) -> TrainingNetwork:
        """Set the mode of the task's modules and of the network's backbone, which this module follows."""
        self.subnetwork.train(mode)
        self._network[0].backbone.train(mode)
        self.training = mode
        return self

    def prepared(self) -> TrainingNetwork:
        """Build the slices of a task of whole units, and put all tensors in place once.

        A compiler cannot follow the former, and after the latter finds the same attributes in each forward pass.
        """
        sub = self.subnetwork
        if self._prepared_for != sub.phase:
            with torch.inference_mode(False), torch.no_grad():  # the slices outlive an inference pass
                if (slices := sliced_in_training(self._network[0], sub.task)) is not None:
                    self._slices, self._last = slices, slices.fit(self.backbone)
                self._network[0].update_choice(sub)
                self._take(self._network[0].training_weights(sub, self._slices))
                self.drop()
            self._prepared_for = sub.phase
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, *the task's input shape) to (batch, *the head's outputs)."""
        self.prepared()
        self._network[0].update_choice(self.subnetwork)
        self._take(self._network[0].training_weights(self.subnetwork, self._slices))
        stem, head = self.subnetwork.stem, self.subnetwork.head
        features = stem(inputs) if self._cast is None else in_own_type(stem, inputs)
        if self._checkpoints and torch.is_grad_enabled() and features.is_floating_point():
            features = features if features.requires_grad else features.detach().requires_grad_()
        if self._cast is None:
            outputs: Tensor = head(self.backbone(features))
        else:
            outputs = in_own_type(head, self.backbone(cast_features(features, self._cast)))
        self._give_back()
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            self.drop()
        return outputs

    def _take(self, weights: Mapping[str, Weight]) -> None:
        for source, copied in self._modes:
            if copied.training != source.training:  # a module takes long to set an attribute
                copied.training = source.training
        for name, weight in weights.items():
            for holder, leaf in self._places[name]:
                if _takes_form(holder, leaf):
                    vars(holder)["form"] = weight  # not registered: it is no parameter of the layer
                else:
                    put_tensor(holder, leaf, weight.dense() if isinstance(weight, SparseForm) else weight)
        private = dict(self.subnetwork.private.items())
        if self._cast is not None:
            for name in self._network[0].names.parameters:
                private[name] = private[name].to(buffer_of(self._network[0].backbone, name).dtype)
        if (small := self._slices) is not None:
            if self._last is not None:
                vars(self._last)["others"] = small.others(self._network[0], private)
            private = {name: small.private(name, tensor) for name, tensor in private.items()}
        for name, tensor in private.items():
            for place in self._places[name]:
                put_tensor(*place, tensor)

    def _give_back(self) -> None:
        """Store buffers that the forward pass assigned, rather than changed in place; and changed slices."""
        private = self.subnetwork.private
        for name in self._network[0].names.buffers:
            for holder, leaf in self._places[name]:
                now = own_buffers(holder)[leaf]
                if now is None or now is private[name]:
                    continue
                if self._slices is None:
                    private.set(name, now.detach())
                else:
                    self._slices.put_back(name, private[name], now.detach())

    def changed_but_not_stored(self) -> list[str]:
        """Name the tensors that training has changed and files lack: other buffers, and attributes of modules.

        Those that have another shape now are left out: caches grow with their inputs.
        """
        found = []
        for (path, copied), (source, _) in zip(self.backbone.named_modules(), self._modes, strict=True):
            buffers, kept = own_buffers(source), own_buffers(copied)
            pairs = {leaf: (buffers[leaf], kept.get(leaf)) for leaf in non_persistent(source) if leaf in buffers}
            pairs |= {leaf: (value, vars(copied).get(leaf)) for leaf, value in vars(source).items()}
            for leaf, (before, now) in pairs.items():
                if not isinstance(before, Tensor) or not isinstance(now, Tensor) or before.shape != now.shape:
                    continue
                if not same_bits(before, now.to(before)):
                    found.append(f"{path}.{leaf}".lstrip("."))
        return found

    def drop(self) -> None:
        """Put the backbone's tensors in place of computed ones.

        These would be outputs of a compiled graph, and it would not find what it was compiled for.
        """
        backbone, names = self._network[0].backbone, self._network[0].names
        for name in (*names.prunable, *names.parameters, *names.buffers):
            for holder, leaf in self._places[name]:
                if _takes_form(holder, leaf):
                    vars(holder)["form"] = None
                elif leaf in own_buffers(holder):
                    put_tensor(holder, leaf, buffer_of(backbone, name))


def uses_checkpoints(tree: nn.Module) -> bool:
    """Find gradient checkpointing in a module tree's flags and code, unless that lets its inputs require gradients.

    Reentrant checkpoints pass no gradient where none of their inputs requires one. Libraries whose modules have a flag
    name checkpoints in their code also where these are off.
    """
    if sets_requires_grad(tree):  # of leaves alone: not of ours
        return False
    for module in tree.modules():
        if getattr(module, "gradient_checkpointing", False) or getattr(module, "grad_checkpointing", False):
            return True
    classes = {cls for module in tree.modules() for cls in type(module).__mro__ if not cls.__module__.startswith(KNOWN)}
    functions = (f for cls in classes for f in vars(cls).values() if inspect.isfunction(f))
    return any("checkpoint" in name for f in functions for name in f.__code__.co_names)


def sets_requires_grad(tree: nn.Module) -> bool:
    """Tell whether a forward pass sets `requires_grad` of a tensor, which torch allows of data alone."""
    functions = (getattr(type(module), "forward", None) for module in tree.modules())  # TorchScript has none
    return any(inspect.isfunction(function) and _sets(function) for function in functions)


def _sets(function: FunctionType) -> bool:
    """Tell whether a function sets a tensor's attribute `requires_grad`."""
    if "requires_grad" not in function.__code__.co_names:
        return False
    return any(
        step.opname == "STORE_ATTR" and step.argval == "requires_grad" for step in dis.get_instructions(function)
    )


class FrozenTasks:
    """Frozen tasks' modules, without the network: its free weights, its owners, and what no task computes with.

    Args:
        modules: by task.
        device: where they compute.
    """

    def __init__(self, modules: Mapping[str, nn.Module], device: torch.device) -> None:
        self.modules, self.device = dict(modules), device

    def module(self, task: str) -> nn.Module:
        """Return a task's module, in evaluation mode: see `MultiSubnetwork.module`."""
        return self.modules[task]


class ModuleCache:
    """Cache frozen tasks' modules; the least recently used are dropped first.

    Args:
        limit: bytes of computed weights; the module used last is always kept.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._modules: OrderedDict[str, tuple[TaskNetwork, int]] = OrderedDict()
        self._lock = RLock()

    def get(self, task: str, build: Callable[[], tuple[TaskNetwork, int]]) -> TaskNetwork:
        """Return the task's module, or build it: `build` returns (module, bytes)."""
        with self._lock:
            if task not in self._modules:
                self._modules[task] = build()
                self._drop()
            self._modules.move_to_end(task)
            return self._modules[task][0]

    def forget(self, task: str | None = None) -> None:
        """Drop a task's module, or all."""
        with self._lock:
            for name in [*self._modules] if task is None else [task]:
                self._modules.pop(name, None)

    def _drop(self) -> None:
        while len(self._modules) > 1 and sum(size for _, size in self._modules.values()) > self.limit:
            self._modules.popitem(last=False)

    def __iter__(self) -> Iterator[str]:
        return iter([*self._modules])

    def __deepcopy__(self, memo: dict[int, Any]) -> ModuleCache:
        return ModuleCache(self.limit)

    def __reduce__(self) -> tuple[Any, ...]:
        return ModuleCache, (self.limit,)
