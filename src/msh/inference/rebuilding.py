"""Rebuild a network from its file alone, without config, data set or user code."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from msh.files.state_file import StateFile, damages, fill_network, read_state
from msh.recipes import Constructors, Recipe, rebuild
from msh.subnetworks import MultiSubnetwork, NetworkState


def rebuild_network(path: Path, classes: Constructors | None = None) -> MultiSubnetwork:
    """Build a network, with its tasks, from a network or subnetwork file.

    Args:
        path: of the file.
        classes: constructors of other code that the file names.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, has no recipes (as in earlier releases), names code that was not passed in,
            or lacks a task that another one reads.
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
            raise ValueError(f"{path}: task {entry.name!r} reads task {missing[0]!r}: use the network file of both")
    numbers = sum(tensor.numel() for tensor in _tensors(state))

    def built(recipe: Recipe | None, part: str) -> nn.Module | None:
        return None if recipe is None else rebuild(recipe, f"{path}: {part}", numbers, classes)

    with torch.random.fork_rng(devices=[]):
        backbone = built(state.recipe, "the backbone")
        assert backbone is not None
        with damages(path):
            for name in state.shared:
                backbone.get_parameter(name).requires_grad_(False)
            network = MultiSubnetwork(backbone, list(state.owners), state.recipe)
        for task, entry in state.tasks.items():
            head, stem = (built(entry.recipe.get(part), f"the {part} of task {task!r}") for part in ("head", "stem"))
            network.add_task(task, head, stem)
    fill_network(path, network, file)
    return network.eval()


def _tensors(state: NetworkState) -> list[Tensor]:
    private = [tensor for entry in state.tasks.values() for tensor in entry.private.values()]
    return [*state.weights.values(), *state.defaults.values(), *private]
