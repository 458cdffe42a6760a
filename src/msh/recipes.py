"""Recipes: modules as data, so that a file can rebuild them without the user's code or the training data."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from msh.errors import one_of

Recipe = dict[str, Any]
"""A constructor's dotted name under "_target_", and its arguments: the form that config blocks have.

Under "_dtype_" stands the type of its tensors, a name in `DTYPES`, where it is not float32.
"""
DTYPES = {"float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}

KEYWORDS = ("_target_", "_dtype_")

LIBRARIES = ("msh.backbones.", "msh.tasks.stems.", "torch.nn.", "torchvision.models.", "timm.", "transformers.")
"""Start of the constructors that a file may name. Those of other code are passed in by the caller."""
FUNCTIONS = ("msh.tasks.stems.linear",)
"""Constructors that are no classes of modules."""
SPARE = 4
"""Times the numbers of a file that a module rebuilt from it may have."""


def build(recipe: Mapping[str, Any]) -> nn.Module:
    """Build a module from a recipe that is trusted, such as one's own config.

    Raises:
        ValueError: it does not give a module.
    """
    return _make(recipe, {})


Constructors = Mapping[str, Callable[..., nn.Module]]
"""Dotted name to constructor, of modules that are not of msh, torch, torchvision, timm or transformers."""


def rebuild(recipe: Mapping[str, Any], what: str, numbers: int, classes: Constructors | None = None) -> nn.Module:
    """Build a module from a recipe of unknown origin, such as a file's.

    It is first built without memory, so that no recipe can ask for more than the file it comes from accounts for.

    Args:
        recipe: of a module of msh, torch, torchvision, timm or transformers.
        what: it is, for messages.
        numbers: that the file holds.
        classes: constructors of modules of other code.
    Raises:
        ValueError: the recipe names other code, has wrong arguments, or gives a module that is too large.
    """
    size = sum(tensor.numel() for tensor in _tensors(outline(recipe, what, classes)))
    if size > max(2**22, SPARE * numbers):
        raise ValueError(f"{what} would have {size:,} numbers, and the file holds {numbers:,}")
    return _make(recipe, dict(classes or {}))


def outline(recipe: Mapping[str, Any], what: str, classes: Constructors | None = None) -> nn.Module:
    """Build a module from a recipe of unknown origin on the meta device: its structure, without memory.

    The arguments and errors are those of `rebuild`.
    """
    classes = dict(classes or {})
    for target in _targets(recipe):
        if target not in classes and not is_known(target):
            raise ValueError(
                f"{what} is built by {target!r}, which is not of msh, torch, torchvision, timm or transformers: pass "
                f"the constructor, classes={{{target!r}: ...}}"
            )
    try:
        with torch.device("meta"):
            return _make(recipe, classes)
    except Exception as error:  # whatever a constructor raises about its arguments
        raise ValueError(f"{what} cannot be rebuilt by {recipe.get('_target_')!r}: {error}") from error


def is_known(target: str) -> bool:
    """Tell whether files may name a constructor: a class of modules, or a listed function, of a known library."""
    if not target.startswith(LIBRARIES):
        return False
    try:
        found = pkgutil.resolve_name(target)
    except Exception:  # there is no such thing
        return False
    if target in FUNCTIONS:
        return True
    origin = f"{getattr(found, '__module__', '')}."
    return inspect.isclass(found) and issubclass(found, nn.Module) and origin.startswith(LIBRARIES)


def _make(recipe: Mapping[str, Any], classes: Constructors) -> nn.Module:
    """Build a module, and before it the modules among its arguments."""
    arguments = {key: _argument(value, classes) for key, value in recipe.items() if key not in KEYWORDS}
    target = recipe["_target_"]
    module = (classes[target] if target in classes else pkgutil.resolve_name(target))(**arguments)
    if not isinstance(module, nn.Module):
        raise ValueError(f"{target} gives a {type(module).__name__}, which is no torch.nn.Module")
    if "_dtype_" in recipe:
        one_of("_dtype_", recipe["_dtype_"], DTYPES)
        module.to(DTYPES[recipe["_dtype_"]])
    return module


def _argument(value: Any, classes: Constructors) -> Any:
    if isinstance(value, dict):
        if "_target_" in value:
            return _make(value, classes)
        return {key: _argument(inner, classes) for key, inner in value.items()}
    return [_argument(inner, classes) for inner in value] if isinstance(value, list) else value


def _targets(value: Any) -> Iterator[str]:
    """Every constructor that a recipe names, at any depth."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            yield str(value["_target_"])
        for inner in value.values():
            yield from _targets(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _targets(inner)


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()
