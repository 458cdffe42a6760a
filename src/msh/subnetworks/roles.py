"""Find each backbone tensor's role: shared weight by weight, private to each task, or stored once for all."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized, type_before_parametrizations
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from msh.compat import (
    FLAT_WEIGHTS,
    ConvolutionBase,
    NormBase,
    SpectralNormParametrization,
    WeightNormParametrization,
    non_persistent,
    own_buffers,
    pre_hooks,
    pruned_name,
)
from msh.errors import invalid, suggestion

Kind = Literal["prunable", "private", "shared"]

Prunable = Callable[[nn.Module, str, nn.Parameter], bool] | Sequence[str] | None
"""Selects the prunable parameters.

A function of (module that holds the parameter, its name there, the parameter); or fnmatch patterns of dotted names,
such as "blocks.*.weight"; or None, which selects by the role of the layer.
"""

LAYERS: tuple[tuple[type[nn.Module] | tuple[type[nn.Module], ...], str], ...] = (
    ((nn.Linear, nn.Bilinear, ConvolutionBase, nn.Embedding, nn.EmbeddingBag), r"weight"),
    (nn.MultiheadAttention, r"(in|q|k|v)_proj_weight"),
    (nn.RNNBase, r"weight_(ih|hh|hr)_l\d+(_reverse)?"),
    (nn.RNNCellBase, r"weight_(ih|hh)"),
)
"""Known layers to their weights' names."""

