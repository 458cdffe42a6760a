"""Build error messages about names and values, and match dotted keys."""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Callable, Iterable
from numbers import Integral
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

USER_INFO = re.compile(r"(?:(?<=://)(?=[^/\s'\"@]*:)|(?<=https://)|(?<=http://))[^/\s'\"]+@")
"""User name and password in a URL, or a token before the host of a web address."""
INTERPOLATION = re.compile(r"\$\{[^{}]*\}")
SECRETS = ("MSH_API_KEY", "WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "HF_TOKEN")
"""Variables whose values are shown nowhere."""


def suggestion(name: str, allowed: Iterable[str], similarity: float = 0.5) -> str:
    """Return "; did you mean ...?" with the nearest allowed name, or "" where none is similar enough, of at most 1."""
    near = difflib.get_close_matches(name, list(allowed), n=1, cutoff=similarity)
    return f"; did you mean {near[0]!r}?" if near else ""


def requirement(key: str, bound: str, value: object) -> str:
    """Say which bound a value breaks: "pruning.rounds must be >= 1, got 0".

    Args:
        key: dotted key of the setting, or name of the argument.
        bound: what is allowed, as it reads after "must be".
        value: the one given.
    """
    return f"{key} must be {bound}, got {without_secrets(repr(value))}"


def invalid(key: str, bound: str, value: object, allowed: Iterable[str] = ()) -> ValueError:
    """Build the error for a value that is not allowed: raise what this returns.

    Args:
        key, bound, value: see `requirement`.
        allowed: names among which the nearest is suggested.
    """
    return ValueError(requirement(key, bound, value) + suggestion(str(value), allowed))


def one_of(key: str, value: object, allowed: Iterable[str]) -> None:
    """Raise unless the value is one of the allowed names.

    Raises:
        ValueError: naming the key, the value, the allowed names and the nearest of them.
    """
    names = list(allowed)
    if value not in names:
        raise invalid(key, f"one of {', '.join(names)}", value, names)


def at_least(key: str, least: int, value: object) -> None:
    """Raise unless the value is a whole number, and large enough.

    Raises:
        ValueError: naming the key, the value and the bound.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise invalid(key, "a whole number", value)
    if int(value) < least:
        raise invalid(key, f">= {least}", value)


def described(error: BaseException) -> str:
    """Write an error of other code in one line: "KeyError: 'name'"."""
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")


class ProblemsError(ValueError):
    """One or more problems of one input.

    Attributes:
        problems: a sentence for each.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return self.problems[0]
        return "\n".join([f"{len(self.problems)} problems:", *(f"- {problem}" for problem in self.problems)])


class Problems:
    """Collect the problems of one input, and raise them together where the `with` block ends.

    Args:
        prefix: put before each.
    """

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.problems: list[str] = []
        self.cause: ValueError | None = None
        """The first error that a function raised, for the traceback."""

    def add(self, problem: ValueError | str) -> None:
        """Collect a problem, or all in a ProblemsError."""
        problems = problem.problems if isinstance(problem, ProblemsError) else [str(problem)]
        self.problems += [self.prefix + text for text in problems]

    def check(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Call a function; return its result, or None after collecting its ValueError."""
        try:
            return function(*args, **kwargs)
        except ValueError as error:
            self.add(error)
            self.cause = self.cause or error
            return None

    def __enter__(self) -> Problems:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None and self.problems:
            one = len(self.problems) == 1
            raise (ValueError(self.problems[0]) if one else ProblemsError(self.problems)) from self.cause


def is_under(key: str, roots: Iterable[str]) -> bool:
    """Return whether a dotted key is one of these, or below one."""
    return any(key == root or key.startswith(f"{root}.") for root in roots)


def without_secrets(text: str) -> str:
    """Replace user names and passwords in URLs, and secrets from the environment, by `***`."""
    for secret in (os.environ.get(name, "") for name in SECRETS):
        if len(secret) >= 8:  # a shorter one could be part of any word
            text = text.replace(secret, "***")
    return USER_INFO.sub("***@", text)


def refuse_password(key: str, value: str) -> None:
    """Raise for a URL with a password, which a run would write into its folder; interpolations are not resolved there.

    Raises:
        ValueError: naming the key, and where passwords belong.
    """
    written = USER_INFO.search(INTERPOLATION.sub("", value))
    if written and written.group().strip(":@"):
        problem = requirement(key, "an address without a password", value)
        raise ValueError(
            f"{problem}; passwords belong in the environment: set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or write ${oc.env:NAME}"
        )


class SafeFormatter(logging.Formatter):
    """Format log records, tracebacks too, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text."""
        return without_secrets(super().format(record))
