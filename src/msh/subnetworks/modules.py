"""List a backbone's modules: the role of each one's parameters, its granularities, and what its forward pass costs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from msh.draws import drawing_apart
from msh.subnetworks.blocks import block_sizes
from msh.subnetworks.groups import Groups
from msh.subnetworks.network import MultiSubnetwork
from msh.subnetworks.roles import Prunable
from msh.subnetworks.small import SmallTensors
from msh.subnetworks.tensors import TensorNames, evaluating, name_tensors
from msh.subnetworks.tracing import example_inputs, trace_units
from msh.subnetworks.views import frozen_network

ModuleRole = Literal["prunable", "private", "shared", "unused", ""]
PARAMETRIZATION = re.compile(r"\.?\bparametrizations\.\w+$")
"""End of the path of a module that holds the parts of another module's tensor."""


@dataclass(frozen=True)
class ModuleFacts:
    """One module of a backbone, or all of them together.

    Attributes:
        name: dotted path; the class's name for the backbone itself.
        role: of its own parameters. "unused": the features depend on none of them; else the first of "prunable",
            "private" and "shared" that one of them has; "": it has none, and computes with its inputs alone.
        weights: its prunable weights, each tensor counted at its first name.
        private: values of which each task has its own.
        shared: frozen values, which all tasks use.
        granularities: what tasks can keep of its weights; "nm": 2 of each 4; "unit": some of its units, or of those it
            reads.
        flops: of its own operations, in the forward pass of one example.
    """

    name: str
    role: ModuleRole
    weights: int
    private: int
    shared: int
    granularities: tuple[str, ...]
    flops: int


@dataclass(frozen=True)
class BackboneFacts:
    """A backbone's modules.

    Attributes:
        modules: those with parameters or operations of their own, in the order of a walk.
        note: why whole units do not work, or which layers stay whole; "" where all layers have units.
    """

    modules: list[ModuleFacts]
    note: str

    @property
    def total(self) -> ModuleFacts:
        """Add up the modules."""
        rows = self.modules
        weights, private, shared, flops = (
            sum(getattr(row, name) for row in rows) for name in ("weights", "private", "shared", "flops")
        )
        return ModuleFacts("total", "", weights, private, shared, (), flops)


def describe_modules(backbone: nn.Module, prunable: Prunable = None) -> BackboneFacts:
    """Describe a backbone's modules, by a forward pass of one example.

    Args:
        backbone: has `input_shape`, and `vocabulary` if it reads tokens. It is used up: a network takes it over.
        prunable: as in `MultiSubnetwork`.
    Raises:
        ValueError: several tasks cannot use the backbone, or it cannot compute an example.
    """
    names = name_tensors(backbone, prunable)
    flops, unused = _run(backbone, names)
    own = {path: _own_parameters(module, path, names) for path, module in backbone.named_modules()}
    shapes = {name: parameter.numel() for name, parameter in backbone.named_parameters()}
    network = MultiSubnetwork(backbone, prunable)
    blocks = {name for name, size in block_sizes(network).items() if size != (1, 1)}
    graphs = {"weight": set(names.prunable), "nm": set(Groups.of(network, 2, 4).inputs), "block": blocks}
    sizes, note = network.sizes(), ""
    try:
        graph = trace_units(network)
        graphs["unit"] = graph.small
        for name, why in list(graph.whole.items())[:1]:
            note = f"{len(graph.whole)} of {len(graph.layers)} layers stay whole, the first being {name} ({why})"
    except ValueError as error:
        note = str(error)
    modules: list[ModuleFacts] = []
    counted: set[str] = set()
    for path, tensors in own.items():
        if not tensors and not flops[path]:
            continue
        first = [name for name in tensors if name not in counted]
        counted.update(tensors)
        prunables = [name for name in tensors if name in sizes]
        modules.append(
            ModuleFacts(
                path or type(backbone).__name__,
                _role(tensors, names, unused),
                sum(sizes[name] for name in first if name in sizes),
                sum(shapes[name] for name in first if name in names.parameters),
                sum(shapes[name] for name in first if name in names.shared),
                tuple(name for name, layers in graphs.items() if prunables and layers.issuperset(prunables)),
                flops[path],
            )
        )
    return BackboneFacts(modules, note)


