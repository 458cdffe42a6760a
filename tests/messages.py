"""Match error messages by key, bound and value, so that their wording can change in one place."""

import re

from msh.errors import requirement

ANY = object()
"""Stands for any bound or value."""


def says(key, bound=ANY, value=ANY, meant=None):
    """Regular expression for the message of `msh.errors.invalid`.

    Args:
        key: dotted key of the setting.
        bound: what is allowed, as after "must be".
        value: the one given.
        meant: the name that the message suggests.
    """
    text = re.escape(requirement(key, "BOUND" if bound is ANY else bound, "VALUE" if value is ANY else value))
    text = text.replace("BOUND", ".*").replace("'VALUE'", ".*")
    return text if meant is None else f"{text}; did you mean '{meant}'"
