"""Compute the values that a task's weights start from."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from msh.compat import ConvolutionBase, own_buffers
from msh.draws import drawing_apart
from msh.subnetworks.allocation import FREE
from msh.subnetworks.description import Families, Family
from msh.subnetworks.tensors import as_parameters, same_bits, selected, widened
from msh.subnetworks.views import copy_structure

log = logging.getLogger(__name__)

INITIALISERS = ("reset_parameters", "_reset_parameters")
"""Names of the methods with which layers draw their values."""
UNIFORM = (nn.Linear, nn.Bilinear, ConvolutionBase, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
NORMAL = (nn.Embedding, nn.EmbeddingBag)
"""Torch's layers by the family that their own initialisers draw from."""
BETWEEN = 2.1
"""Kurtosis between that of uniform values, 1.8, and of normal ones, 3; 2.4 if truncated at two deviations."""


def start_values(
    start: Tensor, mask: Tensor, base: Tensor, initial_norm: Tensor, chooses: bool, norm: float | None = None
) -> Tensor:
    """Initialize a tensor of a task: its own values at the mask, the weights it reads elsewhere.

    Args:
        start: (*shape), values to start from, of any scale.
        mask: bool, (*shape): the task's candidates.
        base: (*shape), the other tasks' weights that it reads, else 0.
        initial_norm: (), Euclidean norm of the tensor when the backbone was wrapped.
        chooses: True if the task selects the weights it reads: its own weights then take their share of the norm.
            Otherwise own and read weights together have the initial norm.
        norm: Euclidean norm of its own values, if planned.
    Returns:
        (*shape).
    """
    if norm is None:
        always = None if chooses else base
        start = start * _start_scale(selected(start, mask), always, initial_norm, start.numel())
    values = torch.where(mask, start, base)
    if norm is not None:
        rescale_to(values, mask, torch.tensor(norm))
    return values


def _start_scale(candidates: Tensor, base: Tensor | None, initial_norm: Tensor, size: int) -> float:
    norm = float(widened(candidates).norm())
    if norm == 0.0 or not math.isfinite(norm):
        return 1.0
    target, read = float(initial_norm), math.inf if base is None else float(widened(base).norm())
    share = candidates.numel() / size
    return math.sqrt(max(target**2 - read**2, share * target**2)) / norm


def fresh_values(like: Tensor, initial_norm: Tensor, generator: torch.Generator, family: Family = "uniform") -> Tensor:
    """Draw independent values around 0 with the norm that the tensor had when the backbone was wrapped.

    Args:
        like: (*shape), the tensor.
        initial_norm: (), that Euclidean norm.
        generator: on the CPU.
        family: of the distribution.
    Returns:
        (*shape), with the tensor's type and device.
    """
    deviation = float(initial_norm) / math.sqrt(like.numel())
    bound = math.sqrt(3.0 / like.numel()) * float(initial_norm)
    drawn = widened(torch.empty(like.shape, dtype=like.dtype))  # on the CPU
    if family == "normal":
        return drawn.normal_(0.0, deviation, generator=generator).to(like)
    return drawn.uniform_(-bound, bound, generator=generator).to(like)


