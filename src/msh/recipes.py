"""Build modules from recipes: data that files carry, so that they need no user code or training data."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList, register_parametrization
from torch.overrides import TorchFunctionMode

from msh.errors import one_of

Recipe = dict[str, Any]
"""A constructor's dotted name under "_target_", and its arguments: the form that config blocks have.

"_dtype_" is its tensors' type, a key of `DTYPES`, where this is not float32; "_base_" the names of tensors that are
frozen, with a change added: see `freeze_base`.
"""
DTYPES = {"float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}

KEYWORDS = ("_target_", "_dtype_", "_base_")

LIBRARIES = ("msh.backbones.", "msh.tasks.stems.", "torch.nn.", "torchvision.models.", "timm.", "transformers.")
"""Prefixes of the constructors that a file may name; the caller passes any others."""
FUNCTIONS = (
    "msh.tasks.stems.linear",
    *(f"msh.backbones.libraries.{library}_model" for library in ("torchvision", "timm", "hf")),
)
"""Allowed constructors that are functions, not classes."""
OWN = "backbone.target"
"""Key in a config, besides every `_target_`, that names what is called."""
LONGEST_RANGE = 2**16
"""Numbers in a range that is computed while a structure is built without memory."""
SPARE = 4
"""Most numbers in a rebuilt module, as a multiple of the numbers in its file."""


Constructors = Mapping[str, Callable[..., nn.Module]]
"""Dotted name to constructor, for modules outside msh, torch, torchvision, timm and transformers."""


def build(recipe: Mapping[str, Any], classes: Constructors | None = None) -> nn.Module:
    """Build a module from a trusted recipe, such as the user's config.

    Args:
        recipe: names a module that can be imported, or one of `classes`.
        classes: further constructors.
    Raises:
        ValueError: the constructor returns no module.
    """
    return _make(recipe, dict(classes or {}))


def rebuild(recipe: Mapping[str, Any], part: str, numbers: int, classes: Constructors | None = None) -> nn.Module:
    """Build a module from a recipe of unknown origin, such as a file's.

    The module is first built without memory, so that a recipe cannot ask for much more memory than its file's size.

    Args:
        recipe: names a module of msh, torch, torchvision, timm or transformers.
        part: such as "the backbone", for messages.
        numbers: in the file.
        classes: constructors of modules of other code.
    Raises:
        ValueError: the recipe names other code, has wrong arguments, or gives a module that is too large.
    """
    module = outline(recipe, part, classes)
    size = sum(tensor.numel() for tensor in (*module.parameters(), *module.buffers()))
    if size > max(2**22, SPARE * numbers):
        raise ValueError(f"{part} would have {size:,} numbers, and the file has {numbers:,}")
    return _make(recipe, dict(classes or {}))


def outline(recipe: Mapping[str, Any], part: str, classes: Constructors | None = None) -> nn.Module:
    """Build a module's structure from a recipe of unknown origin on the meta device, without memory.

    A constructor of the caller's that cannot work there, as it reads values of tensors, is trusted with memory.
    The arguments and errors are those of `rebuild`.
    """
    classes = dict(classes or {})
    for target in (str(target) for _, target in targets_in(recipe)):
        if target not in classes and not is_known(target):
            raise ValueError(
                f"{part} is built by {target!r}, which is not in msh, torch, torchvision, timm or transformers: pass "
                f"the constructor, classes={{{target!r}: ...}}, or --allow {target} on the command line"
            )
    own = {name: _outlined(constructor) for name, constructor in classes.items()}
    try:
        with torch.device("meta"), _RealNumbers():
            return _make(recipe, own)
    except Exception as error:  # a constructor may raise any type
        raise ValueError(f"{part} cannot be rebuilt by {recipe.get('_target_')!r}: {error}") from error


def _outlined(constructor: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Let a constructor of the caller's have memory if it needs its tensors' values; its module keeps none."""

    def construct(**arguments: Any) -> nn.Module:
        try:
            return constructor(**arguments)
        except Exception:  # a constructor may raise any type
            with torch.device("cpu"):
                module = constructor(**arguments)
            return module.to("meta") if isinstance(module, nn.Module) else module

    return construct


