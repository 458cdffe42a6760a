"""Trace a backbone with torch.fx to find the layer whose output units feed each layer's columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from msh.compat import BatchNormBase, DropoutBase
from msh.errors import one_of, requirement
from msh.subnetworks.tensors import evaluating

if TYPE_CHECKING:
    from msh.subnetworks.network import MultiSubnetwork

GranularityName = Literal["weight", "block", "unit", "neuron", "channel"]
GRANULARITIES: tuple[GranularityName, ...] = ("weight", "block", "unit", "neuron", "channel")
"""Tasks keep single weights; blocks of them; whole units of linear layers and convolutions; or, as in earlier releases,
whole units of linear layers alone ("neuron") or of both ("channel"), computed with matrices of full size."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
ELEMENTWISE = (
    nn.Identity,
    DropoutBase,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Tanh,
    nn.Sigmoid,
    nn.Softplus,
    nn.Hardtanh,
)
POOLS = tuple(
    getattr(nn, f"{kind}Pool{n}d") for kind in ("Max", "Avg", "AdaptiveMax", "AdaptiveAvg") for n in (1, 2, 3)
)
FUNCTIONS = (F.relu, torch.relu, F.gelu, F.silu, F.leaky_relu, F.elu, F.dropout, torch.tanh, torch.sigmoid)
METHODS = ("relu", "tanh", "sigmoid", "contiguous")


@dataclass(frozen=True)
class UnitSource:
    """Units along dimension 1 of an activation.

    Attributes:
        layer: the tensor whose rows compute them.
        block: consecutive indices per unit: 1, or a channel's positions once it is flattened.
    """

    layer: str
    block: int = 1


@dataclass(frozen=True)
class Layer:
    """A prunable tensor (units, columns, *kernel) and its source.

    Attributes:
        module: dotted name of its module.
        shape: the tensor's.
        source: the units that feed its columns; None for the backbone's inputs.
    """

    module: str
    shape: tuple[int, ...]
    source: UnitSource | None

    @property
    def units(self) -> int:
        """Output units."""
        return self.shape[0]

    @property
    def kernel(self) -> int:
        """Weights per unit and column."""
        return math.prod(self.shape[2:])


@dataclass(frozen=True)
class UnitGraph:
    """A backbone's units, and the layers that compute and use them.

    Attributes:
        layers: tensor name to layer, in computing order.
        norms: each normalisation's dotted name to the units it passes through.
        output: units behind the backbone's features.
    """

    layers: dict[str, Layer]
    norms: dict[str, UnitSource]
    output: UnitSource


def trace_units(
    network: MultiSubnetwork, granularity: GranularityName = "unit", example: Tensor | None = None
) -> UnitGraph:
    """Find a backbone's units.

    Args:
        network: in any phase; not changed.
        granularity: "unit" or "channel"; or "neuron" for backbones whose prunable layers are all linear.
        example: (batch, *input shape) for the backbone; zeros with its `input_shape` when None.
    Raises:
        ValueError: the backbone cannot be traced, or has a module with an unknown effect on units.
    """
    one_of("granularity", granularity, GRANULARITIES[2:])
    backbone, example = network.backbone, example_inputs(network, example)
    symbolic = _Tracer()
    try:
        graph = symbolic.trace(backbone)
    except Exception as error:  # symbolic values may raise any type
        raise _refusal(granularity, symbolic.inside(backbone), f"it cannot be traced by torch.fx: {error}") from error
    tracer = _UnitTracer(fx.GraphModule(backbone, graph), set(network.names.prunable), granularity)
    with evaluating(backbone), torch.no_grad():
        tracer.run(example)
    missed = [name for name in network.names.prunable if name not in tracer.layers]
    if missed:
        raise _refusal(granularity, missed[0], "no linear layer or convolution of the forward pass computes with it")
    if tracer.features is None:
        raise _refusal(granularity, "its outputs", "they must be one tensor, of the units of one layer")
    return UnitGraph(tracer.layers, tracer.norms, tracer.features)


def example_inputs(network: MultiSubnetwork, example: Tensor | None = None) -> Tensor:
    """Return the example, or zeros (1, *input shape).

    Raises:
        ValueError: there is no example, and the backbone has no `input_shape`.
    """
    if example is not None:
        return example
    shape: Sequence[int] | None = getattr(network.backbone, "input_shape", None)
    if shape is None:
        raise ValueError(f"{type(network.backbone).__name__} has no input_shape: pass an example of its inputs")
    return next(network.weights())[1].new_zeros(1, *shape)


