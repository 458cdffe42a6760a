"""One dense trunk that all tasks train: what subnetworks are compared with."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from msh.subnetworks.tensors import TaskDict
from msh.training.module import TaskModule


class SharedNetwork(nn.Module):
    """A backbone whose every weight serves every task; only heads and stems are a task's own.

    Args:
        backbone: any module.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.stems = TaskDict()
        self.heads = TaskDict()

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, in the order they were added."""
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
        """Let only these tasks' heads and stems have gradients, beside the backbone."""
        for parts in (self.heads, self.stems):
            for task in self.tasks:
                parts[task].requires_grad_(task in tasks)

    def part(self, tasks: Sequence[str]) -> nn.Module:
        """Backbone, stems and heads of these tasks, as one module."""
        return nn.ModuleList([self.backbone, *(parts[task] for parts in (self.stems, self.heads) for task in tasks)])

    def forward(self, inputs: Tensor, task: str) -> Tensor:
        """A task's outputs (batch, outputs) for its inputs (batch, *input shape)."""
        outputs: Tensor = self.heads[task](self.backbone(self.stems[task](inputs)))
        return outputs


class SharedModule(TaskModule):
    """Trains a network whose every weight serves every task."""

    network: SharedNetwork

    def groups(self) -> dict[tuple[str, ...], nn.Module]:
        """All tasks that train, together."""
        return {tuple(self.learning): self.network.part(self.learning)}
