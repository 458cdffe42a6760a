"""One dense trunk that all tasks train, to compare subnetworks with."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.func import functional_call

from msh.subnetworks.tensors import TaskDict, make_gradients_dense, widened
from msh.subnetworks.views import cast_features, cast_type, half_precision, in_own_type
from msh.training.module import TaskModule


class SharedNetwork(nn.Module):
    """A backbone with all weights shared by all tasks; each task has its own head and stem.

    Args:
        backbone: any module.
        master_weights: train a bfloat16 or float16 backbone in float32, as `MultiSubnetwork` does.
    """

    def __init__(self, backbone: nn.Module, master_weights: bool = True) -> None:
        super().__init__()
        self.backbone = backbone
        make_gradients_dense(backbone)
        self.cast_type = cast_type(backbone.parameters())
        self._types = {name: parameter.dtype for name, parameter in backbone.named_parameters()}
        for parameter in backbone.parameters() if master_weights else ():
            if half_precision([parameter]):
                parameter.data = widened(parameter.data)
        self.stems = TaskDict()
        self.heads = TaskDict()

    @property
    def tasks(self) -> list[str]:
        """List the tasks' names, in the order they were added."""
        return list(self.heads)

    def add_task(self, task: str, head: nn.Module, stem: nn.Module | None = None) -> None:
        """Add a task.

        Args:
            task: its name.
            head: from the backbone's features to the outputs.
            stem: from the task's input to the backbone's; identity when None.
        """
        self.heads[task] = head
        self.stems[task] = stem if stem is not None else nn.Identity()

    def train_only(self, tasks: Sequence[str]) -> None:
        """Let gradients reach only these tasks' heads and stems, and the backbone."""
        for parts in (self.heads, self.stems):
            for task in self.tasks:
                parts[task].requires_grad_(task in tasks)

    def part(self, tasks: Sequence[str]) -> nn.Module:
        """Return the backbone and these tasks' stems and heads, as one module."""
        return nn.ModuleList([self.backbone, *(parts[task] for parts in (self.stems, self.heads) for task in tasks)])

    def forward(self, inputs: Tensor, task: str) -> Tensor:
        """Compute a task's outputs (batch, outputs) from its inputs (batch, *input shape)."""
        stem, head, cast = self.stems[task], self.heads[task], self.cast_type
        if cast is None:
            outputs: Tensor = head(self.backbone(stem(inputs)))
            return outputs
        tensors = {name: parameter.to(self._types[name]) for name, parameter in self.backbone.named_parameters()}
        features = cast_features(in_own_type(stem, inputs), cast)
        return in_own_type(head, functional_call(self.backbone, tensors, (features,)))


class SharedModule(TaskModule):
    """Train a network with all weights shared by all tasks."""

    network: SharedNetwork

    def groups(self) -> dict[tuple[str, ...], nn.Module]:
        """Return all tasks that train, as one group."""
        return {self.context.tasks: self.network.part(self.context.tasks)}