def _refusal(granularity: str, part: str, why: str) -> ValueError:
    return ValueError(f"granularity {granularity!r} does not work for this backbone: {part}: {why}")


class _Tracer(fx.Tracer):
    """Trace a module, and remember which of its parts is being traced."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[tuple[str, str]] = []

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Trace a part; after an error it stays the last one."""
        self.parts.append((self.path_of_module(m), type(m).__name__))
        result = super().call_module(m, forward, args, kwargs)
        self.parts.pop()
        return result

    def inside(self, backbone: nn.Module) -> str:
        """Name the part at which an error stopped the tracing."""
        if not self.parts:
            return type(backbone).__name__
        path, kind = self.parts[-1]
        return f"module {path!r} ({kind})"


class _UnitTracer(fx.Interpreter):
    """Run a traced backbone on an example and record each activation's units, node by node."""

    def __init__(self, module: fx.GraphModule, prunable: set[str], granularity: str) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.prunable, self.granularity = prunable, granularity
        self.layers: dict[str, Layer] = {}
        self.norms: dict[str, UnitSource] = {}
        self.held: dict[fx.Node, UnitSource | None] = {}
        self.features: UnitSource | None = None
        self.extra_traceback = False  # messages stay as they are

    def run_node(self, n: fx.Node) -> Any:
        """Compute a node, and its units from its input's units."""
        if n.op == "output":
            features = n.args[0]
            self.features = self.held[features] if isinstance(features, fx.Node) else None
            return super().run_node(n)
        if n.op == "placeholder":
            self.held[n] = None
            return super().run_node(n)
        before = list(n.all_input_nodes)
        if len(before) != 1:
            raise self._unknown(n)
        result, inputs = super().run_node(n), self.env[before[0]]
        if not isinstance(result, Tensor) or not isinstance(inputs, Tensor):
            raise self._unknown(n)
        self.held[n] = self._after(n, self.held[before[0]], inputs.shape, result.shape)
        return result

    def _after(self, n: fx.Node, units: UnitSource | None, before: torch.Size, after: torch.Size) -> UnitSource | None:
        module = self.module.get_submodule(str(n.target)) if n.op == "call_module" else None
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            return self._layer(n, module, units, before)
        if units is None:  # the inputs are kept whole
            return None
        if isinstance(module, nn.Flatten) or n.target in (torch.flatten, "flatten"):
            if len(after) == 2 and before[0] == after[0]:
                return UnitSource(units.layer, units.block * math.prod(before[2:]))
        elif isinstance(module, BatchNormBase):
            self.norms[str(n.target)] = units
            return units
        elif isinstance(module, POOLS):
            if len(before) == _dimensions(module) + 2:
                return units
        elif isinstance(module, ELEMENTWISE) or n.target in (*FUNCTIONS, *METHODS):
            return units
        raise self._unknown(n)

    def _layer(self, n: fx.Node, module: nn.Module, units: UnitSource | None, before: torch.Size) -> UnitSource:
        where, tensor = str(n.target), f"{n.target}.weight"
        if isinstance(module, CONVOLUTIONS):
            if self.granularity == "neuron":
                raise self._unknown(n, "a convolution's units are channels: use 'unit'")
            if module.groups != 1:
                raise self._unknown(n, requirement("groups", "1", module.groups))
        expected = _dimensions(module) + 2
        if len(before) != expected:
            raise self._unknown(n, f"its input has {len(before)} dimensions, not {expected}")
        if tensor not in self.prunable:
            raise self._unknown(n, "its weight is tied, or is not shared between tasks")
        if tensor in self.layers:
            raise self._unknown(n, "it is used more than once in a forward pass")
        weight = module.get_buffer("weight")
        self.layers[tensor] = Layer(where, tuple(weight.shape), units)
        return UnitSource(tensor)

    def _unknown(self, n: fx.Node, why: str = "its effect on units is not known") -> ValueError:
        if n.op == "call_module":
            module = self.module.get_submodule(str(n.target))
            return _refusal(self.granularity, f"module {n.target!r} ({type(module).__name__})", why)
        name = n.target if isinstance(n.target, str) else getattr(n.target, "__name__", str(n.target))
        return _refusal(self.granularity, f"operation {name!r}", why)


def _dimensions(module: nn.Module) -> int:
    """Count a convolution's or pooling's spatial dimensions; 0 for a linear layer."""
    return 0 if isinstance(module, nn.Linear) else int(type(module).__name__[-2])
