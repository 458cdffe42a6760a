"""The LightningModule: holds the network, and each task's loss and metrics."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import Precision
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import GradClipAlgorithmType
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torchmetrics import Metric

from msh.compat import log_again, set_log_step
from msh.draws import seed_draws
from msh.runs.objectives import skill_score
from msh.subnetworks import MultiSubnetwork
from msh.subnetworks.loading import completed, in_training
from msh.subnetworks.tensors import widened
from msh.tasks import Task
from msh.tasks.loaders import Batch
from msh.tasks.seeds import derive_seed
from msh.tracking.protocols import RunLogger
from msh.training.preemption import PREEMPTION
from msh.training.ranks import from_rank_zero
from msh.training.schedulers import SchedulerFactory, build_scheduler

if TYPE_CHECKING:
    from msh.training.sharding import ShardedPart


RUNNING = ("running_mean", "running_var", "num_batches_tracked")
"""Last parts of the names that torch gives to buffers that change in training."""


class NonFiniteLossError(ValueError):
    """A training loss, or a weight, became NaN or infinite."""


def has_stepped(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Return true if the optimizer steps with this batch: it ends a window of accumulated gradients, or the epoch."""
    done = batch_idx + 1
    return done % trainer.accumulate_grad_batches == 0 or done >= trainer.num_training_batches


@dataclass
class FitContext:
    """The fit under way: its settings and its state.

    Attributes:
        name: for people.
        key: names the fit within the run, independent of later fits; seeds random draws.
        tasks: names of the tasks that train.
        scheduler: builds the learning-rate scheduler, stepped with each batch.
        steps_to_come: batches in the fits after this one, as far as they are known.
        first_step: the run's step when the fit started.
        stopped: tasks that no longer train: their weights and optimizer state stay as they are.
        nonfinite: task to bool tensor, (): one of its losses was NaN or infinite.
        rewinds: how often pruning has reset the weights in training to earlier values.
        sharded: task to the shards of its weights, with `trainer.strategy=fsdp`.
    """

    name: str = ""
    key: str = ""
    tasks: tuple[str, ...] = ()
    scheduler: SchedulerFactory | None = None
    steps_to_come: int = 0
    first_step: int = 0
    stopped: set[str] = field(default_factory=set)
    nonfinite: dict[str, Tensor] = field(default_factory=dict)
    rewinds: int = 0
    sharded: dict[str, ShardedPart] = field(default_factory=dict)


