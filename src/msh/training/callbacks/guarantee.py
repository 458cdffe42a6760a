"""Guarantee that frozen tasks do not change by a single bit.

Their weights are compared bitwise on every machine. Another machine than a record's may round their outputs otherwise:
there, outputs that are not bitwise the record's must be within `tolerance` of them.
"""

from __future__ import annotations

import hashlib
import logging
import math
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
from msh.runs.results import Guarantee as Counts
from msh.subnetworks import MultiSubnetwork
from msh.subnetworks.tensors import same_bits, widened
from msh.training.machine import Machine, machine
from msh.training.module import SubnetworkModule

log = logging.getLogger(__name__)
RECORDS = Path("checkpoints", "guarantee")
"""Folder of a run's records, below its run folder."""
LOGITS = 2**22
"""Most outputs in a record of a task that answers each token: 16 MiB in float32."""


class GuaranteeError(RuntimeError):
    """A frozen task's outputs or weights have changed."""


@dataclass(frozen=True)
class Record:
    """A task at the time it was frozen.

    Attributes:
        outputs: (examples, outputs), on the CPU; None for a task whose data the run did not have.
        digest: over all its weights and private tensors.
        machine: the one that computed the outputs.
        batch_size: examples per batch for the outputs; None: all in one batch, as in earlier releases.
        inputs: digest of the examples, as they are prepared; None in records of earlier releases.
    """

    outputs: Tensor | None
    digest: str
    machine: Machine
    batch_size: int | None = None
    inputs: str | None = None


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
        computed_on = Machine(metadata["computed_on"], metadata.get("processor"))
        return Record(tensors.get("outputs"), metadata["digest"], computed_on, batch_size, metadata.get("inputs"))
    except KeyError as error:
        raise ValueError(f"{path} is damaged: {error} is missing") from error


