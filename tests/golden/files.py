"""Files of the formats that one release wrote, and the ways in which a network is made of them.

`make_files` is for that release alone: a later one writes its own formats, and must go on reading these.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from golden.recording import (
    FOLDER,
    all_weights,
    command,
    digest,
    effective_weights,
    load_run,
    outcome,
    outputs,
    resume,
    run,
    told_to_end_after,
)
from golden.runs import IMAGES, SEQUENTIAL

FILES = FOLDER / "files"
EXAMPLES = 16
"""Of the test split, whose outputs are recorded."""
NETWORK = "network.safetensors"
SMALL = [SEQUENTIAL, "backbone.width=16", "backbone.depth=2", *IMAGES]
TWO = [*SMALL, "tasks=[wine,iris]", "trainer.max_epochs=3", "pruning.density=0.3", "backbone.norm=true"]
PLANNED = [*SMALL, "tasks=[wine,iris]", "trainer.max_epochs=3", "pruning=at_init", "pruning.density=0.3"]
MANY = [*SMALL, "tasks=[iris]", "tasks.iris.variants=300", "trainer.max_epochs=2", "pruning=at_init"]
MANY += ["pruning.density=0.003", "pruning.scope=network"]
STOPPED = [*TWO, "trainer.max_epochs=4", "guarantee.on_violation=warn"]  # elsewhere, outputs are rounded otherwise
STEPS = 250
"""After which the stopped run is told to end: in the second epoch of iris, its second task."""


# ---- reading


def as_it_is(name: str) -> Callable[[Path, Path], None]:
    """Take a network file."""
    return lambda source, out: (shutil.copy(source / name, out), None)[1]


def merged_again(task: str, name: str) -> Callable[[Path, Path], None]:
    """Release a task from the network file, and merge it again from a subnetwork file."""

    def make(source: Path, out: Path) -> None:
        command("release", source / NETWORK, task, "-o", out, cwd=out.parent)
        command("merge", out, source / name, "-o", out, cwd=out.parent)

    return make


def merged(*names: str) -> Callable[[Path, Path], None]:
    """Merge a plan and subnetwork files."""
    allow = ["--allow-missing"] if names[0].startswith("iris_") else []
    return lambda source, out: (
        command("merge", source / "plan", *(source / n for n in names), "-o", out, *allow, cwd=out.parent),
        None,
    )[1]


CASES: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "network": ("two", as_it_is(NETWORK)),
    "network with free weights": ("two", as_it_is("network-free-weights.safetensors")),
    "network of state version 1": ("two", as_it_is("network-state-1.safetensors")),
    "subnetwork 3": ("two", merged_again("iris", "iris-3.safetensors")),
    "subnetwork 2": ("two", merged_again("iris", "iris-2.safetensors")),
    "reads all": ("reads-all", as_it_is(NETWORK)),
    "reads all, subnetwork 3": ("reads-all", merged_again("iris", "iris-3.safetensors")),
    "reads all, subnetwork 2": ("reads-all", merged_again("iris", "iris-2.safetensors")),
    "reads some": ("reads-some", as_it_is(NETWORK)),
    "reads some, subnetwork 3": ("reads-some", merged_again("iris", "iris-3.safetensors")),
    "plan": ("planned", merged("wine.safetensors", "iris.safetensors")),
    "plan of 300 tasks": ("planned-300", merged("iris_7.safetensors", "iris_290.safetensors")),
}
"""Case to (folder with the config and the files, what makes a network file of them)."""


def read_case(name: str, folder: Path) -> tuple[dict[str, Any], Any]:
    """Make a case's network file in a run folder; returns (tasks, network)."""
    source, make = CASES[name]
    return read_network(FILES / source, folder, make)


def read_network(source: Path, folder: Path, make: Callable[[Path, Path], None]) -> tuple[dict[str, Any], Any]:
    """Make a network file in a new run folder with the source's config; returns (tasks, network)."""
    shutil.copytree(source / ".hydra", folder / ".hydra")
    shutil.copy(source / "results.json", folder)
    make(source, folder / NETWORK)
    _, tasks, network = load_run(folder)
    return tasks, network


def resume_stopped(folder: Path) -> dict[str, Any]:
    """Resume a copy of the stopped run; returns its outcome."""
    shutil.copytree(FILES / "stopped", folder)
    return outcome(resume(folder))


# ---- making


