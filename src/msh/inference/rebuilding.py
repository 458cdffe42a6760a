"""Rebuild a network from its file alone, without config, data set or user code."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from msh.draws import drawing_apart
from msh.files.header import damages
from msh.files.state_file import StateFile, fill_network, read_state
from msh.inference.computing import usual_defaults
from msh.recipes import Constructors, Recipe, rebuild
from msh.subnetworks import MultiSubnetwork, NetworkState, TaskState


@usual_defaults()
def rebuild_network(path: Path, classes: Constructors | None = None) -> MultiSubnetwork:
    """Build a network, with its tasks, from a network or subnetwork file.

    Args:
        path: of the file.
        classes: constructors of other code that the file names.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, has no recipes (as in earlier releases), names code that was not passed in,
            or lacks a task that another one reads, or the backbone that a task changes.
    """
    return network_of(path, read_state(path, "network", "subnetwork"), classes)


def network_of(path: Path, file: StateFile, classes: Constructors | None = None) -> MultiSubnetwork:
    """Build a network from a file that was read: see `rebuild_network`."""
    state = file.state
    if not state.recipe:
        raise ValueError(
            f"{path} has no recipe for its backbone: rebuild the network from its run folder, or write the file from "
            "a MultiSubnetwork with a recipe"
        )
    for entry in state.tasks.values():
        if missing := [other for other in entry.reads if other not in state.tasks]:
            raise ValueError(
                f"{path}: task {entry.name!r} reads task {missing[0]!r}: use the network file of both, or pass a "
                f"network file with task {missing[0]!r} as its base (--base on the command line)"
            )
        if entry.base is not None:
            raise ValueError(
                f"{path}: task {entry.name!r} changes a pretrained backbone, which the file does not hold: use the "
                "network file of its run, or pass a network file with this backbone as its base (--base on the command "
                "line)"
            )
    backbone = backbone_of(path, state, classes)
    with damages(path):
        network = MultiSubnetwork(backbone, list(state.owners), state.recipe)
    for task in state.tasks.values():
        add_task_of(path, network, state, task, classes)
    fill_network(path, network, file)
    return network.eval()


def backbone_of(path: Path, state: NetworkState, classes: Constructors | None = None) -> nn.Module:
    """Build a file's backbone, without the values of its tensors.

    Args:
        path: the file's, for messages.
        state: the file's; it has a recipe.
        classes: constructors of other code that the file names.
    Raises:
        ValueError: the file is damaged, or names code that was not passed in.
    """
    with drawing_apart():
        backbone = rebuild(state.recipe, f"{path}: the backbone", _numbers(state), classes)
    with damages(path):
        for name in state.shared:
            backbone.get_parameter(name).requires_grad_(False)
    return backbone


def add_task_of(
    path: Path, network: MultiSubnetwork, state: NetworkState, task: TaskState, classes: Constructors | None = None
) -> None:
    """Add a file's task to a network, with a new head and stem; `fill_network` gives them their values.

    Args:
        path: the file's, for messages.
        network: has the file's backbone.
        state: the file's.
        task: one of its tasks.
        classes: constructors of other code that the file names.
    Raises:
        ValueError: the task has no recipe, names other code, or asks for too much memory.
    """

    def built(part: str) -> nn.Module | None:
        recipe: Recipe | None = task.recipe.get(part)
        where = f"{path}: the {part} of task {task.name!r}"
        return None if recipe is None else rebuild(recipe, where, _numbers(state), classes)

    with drawing_apart():
        head, stem = built("head"), built("stem")
    network.add_task(task.name, head, stem)


def _numbers(state: NetworkState) -> int:
    """Count the numbers in a file."""
    private = [tensor for entry in state.tasks.values() for tensor in entry.private.values()]
    tensors: list[Tensor] = [*state.owners.values(), *state.defaults.values(), *private]
    return sum(tensor.numel() for tensor in tensors)
