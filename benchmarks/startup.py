"""Row 12: import time of msh, of commands that compute nothing, and from a command to its first training step."""

from __future__ import annotations

import os
import pkgutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

import msh
from benchmarks.records import Record
from benchmarks.timing import Settings, whole_process

FRAMEWORKS = "import torch, pytorch_lightning"
MODULES = [m.name for m in pkgutil.walk_packages(msh.__path__, "msh.")]
UNUSED = ("wandb", "matplotlib", "plotly", "sklearn", "torchvision", "pandas", "tensorboard")
"""Libraries that importing msh must not load; tasks and loggers that need them do."""


class FirstStep(pl.Callback):
    """Print the time of the first training step, and exit."""

    def on_train_batch_end(self, *_: Any) -> None:
        """Print the time and exit."""
        os.write(1, f"\nfirst step: {time.time()}\n".encode())
        os._exit(0)


def start_up(settings: Settings) -> Iterator[Record]:
    """Measure row 12."""
    rounds = settings.repeats or (1 if settings.quick else 10)
    imports = "; ".join(f"import {name}" for name in MODULES)
    times: dict[str, list[float]] = {name: [] for name in ("frameworks", "msh", "help", "inspect", "first step")}
    loaded = _unused(settings, imports)  # and the files are in the system's cache
    with tempfile.TemporaryDirectory() as folder:
        whole_process([*_command(folder, settings), "trainer.max_epochs=1"], settings.threads)
        _time_all(times, rounds, imports, Path(folder), settings)
    middle = {name: statistics.median(taken) for name, taken in times.items()}
    of_imports, unit = middle["frameworks"], "s (importing torch and Lightning in s)"
    what = f"what importing all {len(MODULES)} modules of msh adds / importing torch and Lightning, in fresh processes"
    share = middle["msh"] / of_imports
    yield settings.record("12-import", what, share, "share (importing torch and Lightning in s)", of_imports, rounds)
    often = len(times["help"])
    yield settings.record("12-help", "python train.py --help", middle["help"], unit, of_imports, often)
    what = "msh inspect RUN_DIR, a finished run of four tasks"
    yield settings.record("12-inspect", what, middle["inspect"], unit, of_imports, often)
    what = "from the command python train.py +experiment=sequential to the end of its first training step"
    what += " / importing torch and Lightning"
    ratio, unit = middle["first step"] / of_imports, "ratio (importing torch and Lightning in s)"
    yield settings.record("12-first-step", what, ratio, unit, of_imports, often)
    what = f"of {', '.join(UNUSED)}, how many importing all of msh loads beside what torch and Lightning do"
    yield settings.record("12-unused", what, len(loaded), "modules", None, 1)


def _time_all(times: dict[str, list[float]], rounds: int, imports: str, run: Path, settings: Settings) -> None:
    """Time fresh processes in turns: imports in each round, commands in each third one."""
    help_, inspect = [sys.executable, "train.py", "--help"], [sys.executable, "-m", "msh.cli.app", "inspect", str(run)]
    for number in range(rounds):
        frameworks, added = _import_times(imports, settings)
        times["frameworks"].append(frameworks)
        times["msh"].append(added)
        if number % 3 == 0:
            times["help"].append(whole_process(help_, settings.threads)[0])
            times["inspect"].append(whole_process(inspect, settings.threads)[0])
            times["first step"].append(_first_step(settings))


def _command(folder: str, settings: Settings) -> list[str]:
    command = [sys.executable, "train.py", "+experiment=sequential", f"hydra.run.dir={folder}", "trainer=cpu"]
    return [*command, f"threads={settings.threads}"]


def _import_times(imports: str, settings: Settings) -> tuple[float, float]:
    """Time imports in a fresh process; return (torch and Lightning, then msh) in seconds."""
    timed = "import time; start = time.perf_counter(); {}; middle = time.perf_counter(); {}; "
    timed += "print(middle - start, time.perf_counter() - middle)"
    frameworks, added = whole_process([sys.executable, "-c", timed.format(FRAMEWORKS, imports)], settings.threads)[
        1
    ].split()[-2:]
    return float(frameworks), float(added)


def _first_step(settings: Settings) -> float:
    with tempfile.TemporaryDirectory() as folder:
        command = [*_command(folder, settings), "+callbacks.first={_target_: benchmarks.startup.FirstStep}"]
        start = time.time()
        _, printed = whole_process(command, settings.threads)
    return float(printed.rpartition("first step: ")[2]) - start


def _unused(settings: Settings, imports: str) -> list[str]:
    before, after = "import sys; before = set(sys.modules)", f"print(*set({UNUSED!r}) & (set(sys.modules) - before))"
    return whole_process([sys.executable, "-c", f"{FRAMEWORKS}; {before}; {imports}; {after}"], settings.threads)[
        1
    ].split()
