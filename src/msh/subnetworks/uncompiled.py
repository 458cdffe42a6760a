"""Leave to Python what torch.compile cannot follow. Imported when first used: it loads torch's compiler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from msh.subnetworks.blocks import choose_held
from msh.subnetworks.subnetwork import Subnetwork
from msh.subnetworks.views import TrainingNetwork

if TYPE_CHECKING:
    from msh.subnetworks.network import MultiSubnetwork


@torch.compiler.disable  # type: ignore[untyped-decorator]
def module_of(network: MultiSubnetwork, task: str) -> nn.Module:
    """Look up or build a task's module, without what an uncompiled forward pass has left in it."""
    module = network.module(task)
    if isinstance(module, TrainingNetwork):
        module.drop()
    return module


@torch.compiler.disable  # type: ignore[untyped-decorator]
def update_choice(sub: Subnetwork, candidates: Callable[[str], Mapping[str, Tensor]]) -> None:
    """Select a task's weights by its current scores.

    Selects each time: fused optimizers change scores without changing their versions.

    Args:
        sub: masked, with scores that choose.
        candidates: task to {tensor name: bool (*shape)}.
    """
    with torch.inference_mode(False), torch.no_grad():  # the choice outlives an inference pass
        held = candidates(sub.task)
        # the training loop reports a loss that is not finite: raise no error about scores here
        for name, mask in choose_held(sub.blocks, dict(sub.scores.items()), sub.kept, held).items():
            sub.chosen.set(name, (mask | ~held[name]).to(sub.scores[name].dtype), persistent=False)
