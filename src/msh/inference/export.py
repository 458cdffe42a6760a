"""A task of whole units as a network of its own: smaller, dense, with nothing of other tasks."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from msh.compat import BatchNormBase
from msh.subnetworks import MultiSubnetwork, TaskNetwork, UnitGraph, trace_units
from msh.subnetworks.tensors import as_parameters, evaluating, put_tensor
from msh.subnetworks.tracing import CONVOLUTIONS, example_inputs
from msh.subnetworks.units import columns, owned_units
from msh.subnetworks.views import cast_type


@torch.no_grad()
def sliced(network: MultiSubnetwork, task: str, example: Tensor | None = None) -> TaskNetwork:
    """Copy a task that was allocated in whole units into a smaller dense network, in evaluation mode.

    Its outputs are those of the task in evaluation mode, but for the rounding of sums. Units that were not kept
    still have a bias of their own, so that the last layer's are constant features: the head's bias takes them up.
    Weights of two-dimensional convolutions lie in memory with the channels last: pooling and narrow layers, which are
    what is left to compute, are several times as fast so.

    Args:
        network: that holds the task; nothing of it changes.
        task: a compact or frozen one, with a linear head.
        example: (batch, *input shape) of the backbone; zeros of its `input_shape` when None.
    Raises:
        ValueError: the task is in another phase, reads other tasks' weights, was not allocated in whole units, or has
            another kind of head; or the backbone's units are not known.
    """
    sub = network.subnetwork(task)
    if sub.phase not in ("compact", "frozen"):
        raise ValueError(f"task {task!r} is {sub.phase}: only a compact or frozen task is exported")
    if sub.reads:
        raise ValueError(f"task {task!r} reads other tasks' weights: it is no smaller network of its own")
    if type(sub.head) is not nn.Linear:
        raise ValueError(f"task {task!r} has a head of type {type(sub.head).__name__}: only a Linear one is exported")
    masks = network.masks(task)
    graph = trace_units(network, "channel", example)
    units = owned_units(graph, task, masks)
    constants = _constants(network, task, graph, example_inputs(network, example))
    memo: dict[int, object] = {}
    backbone = copy.deepcopy(network.backbone)
    for name, tensor in _kept_tensors(network, task, graph, units).items():
        copied = tensor.detach().clone()
        where, _, leaf = name.rpartition(".")
        put_tensor(
            backbone.get_submodule(where), leaf, copied if name in network.names.buffers else nn.Parameter(copied)
        )
    for where in (*(layer.module for layer in graph.layers.values()), *graph.norms):
        _resize(backbone.get_submodule(where))
    stem = copy.deepcopy(sub.stem, memo)
    as_parameters([(cast(nn.Module, memo[id(m)]), name) for m, name in sub.untrained if id(m) in memo])
    kept = columns(graph.output, units, len(constants), constants.device)
    head, dtype = _sliced_head(sub.head, kept, constants), cast_type(weight for _, weight in network.weights())
    smaller = TaskNetwork(task, stem, backbone, head, frozen=False, cast=dtype).eval()
    return smaller.to(memory_format=torch.channels_last)


def _constants(network: MultiSubnetwork, task: str, graph: UnitGraph, example: Tensor) -> Tensor:
    """(features,): what units that the task does not keep give, from biases and normalisation alone."""
    nothing = {name: weight.new_zeros(()).expand(weight.shape) for name, weight in network.weights()}
    tensors = {**nothing, **dict(network.subnetwork(task).private.items())}
    with evaluating(network.backbone):
        features: Tensor = functional_call(network.backbone, tensors, (example,))
    return features[0]


def _kept_tensors(network: MultiSubnetwork, task: str, graph: UnitGraph, units: dict[str, Tensor]) -> dict[str, Tensor]:
    """The task's weights, biases and normalisation, of its own units only, under the backbone's names."""
    sub, masks = network.subnetwork(task), network.masks(task)
    found, places = {}, {}
    for name, weight in network.weights():
        layer = graph.layers[name]
        own = sub.values[name] if sub.phase == "compact" else weight[masks[name]]
        found[name] = own.view(int(units[name].sum()), -1, *layer.shape[2:])  # row by row, as masks go
        places[layer.module] = units[name]
    for where, passed in graph.norms.items():
        places[where] = columns(passed, units, 0, next(iter(units.values())).device)
    for key, tensor in network.view(task).private(task).items():
        kind, _, name = key.partition(".")
        where = name.rpartition(".")[0]
        if kind != "private":
            continue
        found[name] = tensor[places[where]] if where in places and tensor.dim() else tensor
    return found


def _resize(module: nn.Module) -> None:
    """Let a module's own account of its sizes be that of its tensors."""
    if isinstance(module, BatchNormBase):
        tensors = [tensor for tensor in (module.weight, module.running_mean) if tensor is not None]
        module.num_features = len(tensors[0]) if tensors else module.num_features
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    else:
        assert isinstance(module, CONVOLUTIONS)
        module.out_channels, module.in_channels = module.weight.shape[:2]


def _sliced_head(head: nn.Linear, kept: Tensor, constants: Tensor) -> nn.Linear:
    """The head on the features kept; its bias takes up what the others add."""
    smaller = nn.Linear(int(kept.sum()), head.out_features, device=head.weight.device, dtype=head.weight.dtype)
    smaller.weight.copy_(head.weight[:, kept])
    added = head.weight[:, ~kept] @ constants[~kept].to(head.weight)
    smaller.bias.copy_(added if head.bias is None else head.bias + added)
    return smaller
