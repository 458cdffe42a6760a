"""The Multiple Subnetwork Hypothesis: many tasks in one network, each in its own subnetwork, nothing forgotten."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msh.cli.python import train as train
    from msh.inference.predictor import load as load

__version__ = "0.1.0"


def importer(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a package's `__getattr__`, which imports a name when it is used.

    Args:
        package: the package's name.
        modules: name to the module that defines it.
    """

    def import_name(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(modules[name]), name)

    return import_name


# torch takes a second, and commands need none
__getattr__ = importer(__name__, {"load": "msh.inference.predictor", "train": "msh.cli.python"})