@dataclass(frozen=True)
class Initialisers:
    """Draw a backbone's prunable tensors as their layers do.

    Torch's own layers draw from a family of distributions. Any other layer with an initialiser draws by it, in a copy.
    Layers without one, and reparametrized ones, draw uniform values.

    Attributes:
        families: of the tensors that are not uniform; of a layer with an initialiser of its own, the nearest one, for
            files, which have no layers.
        own: tensor name to its layer, where that has an initialiser of its own.
        parameters: dotted names of the backbone's parameters.
    """

    families: Families = field(default_factory=dict)
    own: Mapping[str, nn.Module] = field(default_factory=dict)
    parameters: Collection[str] = ()

    @classmethod
    def of(cls, backbone: nn.Module, prunable: Iterable[str], parameters: Collection[str]) -> Initialisers:
        """Find the initialisers of prunable tensors.

        Args:
            backbone: wrapped: its parameters are buffers.
            prunable: dotted names of tensors.
            parameters: dotted names of all tensors that were parameters.
        """
        families: Families = {}
        own: dict[str, nn.Module] = {}
        found = cls(families, own, parameters)
        for name in prunable:
            layer = backbone.get_submodule(name.rpartition(".")[0])
            by, known = _initialiser(layer), {_initialiser(kind): kind for kind in (*UNIFORM, *NORMAL)}
            if by in known:
                families |= {name: "normal"} if known[by] in NORMAL else {}
            elif by is not None:
                own[name] = layer
                if (drawn := found._tried(name)) is None:
                    del own[name]
                elif _kurtosis(drawn) > BETWEEN:
                    families[name] = "normal"
        return found

    def draw(self, name: str, like: Tensor, initial_norm: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a tensor as its layer does, with the norm it had when the backbone was wrapped: see `fresh_values`."""
        if name not in self.own:
            return fresh_values(like, initial_norm, generator, self.families.get(name, "uniform"))
        drawn = self._by_layer(name, int(torch.randint(2**62, (), generator=generator)))
        return (drawn * (float(initial_norm) / float(drawn.norm()))).to(like)

    def _by_layer(self, name: str, seed: int) -> Tensor:
        """Draw a tensor by its layer's own initialiser: (*shape), on the CPU, with the initialiser's norm."""
        path, _, leaf = name.rpartition(".")
        layer = copy_structure(self.own[name])
        for child in layer.modules():
            for key, tensor in own_buffers(child).items():
                own_buffers(child)[key] = None if tensor is None else tensor.detach().cpu().clone()
        as_parameters(
            [
                (child, key)
                for below, child in layer.named_modules()
                for key in [*own_buffers(child)]
                if ".".join(filter(None, (path, below, key))) in self.parameters
            ]
        )
        with drawing_apart(seed):
            reset: Any = _initialiser(type(layer))
            reset(layer)
        return widened(layer.get_parameter(leaf).detach())

    def _tried(self, name: str) -> Tensor | None:
        """Draw a tensor by its layer's own initialiser; None if it does not, or not by the seed."""
        try:
            drawn, again, other = (self._by_layer(name, seed) for seed in (0, 0, 1))
        except Exception as error:  # an initialiser may raise any type
            log.info("%s: new tasks start from uniform values, as the layer's initialiser raised: %s", name, error)
            return None
        norm = float(drawn.norm())
        usable = same_bits(drawn, again) and not same_bits(drawn, other) and math.isfinite(norm) and norm > 0
        return drawn if usable else None


def _kurtosis(values: Tensor) -> float:
    """Fourth moment around 0 over the squared second one; normal values have 3."""
    return float(values.pow(4).mean() / values.pow(2).mean().pow(2))


def _initialiser(layer: nn.Module | type[nn.Module]) -> Any:
    """Return the method of a layer's class that draws its values without arguments; None if there is none."""
    kind = layer if isinstance(layer, type) else type(layer)
    for name in INITIALISERS:
        method = inspect.getattr_static(kind, name, None)
        if inspect.isfunction(method):
            needed = [p for p in inspect.signature(method).parameters.values() if p.default is p.empty]
            if len([p for p in needed if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]) == 1:
                return method
    return None


def give_back(
    weight: Tensor, owners: Tensor, owner: int, initial_norm: Tensor, index: int, family: Family = "uniform"
) -> None:
    """Free an owner's weights, in place, and overwrite them with `fresh_values` seeded by owner and index.

    Args:
        weight: (*shape), the dense tensor.
        owners: (*shape), its owner ids.
        owner: the id whose weights become free.
        initial_norm: (), Euclidean norm of the tensor when the backbone was wrapped.
        index: of the tensor among the prunable ones.
        family: of the fresh values' distribution.
    """
    mask = owners == owner
    generator = torch.Generator().manual_seed(owner * 1_000_003 + index)
    weight[mask] = fresh_values(weight, initial_norm, generator, family)[mask]
    owners[mask] = FREE


def norm_of(values: Tensor, mask: Tensor) -> Tensor:
    """Compute the Euclidean norm, (), of the values where mask."""
    norm: Tensor = widened(selected(values, mask)).norm()
    return norm


def rescale_to(values: Tensor, mask: Tensor, norm: Tensor) -> None:
    """Scale the values where mask, in place, to the Euclidean norm `norm`; zeros stay."""
    now = norm_of(values, mask)
    if now > 0:
        values.copy_(torch.where(mask, values * (norm / now).to(values), values))
