"""Let commands build networks of the user's own classes, which files name."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from msh.recipes import Constructors


def add_allow(parser: ArgumentParser) -> None:
    """Add the argument --allow."""
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="NAME",
        help="class or function of yours that the file may build modules with, such as my_package.Net; repeat it for "
        "several. It must be importable: start msh with PYTHONPATH=. in its folder",
    )


def allowed(names: Sequence[str]) -> Constructors:
    """Import what --allow names.

    Raises:
        ValueError: a name cannot be imported, or is nothing that can be called.
    """
    import pkgutil

    from msh.errors import Problems, requirement

    found = {}
    with Problems() as problems:
        for name in names:
            try:
                found[name] = pkgutil.resolve_name(name)
            except Exception as error:  # importing the user's module may raise any type
                why = f"a class or function that can be imported ({type(error).__name__}: {error})"
                problems.add(requirement("--allow", why, name))
                continue
            if not callable(found[name]):
                problems.add(requirement("--allow", "a class or function", name))
    return found