def make_files(folder: Path) -> None:
    """Write all files anew, with the formats of this release."""
    shutil.rmtree(FILES, ignore_errors=True)
    made = run(folder / "two", *TWO)
    _keep(made, "two", {NETWORK: NETWORK, "subnetworks/iris.safetensors": "iris-3.safetensors"})
    _rewrite(FILES / "two" / "iris-3.safetensors", FILES / "two" / "iris-2.safetensors", _as_format_2)
    _rewrite(made / NETWORK, FILES / "two" / "network-state-1.safetensors", _as_state_1)
    free = run(folder / "free", *TWO, "files.free_weights=true")
    shutil.copy(free / NETWORK, FILES / "two" / "network-free-weights.safetensors")
    subnetwork = {"subnetworks/iris.safetensors": "iris-3.safetensors"}
    made = run(folder / "all", *TWO, "reuse=all")
    _keep(made, "reads-all", {NETWORK: NETWORK, **subnetwork})
    _rewrite(FILES / "reads-all" / "iris-3.safetensors", FILES / "reads-all" / "iris-2.safetensors", _as_format_2)
    made = run(
        folder / "some", *TWO, "reuse=learned", "pruning=learned", "pruning.density=0.6", "pruning.scores=random"
    )
    _keep(made, "reads-some", {NETWORK: NETWORK, **subnetwork})
    _make_planned(folder, "planned", PLANNED, ["wine", "iris"])
    _make_planned(folder, "planned-300", MANY, ["iris_7", "iris_290"])
    _make_stopped(folder / "stopped")


def _keep(made: Path, name: str, files: dict[str, str]) -> None:
    """Copy a run's config, results and some files."""
    (FILES / name / ".hydra").mkdir(parents=True, exist_ok=True)
    for part in ("config.yaml", "overrides.yaml"):
        shutil.copy(made / ".hydra" / part, FILES / name / ".hydra")
    shutil.copy(made / "results.json", FILES / name)
    for source, target in files.items():
        shutil.copy(made / source, FILES / name / target)


def _rewrite(source: Path, target: Path, change: Callable[[dict[str, str]], dict[str, str]]) -> None:
    """Write a safetensors file again with other metadata."""
    with safe_open(source, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    save_file(tensors, target, change(metadata))


def _as_format_2(metadata: dict[str, str]) -> dict[str, str]:
    """Name the earlier format: that of tasks that read nothing, or all, was the same but for its name."""
    return metadata | {"format": "msh-subnetwork-2"}


def _as_state_1(metadata: dict[str, str]) -> dict[str, str]:
    """Describe tasks as before scores were learned."""
    state = json.loads(metadata["state"])
    state["version"] = 1
    for row in state["tasks"]:
        del row["kept"]
    return metadata | {"state": json.dumps(state)}


def _make_planned(folder: Path, name: str, settings: list[str], tasks: list[str]) -> None:
    command("plan", *settings, "-o", "plan", cwd=folder)
    for task in tasks:
        made = run(folder / f"{name}-{task}", *settings, "plan=plan", f"task={task}")
        _keep(made, name, {f"subnetworks/{task}.safetensors": f"{task}.safetensors"})
    shutil.move(folder / "plan", FILES / name / "plan")
    path = FILES / name / ".hydra" / "config.yaml"  # of a job that trained one task alone: it is to name all
    text = path.read_text().replace("plan: plan\n", "plan: null\n")
    path.write_text(text.replace(f"task: {tasks[-1]}\n", "task: null\n"))


def _make_stopped(made: Path) -> None:
    with told_to_end_after(STEPS):
        run(made, *STOPPED)
    _keep(made, "stopped", {NETWORK: NETWORK})
    for part in ("checkpoints", "subnetworks"):
        shutil.copytree(made / part, FILES / "stopped" / part)


# ---- what is expected


def describe_files(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read every case: (digests of weights by case, and the outcome of an undisturbed run; tensors by name).

    The tensors are `inputs/TASK`, and `CASE/TASK`: the outputs.
    """
    digests: dict[str, dict[str, str]] = {}
    all_digests: dict[str, str] = {}
    tensors: dict[str, Tensor] = {}
    for name in CASES:
        tasks, network = read_case(name, folder / name)
        all_digests[name] = digest(all_weights(network))
        for task in network.tasks:
            inputs = tasks[task].splits["test"].inputs[torch.arange(EXAMPLES)].clone()
            tensors[f"inputs/{task}"] = inputs
            tensors[f"{name}/{task}"] = outputs(network, task, inputs)
            digests.setdefault(name, {})[task] = digest(effective_weights(network, task))
    undisturbed = outcome(run(folder / "undisturbed", *STOPPED))
    return {"weights": digests, "all weights": all_digests, "undisturbed": undisturbed}, tensors
