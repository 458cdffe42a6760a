"""Train dense networks to compare subnetworks with: same backbone, initial weights, steps and optimizer."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytorch_lightning as pl
from hydra.utils import instantiate
from safetensors.torch import save

from msh.files.atomic import write_bytes
from msh.files.state_file import open_safetensors
from msh.runs import words
from msh.runs.results import Results
from msh.tasks import Task
from msh.training import life
from msh.training.build import add_task, build_backbone, build_network
from msh.training.callbacks import Freeze, TakeFromRankZero
from msh.training.config import RunConfig
from msh.training.fitting import batches_per_epoch, evaluate_tasks, run_fit, steps_per_epoch
from msh.training.module import SubnetworkModule, TaskModule
from msh.training.plan import Fit, Stage
from msh.training.preemption import PREEMPTION
from msh.training.shared import SharedModule, SharedNetwork

log = logging.getLogger(__name__)


class Baselines:
    """Train a run's baselines, and add their scores to its results; skip those that are there already.

    Args:
        config: the run's.
        folder: the run folder.
        tasks: by name.
        stages: the curriculum.
        results: the run's.
        save_results: writes them.
        writes: true in the process that writes files.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        tasks: Mapping[str, Task],
        stages: Sequence[Stage],
        results: Results,
        save_results: Callable[[], None],
        writes: bool,
    ) -> None:
        self.config, self.folder, self.tasks, self.stages = config, folder, dict(tasks), stages
        self.stage_of = {task: stage for stage in stages for task in stage.tasks}
        self.results, self.save_results, self.writes = results, save_results, writes

    def learn(self, names: Sequence[str]) -> None:
        """Train baselines.

        Args:
            names: from `msh.training.config.BASELINES`.
        """
        for name in names:
            {"dense": self._learn_dense, "finetune": self._learn_finetune, "joint": self._learn_joint}[name]()

    def _learn_dense(self) -> None:
        """Train a dense network for each task."""
        for task in self.stage_of:
            if self.results.tasks[task].dense is None:
                network = build_network(self.config, self.tasks)
                life.begin(network, self.tasks[task], self.config, fresh=False)
                module = SubnetworkModule(network, self.tasks, instantiate(self.config.optimizer), self.config.seed)
                self.results.tasks[task].dense_seconds += self._fit_alone(module, "dense", task, Freeze())
                self.results.tasks[task].dense = self._evaluate(module, "dense", [task])[task]
                self._save()

    def _learn_finetune(self) -> None:
        """Train one dense network, task after task; each task overwrites the weights of the ones before."""
        order = list(self.stage_of)
        if len(self.results.finetune["matrix"]) == len(order):
            return
        module, path = self._shared(), self.folder / "checkpoints" / "finetune.safetensors"
        learned = 0
        if path.is_file():
            state, metadata = open_safetensors(path)
            module.network.load_state_dict(state)
            learned = int(metadata["learned"])
        for number, task in enumerate(order):
            if number >= learned:
                self._fit_alone(module, "finetune", task, TakeFromRankZero())
                if self.writes:
                    state = {name: tensor.contiguous() for name, tensor in module.network.state_dict().items()}
                    write_bytes(path, save(state, {"learned": str(number + 1)}))
            if len(self.results.finetune["matrix"]) <= number:
                self.results.add_finetune_row(self._evaluate(module, "finetune", order[: number + 1]))
                self._save()

    def _learn_joint(self) -> None:
        """Train one dense network on all tasks at once, for as many steps as the longest stage has."""
        if all(result.joint is not None for result in self.results.tasks.values()):
            return
        module = self._shared()
        fit = Fit("joint", "joint", self._joint_epochs(), prunes=False, last=True, uneven=self.config.uneven)
        self._fit(module, fit, list(self.tasks), TakeFromRankZero())
        for task, score in self._evaluate(module, "joint", list(self.tasks)).items():
            self.results.tasks[task].joint = score
        self._save()

    def _joint_epochs(self) -> int:
        """Count the epochs in which all tasks together have the steps of the longest stage, rounded up.

        The stages' epochs would not do: the many short epochs of a small task would become as many long ones.
        """
        settings = self.config.trainer
        stages = [
            (s.max_epochs, steps_per_epoch([self.tasks[t] for t in s.tasks], s.uneven, settings)) for s in self.stages
        ]
        joint = steps_per_epoch(list(self.tasks.values()), self.config.uneven, settings)
        return math.ceil(max(epochs * steps for epochs, steps in stages) / joint)

    def _save(self) -> None:
        self.save_results()
        PREEMPTION.release()

    def _shared(self) -> SharedModule:
        network = SharedNetwork(build_backbone(self.config, self.tasks), self.config.master_weights)
        for task in self.tasks.values():
            add_task(network, task, self.config)
        return SharedModule(network, self.tasks, instantiate(self.config.optimizer), self.config.seed)

    def _fit_alone(self, module: TaskModule, kind: str, task: str, last: pl.Callback) -> float:
        """Train a task for the epochs and steps that its subnetwork gets in its stage; return the seconds."""
        stage = self.stage_of[task]
        batches = batches_per_epoch([self.tasks[name] for name in stage.tasks], stage.uneven)
        fit = Fit(f"{kind} {task}", f"{kind}-{task}", stage.max_epochs, prunes=False, last=True, batches=batches)
        return self._fit(module, fit, [task], last)

    def _fit(self, module: TaskModule, fit: Fit, tasks: Sequence[str], last: pl.Callback) -> float:
        if isinstance(module, SharedModule):
            module.network.train_only(tasks)
        checkpoints = self.folder / "checkpoints" / fit.key
        seconds = run_fit(module, fit, tasks, self.config, self.folder, checkpoints, [last], [])
        if self.writes:
            shutil.rmtree(checkpoints, ignore_errors=True)
        return seconds

    def _evaluate(self, module: TaskModule, kind: str, tasks: Sequence[str]) -> dict[str, float | None]:
        scores = evaluate_tasks(module, tasks, "test", self.config, self.folder)
        for task, score in scores.items():
            log.info("%s %s: %s %s on the test split", kind, task, self.tasks[task].metric, words.number(score))
        return scores