class _RealNumbers(TorchFunctionMode):
    """Keep short ranges, and numbers from Python, on the CPU: constructors compute sizes and rates with them.

    Tensors on the meta device have no values to draw: torch would load its compiler for that, 75 MB and half a second.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.Tensor.normal_, torch.Tensor.uniform_) and args[0].is_meta:
            return args[0]
        if func in (torch.linspace, torch.arange, torch.tensor) and kwargs.get("device") is None:
            numbers = 0 if func is torch.tensor else func(*args, **kwargs | {"device": "meta"}).numel()
            kwargs["device"] = "cpu" if numbers <= LONGEST_RANGE else None
        return func(*args, **kwargs)


def is_known(target: str) -> bool:
    """Return True if files may name a constructor: a module class, or a listed function, of a known library."""
    if not target.startswith(LIBRARIES):
        return False
    try:
        constructor = pkgutil.resolve_name(target)
    except Exception:  # importing a module may raise any type
        return False
    if target in FUNCTIONS:
        return True
    origin = f"{getattr(constructor, '__module__', '')}."
    return inspect.isclass(constructor) and issubclass(constructor, nn.Module) and origin.startswith(LIBRARIES)


def own_names(value: Any, key: str = "") -> list[str]:
    """List what a recipe, or a config at a dotted key, has built by code that files may not name by themselves."""
    names = dict.fromkeys(str(target) for _, target in targets_in(value, key))
    return [name for name in names if not is_known(name) and "." in name]


def _make(recipe: Mapping[str, Any], classes: Constructors) -> nn.Module:
    """Build a module, after the modules among its arguments."""
    arguments = {key: _argument(value, classes) for key, value in recipe.items() if key not in KEYWORDS}
    target = recipe["_target_"]
    module = (classes[target] if target in classes else pkgutil.resolve_name(target))(**arguments)
    if not isinstance(module, nn.Module):
        raise ValueError(f"{target} returns a {type(module).__name__}, which is no torch.nn.Module")
    if "_dtype_" in recipe:
        one_of("_dtype_", recipe["_dtype_"], DTYPES)
        module.to(DTYPES[recipe["_dtype_"]])
    if "_base_" in recipe:
        freeze_base(module, recipe["_base_"])
    return module


class AddedTo(nn.Module):
    """Add a change to a frozen tensor: a reparametrization whose original is the change.

    Args:
        base: (*shape), copied; no task owns or changes it.
    """

    def __init__(self, base: torch.Tensor) -> None:
        super().__init__()
        self.base = nn.Parameter(base.detach().clone(), requires_grad=False)

    def forward(self, change: torch.Tensor) -> torch.Tensor:
        """(*shape) to (*shape)."""
        return self.base + change

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the change that gives a weight."""
        return weight - self.base


def base_of(name: str) -> str:
    """Name the frozen tensor to which the tensor of this name is added, where `freeze_base` has made one."""
    return f"{name.removesuffix('original')}0.base"


def freeze_base(module: nn.Module, names: Sequence[str]) -> None:
    """Freeze tensors of a module, and add a change to each, which starts from 0 and trains in its place.

    Args:
        module: changed in place.
        names: dotted names of parameters.
    Raises:
        ValueError: a tensor is tied, reparametrized already, or of a recurrent layer.
    """
    places = dict(module.named_parameters(remove_duplicate=False))
    for name in names:
        path, _, leaf = name.rpartition(".")
        layer = module.get_submodule(path)
        why = "is tied to another" if sum(p is places.get(name) for p in places.values()) != 1 else ""
        why = "is reparametrized" if isinstance(layer, ParametrizationList) else why
        why = "belongs to a recurrent layer" if isinstance(layer, nn.RNNBase) else why
        if why:
            raise ValueError(f"reuse=backbone cannot add changes to {name!r}, which {why}")
        register_parametrization(layer, leaf, AddedTo(places[name]))


def _argument(value: Any, classes: Constructors) -> Any:
    if isinstance(value, dict):
        if "_target_" in value:
            return _make(value, classes)
        return {key: _argument(inner, classes) for key, inner in value.items()}
    return [_argument(inner, classes) for inner in value] if isinstance(value, list) else value


def targets_in(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of every name to be called at or below a value, which `key` names."""
    children = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in children:
        if name == "_target_" or f"{key}.{name}" == OWN:
            yield f"{key}.{name}", inner
        else:
            yield from targets_in(inner, f"{key}.{name}")
