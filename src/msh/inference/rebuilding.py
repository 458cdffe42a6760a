"""Rebuilding a network from its file alone: no config, no data set, no code of the user's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from msh.files.state_file import StateFile, damages, read_state
from msh.recipes import Constructors, Recipe, rebuild
from msh.subnetworks import MultiSubnetwork, NetworkState


def rebuild_network(path: Path, classes: Constructors | None = None) -> MultiSubnetwork:
    """Build a network, with its tasks, from a network or subnetwork file.

    Args:
        path: of the file.
        classes: constructors of modules of other code that the file names.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, of an earlier release (which carries no recipes), names code that was not
            passed in, or is of a task that reads tasks of another file.
    """
    return network_of(path, read_state(path, "network", "subnetwork"), classes)


def network_of(path: Path, file: StateFile, classes: Constructors | None = None) -> MultiSubnetwork:
    """`rebuild_network`, of a file that has been read."""
    state = file.state
    if not state.recipe:
        raise ValueError(
            f"{path} does not say how its backbone is built: rebuild the network from its run folder, or write the "
            "file from a MultiSubnetwork with a recipe"
        )
    for entry in state.tasks.values():
        if missing := [other for other in entry.reads if other not in state.tasks]:
            raise ValueError(f"{path}: task {entry.name!r} reads task {missing[0]!r}: use the network file of both")
    numbers = sum(tensor.numel() for tensor in _tensors(state))

    def built(recipe: Recipe | None, what: str) -> nn.Module | None:
        return None if recipe is None else rebuild(recipe, f"{path}: {what}", numbers, classes)

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
    with damages(path):
        whole = network.state_dict()
        network.load_state_dict(_filled(state, whole, file.free_weights))
    return network.eval()


def _filled(state: NetworkState, now: Mapping[str, Tensor], free_weights: bool) -> dict[str, Tensor]:
    """A state dict in which the network keeps what the file lacks: free weights, and a backbone's initial values."""
    found = state.state_dict()
    if not free_weights:
        for name, free in state.free().items():
            found[f"backbone.{name}"] = torch.where(free, now[f"backbone.{name}"], found[f"backbone.{name}"])
        for again, name in state.tied.items():
            found[f"backbone.{again}"] = found[f"backbone.{name}"]
    missing = {key: value for key, value in now.items() if key.startswith("backbone.") and key not in found}
    return missing | found


def _tensors(state: NetworkState) -> list[Tensor]:
    private = [tensor for entry in state.tasks.values() for tensor in entry.private.values()]
    return [*state.weights.values(), *state.defaults.values(), *private]
