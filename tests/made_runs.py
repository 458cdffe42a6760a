"""Run folders made without training."""

import json
import math

import torch

from msh.files.state_file import StateFile
from msh.runs.metrics import write_rows
from msh.runs.results import Results, TaskResult
from msh.subnetworks import NetworkState, TaskState


def write_run(folder, tasks, shapes, reads=None, seed=0):
    """A finished run of tasks "t000", "t001", ...: a stage each, every second an rmse, owners drawn at random.

    Args:
        folder: of the run.
        tasks: number of tasks.
        shapes: of the layers.
        reads: number of earlier tasks that each reads.
        seed: of all draws.
    """
    generator = torch.Generator().manual_seed(seed)
    names = [f"t{place:03}" for place in range(tasks)]
    layers = {f"layers.{place}.weight": tuple(shape) for place, shape in enumerate(shapes)}
    dtype = torch.uint8 if tasks < 255 else torch.int16
    owners = {n: torch.randint(0, tasks + 1, s, generator=generator).to(dtype) for n, s in layers.items()}
    rows = {n: TaskState(n, i + 1, reads=tuple(names[:i][-reads:]) if reads else ()) for i, n in enumerate(names)}
    weights = {name: torch.zeros(shape) for name, shape in layers.items()}
    state = NetworkState(weights, owners, {name: torch.zeros(()) for name in layers}, tasks=rows)
    StateFile(state, "network", {}).write(folder / "network.safetensors")
    total = sum(math.prod(shape) for shape in layers.values())
    kinds = [("accuracy", "max") if place % 2 == 0 else ("rmse", "min") for place in range(tasks)]
    found = {
        n: TaskResult(*kind, stage=i, density=1 / tasks, weights=total // tasks)
        for i, (n, kind) in enumerate(zip(names, kinds, strict=True))
    }
    results = Results("made", seed, [[name] for name in names], found, "0a1b2c3d", "finished", 12.5)
    scores = {n: 0.5 + 0.4 * float(torch.rand((), generator=generator)) for n in names}
    results.matrix = [[scores[n] if i <= last else None for i, n in enumerate(names)] for last in range(tasks - 1)]
    results.add_row(scores)
    for name, score in scores.items():
        results.tasks[name].test_when_learned = score
    owned = state.total().taken
    results.capacity = {"prunable": total, "owned": owned, "free": total - owned}
    results.guarantee = {"checked": tasks * (tasks - 1) // 2, "violations": 0}
    results.save(folder)
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(json.dumps({"name": "made", "seed": seed, "reuse": "none"}))
    _write_metrics(folder, names, kinds, generator)
    return results


def _write_metrics(folder, names, kinds, generator):
    """Ten epochs a task, ten steps each, with two cuts."""
    columns = ["step"]
    lines = []
    for place, (name, (metric, _)) in enumerate(zip(names, kinds, strict=True)):
        columns += [f"{name}/train/loss", f"{name}/val/loss", f"{name}/val/{metric}", f"{name}/sparsity"]
        for epoch in range(10):
            step = str(place * 100 + epoch * 10 + 9)
            draw = float(torch.rand((), generator=generator))
            lines.append({"step": step, f"{name}/train/loss": f"{draw / (epoch + 1)}"})
            lines.append(
                {"step": step, f"{name}/val/loss": f"{draw}", f"{name}/val/{metric}": f"{0.9 - draw / (epoch + 1)}"}
            )
            if epoch in (2, 4):
                lines.append({"step": step, f"{name}/sparsity": f"{0.4 * epoch / 2}"})
    write_rows(folder / "metrics.csv", columns, [dict.fromkeys(columns, "") | line for line in lines])
