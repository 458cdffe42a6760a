"""Running the commands, in this process or in one of their own."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    *("backbone.width=32", "backbone.depth=2", "threads=1", "trainer.accelerator=cpu"),
    *("callbacks=none", "report=false"),
]
"""A network small enough for tests; everything else is as users have it."""
SHORTER = {"wine": "repeat=1", "iris": "repeat=1", "digits": "batch_size=64"}
SHORTER |= {"breast_cancer": "batch_size=32", "diabetes": "batch_size=32"}


def few_steps(*tasks):
    """Overrides for bundled tasks: epochs of 10 to 20 steps, instead of 25 to 80."""
    return [f"tasks.{task}.{SHORTER[task]}" for task in tasks]


def command(script, *arguments):
    return [sys.executable, str(ROOT / script), *arguments]


def start(script, *arguments, cwd):
    """The command in a process of its own; returns the process."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    return subprocess.Popen(
        command(script, *arguments),
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, seconds=240):
    """(exit code, all it printed)."""
    printed, _ = process.communicate(timeout=seconds)
    return process.returncode, printed


def run(script, *arguments, cwd):
    """The command in a process of its own, to its end; returns what it printed."""
    code, printed = finish(start(script, *arguments, cwd=cwd))
    assert code == 0, printed
    return printed


def here(main, *arguments, cwd):
    """A command's `main` in this process; an exit code other than 0 raises SystemExit."""
    handlers, threads = logging.getLogger().handlers[:], torch.get_num_threads()
    GlobalHydra.instance().clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["command", *map(str, arguments)])
        patch.chdir(cwd)
        try:
            main()
        finally:
            for handler in set(logging.getLogger().handlers) - set(handlers):
                handler.close()
            logging.getLogger().handlers[:] = handlers
            torch.set_num_threads(threads)
