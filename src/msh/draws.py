"""Seed the generators from which code draws that has none of its own: torch's, Python's and NumPy's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_draws(seed: int, cpu_only: bool = False) -> None:
    """Seed torch's, Python's and NumPy's global generators.

    Args:
        seed: in [0, 2**63); NumPy takes its lower 32 bits.
        cpu_only: leave torch's generators of other devices. For absent devices, `torch.manual_seed` keeps a stack each
            time.
    """
    if cpu_only:
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


@contextmanager
def drawing_apart(seed: int | None = None) -> Iterator[None]:
    """Put the states of the global generators back at the end, of torch's that of the CPU: later draws do not change.

    Args:
        seed: code inside the context draws the same numbers in every process and run; None: from the present states.
    """
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    if seed is not None:
        seed_draws(seed)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])
