"""Average the weights of tasks in training, as Lightning's `WeightAveraging` does for a whole module."""

from __future__ import annotations

from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from msh.compat import averaging_settings
from msh.subnetworks.tensors import TensorBag
from msh.training.callbacks.best import RestoreBest
from msh.training.module import FitContext, TaskModule


class AverageWeights(pl.Callback):
    """Evaluate, and end a fit with, running averages of the weights that train.

    Lightning's callback copies the whole module and averages all of its tensors: owner maps, masks and frozen tasks
    too. This one averages the parameters of each of the module's `groups()`, and their running statistics. Where a
    weight is pruned, its average is pruned with it; averages start again after survivors are rewound. A task that has
    stopped keeps its average.

    Args:
        callback: Lightning's, or a subclass: it decides when to average, and how.
        best: takes precedence at the end of the fit: it has copied the averages of the best epoch.
    """

    def __init__(self, callback: WeightAveraging, best: RestoreBest | None = None) -> None:
        super().__init__()
        self.callback, self.best = callback, best
        self.averages: dict[str, AveragedModel] = {}
        self.names: dict[str, list[str]] = {}
        """Group to the names of its tensors that are averaged."""
        self.restored: dict[str, Any] = {}
        self.steps = 0
        """Optimizer steps in the fit at the latest average."""
        self.rewinds = 0
        self.context: FitContext | None = None
        """The fit's, once it has started."""

    @property
    def state_key(self) -> str:
        """Name of the state in checkpoints: the callback's own."""
        return self.callback.state_key

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start averages from the present weights, or with those of the checkpoint."""
        assert isinstance(pl_module, TaskModule)
        settings = averaging_settings(self.callback)
        settings["device"] = settings["device"] or pl_module.device
        self.context, self.rewinds = pl_module.context, pl_module.context.rewinds
        for name, part in named_groups(pl_module).items():
            self.names[name] = changing(part)
            self.averages[name] = AveragedModel(self._now(name, part), **settings)
            if name in self.restored:
                self.averages[name].load_state_dict(self.restored[name])
        self.restored = {}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the averages after an optimizer step, if the callback wants to."""
        if trainer.global_step > self.steps and self.callback.should_update(step_idx=trainer.global_step - 1):
            self._update(pl_module)
        self.steps = trainer.global_step

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Update the averages after an epoch, if the callback wants to."""
        if self.callback.should_update(epoch_idx=trainer.current_epoch):
            self._update(pl_module)

    def _update(self, module: pl.LightningModule) -> None:
        assert isinstance(module, TaskModule)
        self._forget_rewound(module.context)
        for group, part in module.groups().items():
            if not module.context.stopped.issuperset(group):
                self.averages[name := "+".join(group)].update_parameters(self._now(name, part))

    def _now(self, name: str, part: nn.Module) -> TensorBag:
        """Collect a group's tensors, as they are now."""
        tensors, bag = dict(part.named_parameters()) | dict(part.named_buffers()), TensorBag()
        for key in self.names[name]:
            bag.set(key, tensors[key])
        return bag

    def _forget_rewound(self, context: FitContext) -> None:
        if context.rewinds != self.rewinds:
            self.rewinds = context.rewinds
            for average in self.averages.values():
                average.n_averaged.zero_()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate the averages."""
        self._swap(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Continue with the present weights, after other callbacks have seen the averages."""
        self._swap(pl_module)

    def _swap(self, module: pl.LightningModule) -> None:
        assert isinstance(module, TaskModule)
        self._forget_rewound(module.context)
        with torch.inference_mode(False), torch.no_grad():  # the tensors outlive the evaluation
            for name, part in named_groups(module).items():
                for average, now in self._pairs(name, part):
                    before = average.clone()
                    average.copy_(now)
                    now.copy_(before)

    def _pairs(self, name: str, part: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """Pair a group's averages with the present tensors; none where nothing is averaged yet."""
        average = self.averages.get(name)
        if average is None or not int(average.n_averaged):
            return []
        averages, now = dict(cast(TensorBag, average.module).items()), dict(self._now(name, part).items())
        keys = [key for key in averages if average.use_buffers or isinstance(now[key], nn.Parameter)]
        return [(averages[key], now[key]) for key in keys]

    @torch.no_grad()
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the averages, except where the best epoch's were restored."""
        assert isinstance(pl_module, TaskModule)
        self._forget_rewound(pl_module.context)
        for name, part in named_groups(pl_module).items():
            if self.best is None or name not in self.best.states:
                for average, now in self._pairs(name, part):
                    now.copy_(average)

    def state_dict(self) -> dict[str, Any]:
        """Return the averages, without those of weights that were rewound or replaced since, and the latest's step."""
        if self.context is not None:
            self._forget_rewound(self.context)
        averages = {name: average.state_dict() for name, average in self.averages.items()}
        return {"averages": averages, "steps": self.steps, "callback": self.callback.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned, once the fit starts."""
        self.restored, self.steps = state_dict["averages"], state_dict["steps"]
        self.callback.load_state_dict(state_dict["callback"])


def named_groups(module: TaskModule) -> dict[str, nn.Module]:
    """Name each of the module's groups: its tasks, joined by "+"."""
    return {"+".join(group): part for group, part in module.groups().items()}


def changing(part: nn.Module) -> list[str]:
    """Name the tensors that change while a group trains: its parameters, and saved buffers of floating point."""
    saved = part.state_dict()
    names = [name for name, _ in part.named_parameters()]
    return names + [name for name, buffer in part.named_buffers() if name in saved and buffer.is_floating_point()]
