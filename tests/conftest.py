"""One thread, so that sums are taken in one order; examples that are the same in every run; no reports to W&B."""

import gc
import importlib.metadata
import logging
import os
from functools import cache

import pytest
from hypothesis import settings

os.environ["WANDB_ERROR_REPORTING"] = "false"  # else its telemetry looks for its server

importlib.metadata.entry_points = cache(importlib.metadata.entry_points)  # Lightning reads them for every trainer

gc.set_threshold(10_000)  # else a tenth of the time goes into looking for cycles among a million objects of libraries

settings.register_profile("msh", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("msh")


def pytest_configure(config):
    """Set torch up, except in a process that only hands tests to others: it needs no torch, and starts sooner."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return
    import torch

    set_torch()
    if not torch.cuda.is_available():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # else torch looks for a driver in every step of an optimizer
        for devices in (torch.cuda, torch.xpu):  # else every seed notes its whole stack, for devices to come
            devices.manual_seed_all = lambda seed: None


def set_torch():
    """Set what holds for a whole process: subnormal numbers as runs treat them, and one thread."""
    import torch

    torch.set_flush_denormal(True)
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def _torch_as_it_was():
    """Undo what a test set for the whole process: no test may depend on those before it."""
    yield
    set_torch()


@pytest.fixture(autouse=True)
def _root_logger() -> None:
    """Undo what a command left in this process: its level, and handlers whose streams may be closed."""
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    logging.getLogger("msh").setLevel(logging.NOTSET)
    for handler in [handler for handler in root.handlers if not type(handler).__module__.startswith("_pytest")]:
        root.removeHandler(handler)


@pytest.fixture(autouse=True, scope="module")
def _libraries_out_of_the_collectors_way():
    """Let the garbage collector pass over all that is there before a file's tests, mostly modules and tests."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    """Let libraries clean up after themselves, or they report leaks."""
    gc.unfreeze()