@torch.no_grad()
def flops_share(network: MultiSubnetwork, task: str) -> float:
    """Compute the FLOPs of a task's forward pass as a share of those of the dense backbone, in (0, 1].

    Args:
        network: holds the task.
        task: a compact or frozen one of whole units.
    """
    sub, small = network.subnetwork(task), SmallTensors(network, task)
    weights = {n: (w.new_zeros(small.shapes.get(n, tuple(w.shape))), None) for n, w in network.weights()}
    smaller, fused = frozen_network(network, sub, weights, small), torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # whose operations are not counted
    counts = []
    try:
        for backbone in (smaller.backbone, network.backbone):
            with evaluating(backbone), FlopCounterMode(display=False) as counter:
                backbone(example_inputs(network))
            counts.append(counter.get_total_flops())
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return float(counts[0] / counts[1])


def _own_parameters(module: nn.Module, path: str, names: TensorNames) -> list[str]:
    """List the parameters that a module itself holds, by their first names."""
    dotted = (f"{path}.{name}".lstrip(".") for name, _ in module.named_parameters(recurse=False))
    return [names.tied.get(name, name) for name in dotted]


def _role(tensors: Sequence[str], names: TensorNames, unused: set[str]) -> ModuleRole:
    if not tensors:
        return ""
    if unused.issuperset(tensors):
        return "unused"
    if any(name in names.prunable for name in tensors):
        return "prunable"
    return "private" if any(name in names.parameters for name in tensors) else "shared"


def _run(backbone: nn.Module, names: TensorNames) -> tuple[dict[str, int], set[str]]:
    """Compute one example's features: count each module's own operations, and find parameters without a part in them.

    Returns:
        (path of each module to its FLOPs, names of the parameters that get no gradient).
    """
    parameters = {name: p for name, p in backbone.named_parameters() if p.is_floating_point()}
    frozen = [p for p in parameters.values() if not p.requires_grad]
    example = _example(backbone, parameters)
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.mkldnn_rnn_layer: _recurrent_flops})
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with evaluating(backbone), drawing_apart(), torch.enable_grad():
            with counter:
                features: Tensor = backbone(example)
            gradients = torch.autograd.grad(features.sum(), list(parameters.values()), allow_unused=True)
    except Exception as error:  # a backbone may raise any type
        shape = list(example.shape[1:])
        raise ValueError(
            f"{type(backbone).__name__} cannot compute an example of the shape {shape}: {error}"
        ) from error
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
    unused = {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None}
    return _own_flops(backbone, counter.get_flop_counts()), unused


def _own_flops(backbone: nn.Module, counts: Mapping[str, Mapping[Any, int]]) -> dict[str, int]:
    """Subtract from each module's count, which includes the modules it calls, what these count themselves."""
    root = type(backbone).__name__
    paths = [path for path, _ in backbone.named_modules()]
    whole = {path: sum(counts.get(f"{root}.{path}".rstrip("."), {}).values()) for path in paths}
    own = dict(whole)
    for path in paths:
        above = path
        while above:
            above = above.rpartition(".")[0]
            if whole[above]:  # a list of modules is never called, and has no count
                own[above] -= whole[path]
                break
        if layer := PARAMETRIZATION.search(path):
            own[path[: layer.start()]] += own[path]
            own[path] = 0
    return own


def _example(backbone: Any, parameters: dict[str, nn.Parameter]) -> Tensor:
    """Make one example: tokens that are no padding where the backbone reads tokens, else numbers."""
    weight = next(iter(parameters.values()))
    if vocabulary := getattr(backbone, "vocabulary", None):
        token = (getattr(backbone, "padding", 0) + 1) % max(2, vocabulary)
        return torch.full((1, *backbone.input_shape), token, device=weight.device)
    return torch.zeros(1, *backbone.input_shape, dtype=weight.dtype, device=weight.device)


def _recurrent_flops(
    inputs: Sequence[int], from_inputs: Sequence[int], from_state: Sequence[int], *rest: Any, **others: Any
) -> int:
    """Count the FLOPs of a recurrent layer on the CPU: two products per step; inputs are (steps, batch, width)."""
    return 2 * prod(inputs[:-1]) * (prod(from_inputs) + prod(from_state))
