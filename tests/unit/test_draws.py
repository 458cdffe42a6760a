"""Global random generators: seeded together, put back together, and by one file only."""

import random
import re
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

import msh
from msh.draws import drawing_apart, seed_draws

SOURCE = Path(msh.__file__).parent


def draw():
    return torch.rand(()).item(), random.random(), float(np.random.rand())


@pytest.mark.parametrize("cpu_only", [False, True])
@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_a_seed_determines_the_draws_of_all_three(seed, cpu_only):
    with drawing_apart():
        seed_draws(seed, cpu_only)
        first = draw()
        seed_draws(seed, cpu_only)
        assert draw() == first
        seed_draws(seed + 1 if seed == 0 else 1, cpu_only)
        assert all(one != other for one, other in zip(draw(), first, strict=True))


@pytest.mark.parametrize("seed", [None, 3])
def test_draws_apart_change_no_later_ones_even_after_an_error(seed):
    with drawing_apart(7):
        after = draw()
    with drawing_apart(7):
        with suppress(KeyError), drawing_apart(seed):
            inside = draw()
            raise KeyError
        assert draw() == after
    assert (inside == after) == (seed is None)


def test_no_other_file_seeds_or_keeps_one_global_generator():
    names = (
        r"(torch|np\.random|numpy\.random|random|default_generator)\.(manual_seed|seed|fork_rng|[gs]et_(rng_)?state)\("
    )
    files = [path for path in SOURCE.rglob("*.py") if re.search(rf"(?<![\w.)]){names}|\.fork_rng\(", path.read_text())]
    assert [path.name for path in files] == ["draws.py"]
