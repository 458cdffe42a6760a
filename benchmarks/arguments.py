"""Arguments of the benchmarks' commands."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection


def new_parser(description: str | None) -> argparse.ArgumentParser:
    """Make a parser whose help shows a module's docstring as it is."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def positive(text: str) -> int:
    """Read a whole number >= 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1, got {text}")
    return int(text)


def names_of(allowed: Collection[str]) -> Callable[[str], list[str]]:
    """Make a function that reads names, separated by commas, and refuses those that are not allowed."""

    def read(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in allowed]:
            raise argparse.ArgumentTypeError(f"there is no {', '.join(unknown)}; there are {', '.join(allowed)}")
        return names

    return read