NORMS = (NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
NORMALIZED = (WeightNormParametrization, SpectralNormParametrization)
TABLES = (nn.Embedding, nn.EmbeddingBag)

WEIGHT_NAME = r"weight|kernel|\w+_weight|weight_\w+"
"""Weight names in other libraries' classes."""

NO_LAYER = ("Scale", "Gate")
"""Parts of class names whose parameters are not a layer's weights."""

EXPERTS = "Experts"
"""End of class names of layers in transformers that hold the projections of all experts, (experts, outputs, inputs)."""

NO_WEIGHT = {"scale", "norm", "bias", "mask"}
"""Words that exclude a weight, as in `weight_scale`."""

POSITION = {"pos", "position", "positions", "positional", "relative", "wpe"}
SEGMENT = {"segment", "segments", "seg"}
"""Words for a token's position, and for its type."""

GENERIC = {"embed", "embedder", "embedding", "embeddings", "emb", "lookup", "table", "weight"}
"""Submodule names that do not describe a table; their parent's name does."""


@dataclass(frozen=True)
class Role:
    """A backbone tensor's role, and the reason.

    Attributes:
        name: dotted; for a tied tensor, the first name in a walk over the modules.
        kind: "prunable" (tasks share it weight by weight), "private" (each task has a copy) or "shared" (stored
            once, used by every task, never trained).
        why: a short reason, for people.
        parameter: True for a parameter, False for a buffer.
        shape: its axes.
    """

    name: str
    kind: Kind
    why: str
    parameter: bool
    shape: torch.Size


class _Place(NamedTuple):
    """One occurrence of a parameter: its module, that module's path, and its name there."""

    module: nn.Module
    path: str
    name: str
    parameter: nn.Parameter

    @property
    def dotted(self) -> str:
        return f"{self.path}.{self.name}" if self.path else self.name


Decision = tuple[Kind, str]
"""Kind and reason."""

Form = Literal["whole", "scale", "direction", "original", "part"]
"""Relation between a parameter and the tensor that its layer computes with.

It is that tensor ("whole"), the scale or direction of weight_norm, the original of another reparametrization with one
tensor (spectral_norm, orthogonal, nn.utils.prune), or a part of one with several tensors.
"""

Owners = dict[int, tuple[nn.Module, str, str]]
"""The id of each list of parametrizations to its layer: module, path, and name of the tensor."""


def find_roles(backbone: nn.Module, prunable: Prunable = None) -> list[Role]:
    """Classify each backbone tensor as prunable, private or shared.

    Args:
        backbone: any module.
        prunable: selects the prunable parameters. Patterns select a tied parameter by any of its names, a function
            gets the first. A parameter whose requires_grad is False is always shared.
    Returns:
        Parameters in the order of a walk over the modules, then buffers, each tensor once.
    Raises:
        ValueError: a parameter has no shape yet, a module is TorchScript, or a pattern matches no parameter.
    """
    _check_modules(backbone)
    places = _find_places(backbone)
    owners = _find_owners(backbone)
    selected = set() if prunable is None or callable(prunable) else _match_patterns(prunable, places)
    roles = []
    for occurrences in places:
        first = occurrences[0]
        decision: Decision
        if not first.parameter.requires_grad:
            decision = ("shared", "requires_grad is False")
        elif first.parameter.is_complex() and prunable is None:
            decision = ("private", "complex")
        elif prunable is None:
            decision = _decide(occurrences, owners)
        elif prunable(first.module, first.name, first.parameter) if callable(prunable) else first.dotted in selected:
            if first.parameter.is_complex():
                raise ValueError(
                    f"prunable: {first.dotted!r} is complex, and only real tensors can be shared by weights"
                )
            decision = ("prunable", "selected")
        else:
            decision = ("private", "not selected")
        roles.append(Role(first.dotted, *decision, True, first.parameter.shape))
    return roles + _find_buffers(backbone, {id(occurrences[0].parameter) for occurrences in places})


def tied_names(backbone: nn.Module) -> dict[str, str]:
    """Map each further dotted name of a tied parameter to its first name."""
    return {place.dotted: occurrences[0].dotted for occurrences in _find_places(backbone) for place in occurrences[1:]}


def padding_rows(backbone: nn.Module) -> dict[str, int]:
    """Find embedding tables' padding rows.

    Returns:
        Dotted name of each table that is prunable by the rule, to its padding row, in [0, rows); under weight_norm or
        spectral_norm, the name of the direction or the original.
    """
    owners, rows = _find_owners(backbone), {}
    for occurrences in _find_places(backbone):
        first = occurrences[0]
        if not first.parameter.requires_grad or _decide(occurrences, owners)[0] != "prunable":
            continue
        for place in occurrences:
            table, _, name, _ = _resolve(place, owners)[0]
            if not isinstance(table, TABLES) or table.padding_idx is None or name != "weight":
                continue
            parts = place.module
            if not isinstance(parts, ParametrizationList) or isinstance(parts[0], NORMALIZED):
                rows[first.dotted] = table.padding_idx % table.num_embeddings
    return rows


def check_aliases(backbone: nn.Module) -> None:
    """Raise if a module also holds a parameter in a plain Python attribute.

    Wrapping replaces registered parameters only: a module that reads an alias would use a value that never trains.

    Raises:
        ValueError: naming the parameter and the attribute, such as a list of weights.
    """
    names = {id(occurrences[0].parameter): occurrences[0].dotted for occurrences in _find_places(backbone)}
    internal = set(vars(nn.Module()))  # its own registries of parameters, modules and hooks
    for path, module in backbone.named_modules():
        for attribute, value in vars(module).items():
            if attribute in internal or (isinstance(module, nn.RNNBase) and attribute == FLAT_WEIGHTS):
                continue
            for parameter in _contents(value, set()):
                if id(parameter) in names:
                    raise ValueError(
                        f"parameter {names[id(parameter)]!r} is also in the Python attribute "
                        f"{f'{path}.{attribute}'.lstrip('.')!r} of {_class_name(module)}, where it would never be "
                        "trained: read it from the module that registers it, or use nn.ParameterList"
                    )
        for name, buffer in own_buffers(module).items():
            if id(buffer) in names:
                raise ValueError(
                    f"parameter {names[id(buffer)]!r} is also registered as buffer {name!r} of {_class_name(module)}, "
                    "where it would never be trained"
                )


def check_tables(backbone: nn.Module) -> None:
    """Raise if an embedding scales its rows in each forward pass: they belong to several tasks.

    Raises:
        ValueError: naming the embedding and its `max_norm`.
    """
    for path, module in backbone.named_modules():
        if isinstance(module, TABLES) and module.max_norm is not None:
            raise invalid(
                f"max_norm of {path or 'the backbone'} ({_class_name(module)})",
                "null, as it would change the weights of all tasks in each forward pass",
                module.max_norm,
            )


def _contents(value: object, seen: set[int]) -> Iterator[object]:
    """Yield the parameters in a value and its Python containers; modules are not entered."""
    if isinstance(value, nn.Parameter):
        yield value
    elif isinstance(value, (list, tuple, dict, set, frozenset, deque)):
        if id(value) in seen:
            return
        seen.add(id(value))
        for item in (*value.keys(), *value.values()) if isinstance(value, dict) else value:
            yield from _contents(item, seen)


def _check_modules(backbone: nn.Module) -> None:
    for path, module in backbone.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"module {path or type(module).__name__!r} is TorchScript, whose parameters cannot be replaced: "
                "use the module that it was compiled from"
            )
    for name, tensor in (*backbone.named_parameters(), *backbone.named_buffers()):
        if is_lazy(tensor):
            raise ValueError(f"{name!r} has no shape yet: run one forward pass of the backbone first")


def _find_places(backbone: nn.Module) -> list[list[_Place]]:
    """Find every parameter's places, in the order of a walk over the modules."""
    places: dict[int, list[_Place]] = {}
    for path, module in backbone.named_modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            places.setdefault(id(parameter), []).append(_Place(module, path, name, parameter))
    return list(places.values())


def _find_owners(backbone: nn.Module) -> Owners:
    return {
        id(parametrizations): (module, path, name)
        for path, module in backbone.named_modules()
        if is_parametrized(module)
        for name, parametrizations in module.parametrizations.items()
    }


