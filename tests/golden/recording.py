"""All that the recordings ask of msh: commands by their arguments, and a run folder's network through `load_run`."""

import hashlib
import io
import json
import math
import platform
import re
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from integration.running import here
from msh.cli import app, train
from msh.training.evaluation import load_run

FOLDER = Path(__file__).parent
EXAMPLES = 64
"""Of the test split, in one batch, whose outputs are recorded."""
TOLERANCE = 0.03
"""Of float32 scores, on another processor or release of torch; or three examples, where that is more."""
RELATIVE = 0.02
"""Of what is above 1 there: errors in a task's unit, and numbers of weights that learned scores choose."""
SCORES64 = "runs-float64.json"
FLOAT64 = 0.003
"""Tolerance of scores in float64; of what is above 1, relative to it."""
SCORES = ("test", "test_when_learned", "val", "dense", "finetune", "joint")
COUNTS = ("metric", "stage", "density", "weights", "weights_reused", "weights_read", "weights_private")
WHOLE = ("status", "curriculum", "matrix", "forgetting", "bwt", "capacity", "guarantee", "finetune", "ensemble")

BITWISE = ("digest_of_weights", "digest_of_outputs", "guarantee")
"""Entries that only hold where everything is rounded as in the recording."""


def environment() -> dict[str, str]:
    """Name everything that decides how sums are rounded."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    found = [re.search(rf"^{key}\s*: (.+)$", info, re.M) for key in ("model name", "cpu family", "model")]
    name, family, model = (match[1] if match else "unknown" for match in found)
    return {
        "cpu": f"{name}, family {family}, model {model}" if info else platform.processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


def read(name: str) -> Any:
    """Read a recording."""
    return json.loads((FOLDER / name).read_text())


def write(name: str, content: Any) -> None:
    """Write a recording."""
    (FOLDER / name).write_text(json.dumps(content, indent=1) + "\n")


# ---- commands


def run(folder: Path, *overrides: str) -> Path:
    """Run `train.py` in this process, in a folder that it makes; returns the folder."""
    _quietly(train.main, f"hydra.run.dir={folder}", *overrides, cwd=folder.parent)
    return folder


def resume(folder: Path) -> Path:
    """Resume a run in this process."""
    _quietly(train.main, f"resume={folder}", cwd=folder.parent)
    return folder


def command(*arguments: object, cwd: Path) -> str:
    """Run a subcommand of `msh` in this process; returns what it printed."""
    return _quietly(app.main, *arguments, cwd=cwd)


def _quietly(main: Callable[[], None], *arguments: object, cwd: Path) -> str:
    printed, errors = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(printed), redirect_stderr(errors):
            here(main, *arguments, cwd=cwd)
    except SystemExit as stop:
        if stop.code not in (None, 0, 128 + signal.SIGTERM):
            raise AssertionError(f"{arguments}: {errors.getvalue()}") from None
    return printed.getvalue()


@contextmanager
def told_to_end_after(steps: int) -> Iterator[None]:
    """Send this process SIGTERM once so many optimizer steps were made."""
    done = 0

    def count(*_: object) -> None:
        nonlocal done
        done += 1
        if done == steps:
            signal.raise_signal(signal.SIGTERM)

    handle = register_optimizer_step_post_hook(count)
    try:
        yield
    finally:
        handle.remove()
    assert done >= steps, f"the run ended after {done} steps"


# ---- results


def outcome(folder: Path) -> dict[str, Any]:
    """Describe a finished run: scores and sizes, and two digests of each task."""
    results = json.loads((folder / "results.json").read_text())
    _, tasks, network = load_run(folder, unsafe=True)
    rows = {}
    for name, row in results["tasks"].items():
        val, test = (tasks[name].splits[split] for split in ("val", "test"))
        inputs = test.inputs[torch.arange(min(EXAMPLES, len(test)))]
        rows[name] = {key: row[key] for key in (*SCORES, *COUNTS)}
        rows[name]["tolerance"] = max(TOLERANCE, 3 / min(len(val), len(test)))
        rows[name]["digest_of_weights"] = digest(effective_weights(network, name))
        rows[name]["digest_of_outputs"] = digest({"": outputs(network, name, inputs)})
    loosest = max(row["tolerance"] for row in rows.values())
    return {"tolerance": loosest, "tasks": rows, **{key: results[key] for key in WHOLE}}


def effective_weights(network: Any, task: str) -> dict[str, Tensor]:
    """Take the prunable weights (*shape) that a frozen task computes with; 0 where it neither owns nor reads."""
    own, read = network.masks(task), network.reading(task)
    return {name: torch.where(own[name] | read[name], weight, 0.0) for name, weight in network.weights()}


def all_weights(network: Any) -> dict[str, Tensor]:
    """Take the prunable weights (*shape) of all tasks, and those that no task owns."""
    return dict(network.weights())


def outputs(network: Any, task: str, inputs: Tensor) -> Tensor:
    """Compute a task's outputs (batch, outputs) in evaluation mode."""
    with torch.no_grad():
        found: Tensor = network.eval()(inputs, task)
    return found.float()


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors in the order of their names, each as name, shape and float32 bytes."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].detach().cpu().contiguous().float()
        sha.update(f"{name}{list(values.shape)}".encode())
        sha.update(values.numpy().tobytes())
    return sha.hexdigest()


# ---- comparison


def scores_alone(described: Any) -> Any:
    """Leave out of an outcome what only holds where everything is rounded as in the recording, and its tolerances."""
    if isinstance(described, dict):
        return {k: scores_alone(value) for k, value in described.items() if k not in (*BITWISE, "tolerance")}
    return described


def largest_difference(recorded: Any, found: Any) -> float:
    """Compute the largest difference of two numbers at the same place, relative where they are above 1."""
    if isinstance(recorded, dict):
        return max((largest_difference(recorded[key], found[key]) for key in recorded), default=0.0)
    if isinstance(recorded, list):
        return max((largest_difference(*pair) for pair in zip(recorded, found, strict=True)), default=0.0)
    if isinstance(recorded, int | float) and isinstance(found, int | float):
        return abs(found - recorded) / max(1.0, abs(recorded))
    return 0.0 if recorded == found else math.inf


def differences(recorded: Any, found: Any, exact: bool, tolerance: float = TOLERANCE, path: str = "") -> Iterable[str]:
    """Name every entry that differs: bitwise if exact, else by more than the tolerance, and none of `BITWISE`."""
    if isinstance(recorded, dict) and isinstance(found, dict):
        tolerance = recorded.get("tolerance", tolerance)
        for key in recorded:
            if key not in found:
                yield f"{path}.{key}: is missing"
            elif exact or key not in BITWISE:
                yield from differences(recorded[key], found[key], exact, tolerance, f"{path}.{key}")
    elif isinstance(recorded, list) and isinstance(found, list) and len(recorded) == len(found):
        for place, pair in enumerate(zip(recorded, found, strict=True)):
            yield from differences(*pair, exact, tolerance, f"{path}[{place}]")
    elif not exact and isinstance(recorded, int | float) and isinstance(found, int | float):
        if abs(found - recorded) > max(tolerance, min(tolerance, RELATIVE) * abs(recorded) if abs(recorded) > 1 else 0):
            yield f"{path}: recorded {recorded}, now {found}"
    elif recorded != found:
        yield f"{path}: recorded {recorded}, now {found}"