class Guarantee(pl.Callback):
    """Record each task when it is frozen; compare all earlier tasks with their records after every later stage.

    A record has the outputs on validation examples, a digest over all weights and private tensors, and the machine.
    Tasks whose data the run does not have are recorded and compared by their digests alone.

    Args:
        folder: for the records, which a resumed run reads again.
        examples: validation examples per task; fewer where outputs for each token would make a record large.
        on_violation: "error" ends the run; "warn" logs and counts.
        batch_size: examples per batch for new records; each task's own when None. A comparison uses the record's
            batch size, as another may round differently.

    Attributes:
        checked: comparisons made.
        violations: of these, the ones where a task had changed.
        rounded: of these, the ones where another machine than the record's rounds the outputs otherwise.
        furthest: largest difference in them, relative to the largest output of its record.
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
        self.checked = self.violations = self.rounded = 0
        self.furthest = 0.0
        self._named: set[Machine] = set()

    @property
    def counts(self) -> Counts:
        """Comparisons so far, as results.json has them."""
        counts = Counts(checked=self.checked, violations=self.violations)
        if self.rounded:
            counts["rounded"], counts["largest_difference"] = self.rounded, self.furthest
        return counts

    @counts.setter
    def counts(self, counts: Counts) -> None:
        self.checked, self.violations = counts["checked"], counts["violations"]
        self.rounded, self.furthest = counts.get("rounded", 0), counts.get("largest_difference", 0.0)

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
        here = machine(module.device)
        metadata = {"digest": module.network.digest(task)}
        metadata |= {"computed_on": here.setting, "processor": str(here.processor)}
        tensors = {}
        if task in module.tasks:
            size, inputs = self.batch_size or module.tasks[task].batch_size, self._inputs(module, task)
            tensors = {"outputs": _outputs(module, task, inputs, size)}
            metadata |= {"batch_size": str(size), "inputs": _digest(inputs)}
        write_bytes(self.folder / f"{task}.safetensors", save(tensors, metadata))

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
            if task in module.tasks and record.outputs is not None:
                inputs = self._inputs(module, task, len(record.outputs))
                outputs = _outputs(module, task, inputs, record.batch_size)
                if same_bits(outputs, record.outputs):
                    pass
                elif not problems and _has_other_inputs(record, inputs, module):
                    self._refuse_other_data(task)
                else:
                    problems += self._judge(task, outputs, record, module)
            module.network.forget_modules(task)  # memory does not grow with the number of tasks
            self.checked += 1
            if problems:
                self.violations += 1
                message = f"guarantee violated: task {task!r} has changed since it was frozen: {', '.join(problems)}"
                if self.on_violation == "error":
                    raise GuaranteeError(message)
                log.warning(message)

    def _refuse_other_data(self, task: str) -> None:
        message = (
            f"the data of task {task!r} have changed since it was frozen: its validation examples are others, so that "
            "its outputs cannot be compared; its weights are unchanged"
        )
        if self.on_violation == "error":
            raise ValueError(message)
        log.warning(message)

    def _judge(self, task: str, outputs: Tensor, record: Record, module: SubnetworkModule) -> list[str]:
        """Return the problem, if there is one, with outputs that are not bitwise the record's."""
        here = machine(module.device)
        if here == record.machine:
            return ["its outputs"]
        allowed = tolerance(module.network, record.machine, here)
        assert record.outputs is not None
        difference = relative_difference(outputs, record.outputs)
        if not difference <= allowed:
            return [f"its outputs, by {difference:.1e} of the largest one, and rounding explains {allowed:.1e}"]
        self.rounded += 1
        self.furthest = max(self.furthest, difference)
        if record.machine not in self._named:
            self._named.add(record.machine)
            log.warning(
                "task %s was recorded on another machine (%s) than this one (%s), which rounds otherwise: weights are "
                "compared bitwise, outputs to within %.1e of the largest one",
                *(task, record.machine, here, allowed),
            )
        return []

    def _inputs(self, module: SubnetworkModule, task: str, number: int | None = None) -> Tensor:
        """Return the first validation examples, (examples, *input shape): so many, or as the settings say."""
        of = module.tasks[task]
        if number is None:
            number = min(self.examples, max(1, LOGITS // of.outputs_per_example)) if of.per_token else self.examples
        return of.splits["val"].inputs[:number]


def _outputs(module: SubnetworkModule, task: str, inputs: Tensor, batch_size: int | None) -> Tensor:
    """Compute a frozen task's outputs (examples, outputs) in batches of a size; all at once when None."""
    batches = inputs.split(batch_size or max(1, len(inputs)))
    return torch.cat([frozen_outputs(module.network, task, batch.to(module.device)) for batch in batches])


def _has_other_inputs(record: Record, inputs: Tensor, module: SubnetworkModule) -> bool:
    """Tell whether outputs differ because the examples do; another machine may prepare them otherwise."""
    return record.inputs is not None and machine(module.device) == record.machine and _digest(inputs) != record.inputs


def _digest(inputs: Tensor) -> str:
    """Hash examples: their type, shape and content."""
    content = inputs.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.blake2b(f"{inputs.dtype} {[*inputs.shape]} ".encode() + content, digest_size=16).hexdigest()


@torch.no_grad()
def frozen_outputs(network: MultiSubnetwork, task: str, inputs: Tensor) -> Tensor:
    """Compute a frozen task's outputs (batch, outputs), on the CPU, from its inputs (batch, *input shape)."""
    outputs: Tensor = network(inputs, task)
    return widened(outputs).cpu().contiguous()


def tolerance(network: MultiSubnetwork, *machines: Machine) -> float:
    """Bound the difference of outputs that machines compute from the same weights, relative to the largest output.

    It is the square root of the distance from 1 to the next number, of the coarsest type in the network: rounding adds
    up over layers. Convolutions on CUDA round to TF32, whose distance is 2**-10.

    Args:
        network: computes the outputs.
        machines: those compared.
    """
    coarsest = max(torch.finfo(weight.dtype).eps for _, weight in network.weights())
    if any(named.setting.startswith("cuda") for named in machines):
        coarsest = max(coarsest, 2.0**-10)
    return math.sqrt(coarsest)


def relative_difference(outputs: Tensor, recorded: Tensor) -> float:
    """Return the largest difference relative to the largest recorded output; infinite for other shapes, or NaN."""
    if outputs.shape != recorded.shape or not torch.equal(outputs.isfinite(), recorded.isfinite()):
        return math.inf
    finite = recorded.isfinite()
    apart, largest = (outputs - recorded)[finite].abs(), recorded[finite].abs()
    if not apart.numel() or not float(apart.max()):
        return 0.0 if same_bits(outputs[~finite], recorded[~finite]) else math.inf
    return float(apart.max() / largest.max())  # infinite where every record is 0
