"""Export a task of whole units as a smaller dense network without other tasks."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from msh.compat import BatchNormBase
from msh.subnetworks import MultiSubnetwork, TaskNetwork, UnitGraph, trace_units
from msh.subnetworks.small import SmallTensors
from msh.subnetworks.tensors import as_parameters, evaluating, put_tensor
from msh.subnetworks.tracing import CONVOLUTIONS, example_inputs
from msh.subnetworks.units import columns
from msh.subnetworks.views import cast_type


def is_sliceable(network: MultiSubnetwork, task: str) -> bool:
    """Tell whether a task owns whole units and reads no other task's weights, so that `sliced` can copy it."""
    sub = network.subnetwork(task)
    return sub.granularity not in ("weight", "block") and not sub.reads and type(sub.head) is nn.Linear


@torch.no_grad()
def sliced(network: MultiSubnetwork, task: str, example: Tensor | None = None) -> TaskNetwork:
    """Copy a task that was allocated in whole units into a smaller dense network, in evaluation mode.

    Its outputs equal the task's in evaluation mode up to rounding. Units that were not kept still have a bias, so that
    the last layer has constant features: the head's bias absorbs them. Weights of two-dimensional convolutions have
    channels-last memory: pooling and narrow layers, which dominate here, are several times as fast.

    Args:
        network: holds the task; not changed.
        task: a compact or frozen one, with a linear head.
        example: (batch, *input shape) of the backbone; zeros of its `input_shape` when None.
    Raises:
        ValueError: the task has another phase or kind of head, or reads other tasks' weights; or the backbone's units
            are not known.
    """
    sub = network.subnetwork(task)
    if sub.phase not in ("compact", "frozen"):
        raise ValueError(f"task {task!r} is {sub.phase}: only a compact or frozen task is exported")
    if sub.reads:
        raise ValueError(f"task {task!r} reads other tasks' weights: it cannot be exported alone")
    if type(sub.head) is not nn.Linear:
        raise ValueError(f"task {task!r} has a head of type {type(sub.head).__name__}: only a Linear one is exported")
    graph = trace_units(network, example=example)
    small = SmallTensors(network, task, graph)
    memo: dict[int, object] = {}
    backbone = copy.deepcopy(network.backbone)
    for name, tensor in _sliced_tensors(network, task, graph, small).items():
        copied = tensor.detach().clone()
        where, _, leaf = name.rpartition(".")
        put_tensor(
            backbone.get_submodule(where), leaf, copied if name in network.names.buffers else nn.Parameter(copied)
        )
    small.shrink(backbone)
    for where in (*(graph.layers[name].module for name in graph.small), *graph.norms):
        _resize(backbone.get_submodule(where))
    stem = copy.deepcopy(sub.stem, memo)
    as_parameters([(cast(nn.Module, memo[id(m)]), name) for m, name in sub.untrained if id(m) in memo])
    head, dtype = copy.deepcopy(sub.head), cast_type(weight for _, weight in network.weights())
    as_parameters([(head, name) for module, name in sub.untrained if module is sub.head])
    if graph.output is not None:
        constants = _constants(network, task, graph, example_inputs(network, example))
        features = columns(graph.output, small.units, len(constants), constants.device)
        head = _sliced_head(sub.head, features, constants)
    smaller = TaskNetwork(task, stem, backbone, head, frozen=False, cast=dtype).eval()
    return smaller.to(memory_format=torch.channels_last)


def _constants(network: MultiSubnetwork, task: str, graph: UnitGraph, example: Tensor) -> Tensor:
    """Compute the features of units that the task does not keep, from biases and normalisation alone: (features,)."""
    nothing = {name: weight.new_zeros(()).expand(weight.shape) for name, weight in network.weights()}
    tensors = {**nothing, **dict(network.subnetwork(task).private.items())}
    with evaluating(network.backbone):
        features: Tensor = functional_call(network.backbone, tensors, (example,))
    return features[0]


def _sliced_tensors(network: MultiSubnetwork, task: str, graph: UnitGraph, small: SmallTensors) -> dict[str, Tensor]:
    """Slice the task's weights, biases and normalisation to its units, under the backbone's names."""
    sub, masks = network.subnetwork(task), network.masks(task)
    tensors, rows = {}, {}
    for name, units in small.units.items():
        rows[graph.layers[name].module] = graph.layers[name].rows(units)
    for name, weight in network.weights():
        values = sub.values[name] if sub.phase == "compact" else weight[masks[name]]
        whole = torch.zeros_like(weight).masked_scatter(masks[name], values.to(weight))
        tensors[name] = small.weight(name, values) if name in small.shapes else whole
    for where, passed in graph.norms.items():
        rows[where] = columns(passed, small.units, 0, masks[passed.layer].device)
    for key, tensor in network.view(task).private(task).items():
        kind, _, name = key.partition(".")
        where = name.rpartition(".")[0]
        if kind != "private":
            continue
        tensors[name] = tensor[rows[where]] if where in rows and tensor.dim() else tensor
    return tensors


def _resize(module: nn.Module) -> None:
    """Set a module's size attributes from its tensors."""
    if isinstance(module, BatchNormBase):
        tensors = [tensor for tensor in (module.weight, module.running_mean) if tensor is not None]
        module.num_features = len(tensors[0]) if tensors else module.num_features
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, CONVOLUTIONS):
        module.out_channels, module.in_channels = module.weight.shape[:2]
        if module.groups > 1:  # a depthwise convolution
            module.groups = module.in_channels = module.out_channels


def _sliced_head(head: nn.Linear, features: Tensor, constants: Tensor) -> nn.Linear:
    """Slice the head to the marked features (features,); its bias absorbs the constants of the others."""
    smaller = nn.Linear(int(features.sum()), head.out_features, device=head.weight.device, dtype=head.weight.dtype)
    smaller.weight.copy_(head.weight[:, features])
    added = head.weight[:, ~features] @ constants[~features].to(head.weight)  # (outputs,)
    smaller.bias.copy_(added if head.bias is None else head.bias + added)
    return smaller
