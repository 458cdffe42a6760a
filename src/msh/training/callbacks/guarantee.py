"""Guarantee that frozen tasks do not change by a single bit."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytorch_lightning as pl
import torch
from safetensors.torch import save
from torch import Tensor

from msh.errors import requirement
from msh.files.atomic import write_bytes
from msh.files.state_file import open_safetensors
from msh.inference.computing import flushes_denormal
from msh.subnetworks import MultiSubnetwork
from msh.subnetworks.tensors import same_bits, widened
from msh.training.module import SubnetworkModule

log = logging.getLogger(__name__)


class GuaranteeError(RuntimeError):
    """A frozen task's outputs or weights have changed."""


@dataclass(frozen=True)
class Record:
    """A task at the time it was frozen.

    Attributes:
        outputs: (examples, outputs), on the CPU.
        digest: over all its weights and private tensors.
        computed_on: device, threads and torch version that computed the outputs.
        batch_size: examples per batch for the outputs; None: all in one batch, as in earlier releases.
    """

    outputs: Tensor
    digest: str
    computed_on: str
    batch_size: int | None = None


def read_record(path: Path) -> Record:
    """Read a task's record.

    Raises:
        FileNotFoundError: there is no record.
        ValueError: the record is damaged.
    """
    tensors, metadata = open_safetensors(path)
    size = metadata.get("batch_size")
    if size is not None and not (size.isdecimal() and int(size) >= 1):
        raise ValueError(f"{path} is damaged: {requirement('batch_size', '>= 1', size)}")
    batch_size = None if size is None else int(size)
    try:
        return Record(tensors["outputs"], metadata["digest"], metadata["computed_on"], batch_size)
    except KeyError as error:
        raise ValueError(f"{path} is damaged: {error} is missing") from error


class Guarantee(pl.Callback):
    """Record each task when it is frozen; compare all earlier tasks, bitwise, after every later stage.

    A record has the outputs on validation examples, and a digest over all weights and private tensors.

    Args:
        folder: for the records, which a resumed run reads again.
        examples: validation examples per task.
        on_violation: "error" ends the run; "warn" logs and counts.
        batch_size: examples per batch for new records; each task's own when None. A comparison uses the record's
            batch size, as another may round differently.
    """

    def __init__(
        self,
        folder: Path,
        examples: int = 256,
        on_violation: Literal["error", "warn"] = "error",
        batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.folder, self.examples, self.on_violation, self.batch_size = folder, examples, on_violation, batch_size
        self.checked = 0
        self.violations = 0

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the tasks frozen before this fit, then record those that it has frozen."""
        assert isinstance(pl_module, SubnetworkModule)
        frozen = [t for t in pl_module.network.tasks if pl_module.network.subnetwork(t).phase == "frozen"]
        self.check(pl_module, [task for task in frozen if task not in pl_module.context.tasks])
        for task in pl_module.context.tasks:
            if trainer.is_global_zero:
                self.record(pl_module, task)
        trainer.strategy.barrier()

    def record(self, module: SubnetworkModule, task: str) -> None:
        """Write a task's outputs and digest."""
        self.folder.mkdir(parents=True, exist_ok=True)
        size = self.batch_size or module.tasks[task].batch_size
        metadata = {"digest": module.network.digest(task), "computed_on": _computed_on(module.device)}
        tensors = {"outputs": self._outputs(module, task, size)}
        write_bytes(self.folder / f"{task}.safetensors", save(tensors, metadata | {"batch_size": str(size)}))

    def has(self, task: str) -> bool:
        """Return true if there is a record for a task."""
        return (self.folder / f"{task}.safetensors").exists()

    def check(self, module: SubnetworkModule, tasks: Iterable[str]) -> None:
        """Compare tasks with their records.

        Raises:
            GuaranteeError: a task has changed, and `on_violation` is "error".
        """
        for task in tasks:
            record = read_record(self.folder / f"{task}.safetensors")
            module.network.forget_modules(task)  # compare the tensors stored now
            problems = []
            if module.network.digest(task) != record.digest:
                problems.append("its weights")
            if record.computed_on != _computed_on(module.device):
                log.warning(
                    "task %s was recorded on %s and this is %s, which may round differently: its weights are compared, "
                    "its outputs are not",
                    *(task, record.computed_on, _computed_on(module.device)),
                )
            elif not same_bits(self._outputs(module, task, record.batch_size), record.outputs):
                problems.append("its outputs")
            module.network.forget_modules(task)  # memory does not grow with the number of tasks
            self.checked += 1
            if problems:
                self.violations += 1
                message = f"guarantee violated: task {task!r} has changed since it was frozen: {problems}"
                if self.on_violation == "error":
                    raise GuaranteeError(message)
                log.warning(message)

    def _outputs(self, module: SubnetworkModule, task: str, batch_size: int | None) -> Tensor:
        inputs = module.tasks[task].splits["val"].inputs[: self.examples]  # (examples, *input shape)
        batches = inputs.split(batch_size or max(1, len(inputs)))
        return torch.cat([frozen_outputs(module.network, task, batch.to(module.device)) for batch in batches])


@torch.no_grad()
def frozen_outputs(network: MultiSubnetwork, task: str, inputs: Tensor) -> Tensor:
    """Compute a frozen task's outputs (batch, outputs), on the CPU, from its inputs (batch, *input shape)."""
    outputs: Tensor = network(inputs, task)
    return widened(outputs).cpu().contiguous()


def _computed_on(device: torch.device) -> str:
    flushed = ", subnormal numbers flushed" if flushes_denormal() else ""
    return f"{device.type}, {torch.get_num_threads()} threads, torch {torch.__version__}{flushed}"