class TaskModule(pl.LightningModule, ABC):
    """Train one stage's tasks; evaluate any task.

    A training batch maps each task to (inputs, targets); evaluation has one loader per task.

    Args:
        network: (inputs, task) to outputs, for the tasks added so far.
        tasks: all of the run's tasks by name.
        optimizer: parameters to optimizer.
        seed: the run's; all random draws in training follow from it.
    """

    def __init__(
        self,
        network: nn.Module,
        tasks: Mapping[str, Task],
        optimizer: Callable[..., Optimizer],
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.network = network
        self.unused_tasks = dict(tasks)
        """The tasks, with their own losses as they were built."""
        self.tasks = {name: task.with_fresh_loss() for name, task in tasks.items()}
        self.optimizer_factory = optimizer
        self.seed = seed
        self.context = FitContext()
        self.run_step = 0
        """Optimizer steps so far in the whole run: the x-axis of all logs."""
        self.evaluated: list[str] = []
        """Tasks of the validation or test loaders, in the loaders' order."""
        self.metrics = nn.ModuleDict(
            {
                f"of_{name}": nn.ModuleDict({split: task.build_metric() for split in ("val", "test")})
                for name, task in self.tasks.items()
            }
        )
        self._constant_scores: dict[str, float] = {}

    def metric(self, task: str, split: str) -> Metric:
        """Return a task's metric on a split ("val" or "test"); Lightning resets it after each loop."""
        return cast(Metric, cast(nn.ModuleDict, self.metrics[f"of_{task}"])[split])

    def begin_fit(self, context: FitContext) -> None:
        """Set the context of the next fit, which starts at the run's present step."""
        self.context = replace(context, first_step=self.run_step)
        self.begin_evaluation(context.tasks)

    def begin_evaluation(self, tasks: Iterable[str]) -> None:
        """Set the tasks of the next loaders; their own losses start as they were built, also in a resumed run."""
        self.evaluated = list(tasks)
        self.tasks |= {name: self.unused_tasks[name].with_fresh_loss() for name in self.evaluated}

    def _own_losses(self) -> dict[str, nn.Module]:
        """Map the fit's tasks to their own losses, those that are modules."""
        losses = {name: self.tasks[name].own_loss for name in self.context.tasks}
        return {name: loss for name, loss in losses.items() if isinstance(loss, nn.Module)}

    def stop(self, tasks: Iterable[str]) -> None:
        """Stop training tasks; the fit ends once all of its tasks have stopped."""
        self.context.stopped.update(tasks)
        if self.context.stopped.issuperset(self.context.tasks):
            self.trainer.should_stop = True

    @abstractmethod
    def groups(self) -> dict[tuple[str, ...], nn.Module]:
        """Group the fit's tasks by the weights they train: tasks that share weights, to a module with these."""

    def val_score(self, metrics: Mapping[str, Tensor], group: tuple[str, ...], by: str = "metric") -> float | None:
        """Score a group of tasks on the validation split.

        Args:
            metrics: the trainer's.
            group: one of `groups()`.
            by: "metric" or "loss". Several tasks are judged by their mean skill score, which has no unit, or by the
                sum of their losses.
        Returns:
            The score, higher is better; None if a task was not evaluated; -inf where a metric is not a number.
        """
        keys = [f"{name}/val/{'loss' if by == 'loss' else self.tasks[name].metric}" for name in group]
        if not metrics.keys() >= set(keys):
            return None
        scores = [float(metrics[key]) for key in keys]
        if any(map(math.isnan, scores)):
            return -math.inf
        if by == "loss":
            return -sum(scores)
        tasks = [self.tasks[name] for name in group]
        if len(tasks) == 1:
            return scores[0] * (1 if tasks[0].direction == "max" else -1)
        pairs = zip(tasks, scores, strict=True)
        return sum(skill_score(score, t.direction, self._constant_score(t.name)) for t, score in pairs) / len(tasks)

    def _constant_score(self, task: str) -> float:
        """Score a constant prediction on a task's validation split; computed once."""
        if task not in self._constant_scores:
            self._constant_scores[task] = self.tasks[task].constant_score("val")
        return self._constant_scores[task]

    def forward(self, inputs: Tensor, task: str) -> Tensor:
        """Compute a task's outputs (batch, outputs) from its inputs (batch, *input shape)."""
        outputs: Tensor = self.context.sharded.get(task, self.network)(inputs, task)
        return outputs

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Gather sharded parameters on every rank inside the context; changes made there stay."""
        sharded, self.context.sharded = self.context.sharded, {}
        try:
            with ExitStack() as gathered:
                for part in dict.fromkeys(sharded.values()):
                    gathered.enter_context(part.whole())
                yield
        finally:
            self.context.sharded = sharded

    # ---- Lightning's hooks

    def configure_optimizers(self) -> Any:
        """Build the optimizer, with a parameter group for each of `groups()`, and the scheduler."""
        groups = [{"params": list(part.parameters())} for part in self.groups().values()]
        are_complex = any(parameter.is_complex() for group in groups for parameter in group["params"])
        is_fused = getattr(self.optimizer_factory, "keywords", {}).get("fused")
        unfused = {"fused": False} if are_complex and is_fused else {}  # torch fuses real tensors alone
        optimizer = self.optimizer_factory(groups, **unfused)
        if self.context.scheduler is None:
            return optimizer
        scheduler = build_scheduler(self.context.scheduler, optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Make every logger count the run's steps, not the fit's."""
        set_log_step(self.trainer, self.context.first_step + self.trainer.global_step)
        self.context.nonfinite = {}
        for logger in self.loggers:  # a resumed run logs the rows after its checkpoint again
            if isinstance(logger, RunLogger):
                logger.rewind_to(self.run_step)

    def on_train_start(self) -> None:
        """Take the signals that end a run back from Lightning, which has installed its own handlers."""
        PREEMPTION.listen()

    def on_validation_start(self) -> None:
        """Take the signals back; let every rank evaluate the network that is saved, which is rank 0's."""
        PREEMPTION.listen()
        if self.trainer.state.fn == TrainerFn.FITTING and self.trainer.world_size > 1:
            named = [(f"{group}.{k}", b) for group, part in self.groups().items() for k, b in part.named_buffers()]
            statistics = {name: buffer for name, buffer in named if name.endswith(RUNNING)}  # differ between ranks
            for name, tensor in from_rank_zero(self, statistics).items():
                statistics[name].copy_(tensor)
            for loss in self._own_losses().values():
                loss.load_state_dict(from_rank_zero(self, loss.state_dict()))

    def on_test_start(self) -> None:
        """Take the signals back; log at the run's step."""
        PREEMPTION.listen()
        set_log_step(self.trainer, self.run_step)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch to the device; on a CPU it is there."""
        return batch if device.type == "cpu" else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed dropout and other draws by (seed, fit, epoch, batch, rank): a resumed run draws the same."""
        seed = derive_seed(self.seed, self.context.key, self.current_epoch, batch_idx, self.global_rank)
        seed_draws(seed, cpu_only=self.device.type == "cpu")

    def training_step(self, batch: Mapping[str, Batch], batch_idx: int) -> Tensor:
        """Sum the weighted losses of the tasks that have not stopped, each on its own batch: a scalar."""
        losses = []
        for name, (inputs, targets) in batch.items():
            if name in self.context.stopped:
                continue
            task = self.tasks[name]
            loss = task.loss(self(inputs, name), targets)
            losses.append(task.loss_weight * loss)
            self.context.nonfinite[name] = self.context.nonfinite.get(name, False) | ~torch.isfinite(loss.detach())
            self._log(f"{name}/train/loss", loss.detach(), len(inputs), on_step=True, on_epoch=False)
        if self.context.stopped and isinstance(self.trainer.model, DistributedDataParallel):  # waits for every gradient
            losses += [0.0 * p.sum() for p in self._parameters_of_stopped()]
        return torch.stack(losses).sum() if len(losses) > 1 else losses[0]

    def _parameters_of_stopped(self) -> list[nn.Parameter]:
        groups = self.groups().items()
        return [p for group, part in groups if self.context.stopped.issuperset(group) for p in part.parameters()]

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Remove the gradients of tasks that have stopped: optimizers skip parameters without a gradient."""
        if self.context.stopped:
            for parameter in self._parameters_of_stopped():
                parameter.grad = None

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the gradients of each group separately, so that no task depends on another."""
        groups, precision = optimizer.param_groups, self.trainer.precision_plugin
        scaled = getattr(precision, "scaler", None) is not None
        clip = precision.clip_gradients if scaled else partial(Precision.clip_gradients, precision)
        for group in groups:
            optimizer.param_groups = [group]
            # Lightning's own clipping refuses fused optimizers under autocast, even without a loss scaler.
            clip(optimizer, gradient_clip_val or 0.0, GradClipAlgorithmType(gradient_clip_algorithm or "norm"))
        optimizer.param_groups = groups

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the step; check the losses at the logging interval."""
        self.run_step = self.context.first_step + self.trainer.global_step
        if batch_idx % max(1, int(cast(Any, self.trainer).log_every_n_steps)) == 0:
            self.stop_if_nonfinite()

    def on_train_epoch_end(self) -> None:
        """Check the losses before a checkpoint is written."""
        self.stop_if_nonfinite()

    def on_train_end(self) -> None:
        """Make sharded parameters whole again."""
        for part in dict.fromkeys(self.context.sharded.values()):
            part.gather()
        self.context.sharded = {}

    def stop_if_nonfinite(self) -> None:
        """Check on every rank that no loss since the start of the fit was NaN or infinite on any rank.

        Raises:
            NonFiniteLossError: naming tasks and epoch.
        """
        if not self.context.nonfinite:
            return
        counts = self.trainer.strategy.reduce(torch.stack(list(self.context.nonfinite.values())).int(), reduce_op="sum")
        assert isinstance(counts, Tensor)
        named = [name for name, count in zip(self.context.nonfinite, counts.tolist(), strict=True) if count]
        if named:
            raise self._nonfinite("loss", named)

    def _nonfinite(self, what: str, tasks: Sequence[str]) -> NonFiniteLossError:
        return NonFiniteLossError(
            f"the {what} of {', '.join(map(repr, tasks))} became NaN or infinite in epoch "
            f"{self.current_epoch} of {self.context.name}; the last good checkpoint is kept. "
            "A lower optimizer.lr or trainer.gradient_clip_val=1 usually helps: start a new run with it"
        )

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Update one task's validation loss and metric."""
        self._evaluate("val", batch, dataloader_idx)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Update one task's test loss and metric."""
        self._evaluate("test", batch, dataloader_idx)

    def _evaluate(self, split: str, batch: Batch, loader: int) -> None:
        name = self.evaluated[loader]
        task, (inputs, targets) = self.tasks[name], batch
        outputs = self(inputs, name)
        loss, metric = task.loss(widened(outputs), targets), self.metric(name, split)
        task.update(metric, outputs, targets)
        settings: dict[str, Any] = {"on_step": False, "on_epoch": True, "add_dataloader_idx": False}
        self._log(f"{name}/{split}/loss", loss, task.count(targets), sync_dist=True, **settings)
        self._log(f"{name}/{split}/{task.metric}", metric, len(inputs), **settings)

    def _log(self, name: str, value: Any, examples: int, **settings: Any) -> None:
        """Log a batch's value."""
        if not log_again(self, name, value, examples):
            self.log(name, value, batch_size=examples, **settings)

    def on_validation_epoch_end(self) -> None:
        """Log the sum of the tasks' losses, for callbacks that monitor one number."""
        losses = [self.trainer.callback_metrics.get(f"{name}/val/loss") for name in self.evaluated]
        present = [loss for loss in losses if loss is not None]
        if present:
            self.log("val/loss", torch.stack(present).sum(), sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the run's step, whether a callback has ended the fit, and the states of the tasks' own losses."""
        step = self.context.first_step + self.trainer.global_step  # also before `on_train_batch_end` has counted it
        checkpoint["msh"] = {"fit": self.context.name, "run_step": step, "first_step": self.context.first_step}
        checkpoint["msh"]["should_stop"] = bool(self.trainer.should_stop)
        checkpoint["msh"]["losses"] = {name: loss.state_dict() for name, loss in self._own_losses().items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what was saved; checkpoints of earlier releases have the run's step alone."""
        self.run_step = int(checkpoint["msh"]["run_step"])
        self.context.first_step = int(checkpoint["msh"]["first_step"])
        self.trainer.should_stop = bool(checkpoint["msh"].get("should_stop", False))
        for name, loss in self._own_losses().items():
            if name in checkpoint["msh"].get("losses", {}):
                loss.load_state_dict(checkpoint["msh"]["losses"][name])


class SubnetworkModule(TaskModule):
    """Train the subnetworks of one stage's tasks, which share no weight."""

    network: MultiSubnetwork

    def groups(self) -> dict[tuple[str, ...], nn.Module]:
        """Return each task alone, with its subnetwork."""
        return {(task,): self.network.subnetwork(task) for task in self.context.tasks}

    def stop_if_unusable(self, tasks: Iterable[str]) -> None:
        """Check, before weights are scored, that neither losses nor weights are NaN or infinite.

        A step after a finite loss may still have made weights so. Sharded weights must be whole.

        Args:
            tasks: whose weights are checked.
        Raises:
            NonFiniteLossError: naming tasks and epoch.
        """
        self.stop_if_nonfinite()
        values = {task: self.network.subnetwork(task).values.items() for task in tasks}
        named = [task for task, tensors in values.items() if not all(bool(v.sum().isfinite()) for _, v in tensors)]
        if named:
            raise self._nonfinite("weights", named)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the subnetworks in training alone: a resumed run has the rest of the network before the fit starts."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["msh"]["reduced"] = True
        checkpoint["state_dict"] = in_training(checkpoint["state_dict"], self.context.tasks, "network.")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Complete the network; checkpoints of earlier releases hold all of it."""
        super().on_load_checkpoint(checkpoint)
        if checkpoint["msh"].get("reduced"):
            checkpoint["state_dict"] = completed(checkpoint["state_dict"], self.network, "network.")