def _find_buffers(backbone: nn.Module, parameters: set[int]) -> list[Role]:
    roles, seen = [], set(parameters)
    for path, module in backbone.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if id(buffer) in seen:
                continue
            seen.add(id(buffer))
            persistent = name not in non_persistent(module)
            decision: Decision = ("private", "buffer") if persistent else ("shared", "buffer that is not persistent")
            roles.append(Role(f"{path}.{name}" if path else name, *decision, False, buffer.shape))
    return roles


def _match_patterns(patterns: Sequence[str], places: list[list[_Place]]) -> set[str]:
    """Collect the first names of parameters that match the patterns."""
    firsts = {place.dotted: occurrences[0].dotted for occurrences in places for place in occurrences}
    selected = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matched = {first for name, first in firsts.items() if fnmatchcase(name, pattern)}
        if not matched:
            raise ValueError(f"prunable: {pattern!r} matches no parameter of the backbone{suggestion(pattern, firsts)}")
        selected |= matched
    return selected


def _decide(occurrences: list[_Place], owners: Owners) -> Decision:
    """Decide by the layer; a tied parameter is prunable if any of its places is a layer's weight."""
    decisions = [_decide_place(place, owners) for place in occurrences]
    return next((decision for decision in decisions if decision[0] == "prunable"), decisions[0])


def _decide_place(place: _Place, owners: Owners) -> Decision:
    layer, form = _resolve(place, owners)
    if form == "scale":
        return "private", "scale of weight_norm"
    if form == "part":
        return "private", "part of a parametrization"
    kind, why = _decide_layer(layer)
    if kind == "prunable" and form == "direction":
        return kind, f"direction of weight_norm, {why}"
    if kind == "prunable" and form == "original":
        return kind, f"original of the reparametrized {why}"
    return kind, why


def _decide_layer(place: _Place) -> Decision:
    """Decide by the layer's class and path, and the parameter's name."""
    module, path, name, parameter = place
    layer = _class_name(module)
    if isinstance(module, TABLES) and (meaning := _meaning(_table_words(path) | _words(layer))):
        return "private", meaning
    if any(isinstance(module, known) and re.fullmatch(names, name) for known, names in LAYERS):
        return "prunable", f"{name} of {layer}"
    classes = [cls.__name__ for cls in type(module).__mro__]
    if isinstance(module, NORMS) or any("Norm" in cls for cls in classes):
        return "private", f"{name} of {layer}"
    if re.fullmatch(r"bias|bias_\w+|\w+_bias", name):
        return "private", "bias"
    words = _words(name) | _words(layer) - {"relative"}  # a RelativeAttention holds projections
    if "embed" in layer.lower() or "embed" in path.rpartition(".")[2].lower():
        words |= _table_words(path)
    if meaning := _meaning(words):
        return "private", meaning
    if (
        re.fullmatch(WEIGHT_NAME, name)
        and not _words(name) & NO_WEIGHT
        and not any(part in cls for part in NO_LAYER for cls in classes)
        and sum(size > 1 for size in parameter.shape) >= 2
    ):
        return "prunable", f"{name} of {layer}"
    if layer.endswith(EXPERTS) and parameter.dim() == 3 and name.endswith("_proj"):
        return "prunable", f"{name} of {layer}"
    return "private", f"{name} of {layer}, not a layer's weight"


def _resolve(place: _Place, owners: Owners) -> tuple[_Place, Form]:
    """Find the layer's tensor that is computed from a parameter, and their relation."""
    module, path, name, parameter = place
    if id(module) in owners and isinstance(module, ParametrizationList):
        form: Form = "part"
        if name == "original":
            form = "original"
        elif isinstance(module[0], WeightNormParametrization):
            form = "scale" if name == "original0" else "direction"
        return _Place(*owners[id(module)], parameter), form
    for hook in pre_hooks(module).values():
        if isinstance(hook, WeightNorm) and name in (f"{hook.name}_g", f"{hook.name}_v"):
            return _Place(module, path, hook.name, parameter), "scale" if name.endswith("_g") else "direction"
        whole = hook.name if isinstance(hook, SpectralNorm) else pruned_name(hook)
        if isinstance(hook, (SpectralNorm, BasePruningMethod)) and name == f"{whole}_orig":
            return _Place(module, path, str(whole), parameter), "original"
    return place, "whole"


def _class_name(module: nn.Module) -> str:
    return type_before_parametrizations(module).__name__


def _words(name: str) -> set[str]:
    """Split a name in snake_case or CamelCase into lower-case words."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def _table_words(path: str) -> set[str]:
    """Split the last part of a path that describes a table into words."""
    parts = [part for part in path.split(".") if part not in GENERIC and not part.isdigit()]
    return _words(parts[-1]) if parts else set()


def _meaning(words: set[str]) -> str:
    """Recognise words for positions or token types; "pos_tag" means part of speech."""
    if words & POSITION and not words & {"tag", "tags", "wise"}:
        return "position embedding"
    return "token type embedding" if words & SEGMENT or {"token", "type"} <= words else ""
