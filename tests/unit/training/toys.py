"""Toy tasks with four inputs and three outputs, the tests' tiny backbone, and fits within milliseconds."""

import pytorch_lightning as pl
import torch

from helpers import INPUTS, OUTPUTS, make_head, make_network
from msh.subnetworks import CRITERIA, start_scores
from msh.tasks import RawData, Split, build_task
from msh.training.config import GROUPS, RunConfig
from msh.training.fitting import run_fit
from msh.training.module import SubnetworkModule
from msh.training.plan import Fit
from msh.training.typed import convert

STEPS = 4
"""Batches in an epoch of a toy task: 32 of its 40 examples are trained on, in batches of 8."""


def make_split(examples, kind, seed):
    """Inputs, and targets that follow from them."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(examples, INPUTS, generator=generator)
    sums = inputs @ torch.randn(INPUTS, OUTPUTS, generator=torch.Generator().manual_seed(99))
    return Split(inputs, sums.argmax(1) if kind == "classification" else 10 * sums + 50)


def make_task(name="a", kind="classification", examples=40, tests=30, **settings):
    data = RawData(kind, make_split(examples, kind, 1), make_split(tests, kind, 2), OUTPUTS)
    return build_task(name, data, **({"batch_size": 8} | settings))


def sgd(parameters, lr=0.1, momentum=0.9):
    return torch.optim.SGD(parameters, lr=lr, momentum=momentum)


def make_module(*tasks, optimizer=sgd, norm="none"):
    """Make a module with a network without tasks."""
    tasks = tasks or (make_task(),)
    return SubnetworkModule(make_network(norm), {task.name: task for task in tasks}, optimizer)


def begin(module, name, criterion="magnitude", reuse="none"):
    """Add a task and give it every free weight, and scores if the criterion learns them."""
    module.network.add_task(name, head=make_head(), reuse=reuse)
    module.network.begin(name)
    if CRITERIA[criterion].learned:
        start_scores(module.network, name)
    return module


def make_run(names, **settings):
    """Make a run's settings; tasks are names, or a mapping from name to settings, changed by `tasks`."""
    tasks = {name: {} for name in names} | (names if isinstance(names, dict) else {}) | settings.pop("tasks", {})
    filled = {name: {"source": {"_target_": "toys.source"}} | changes for name, changes in tasks.items()}
    blocks = {"backbone": {"_target_": "msh.backbones.MLP"}, "optimizer": {"_target_": "torch.optim.Adam"}}
    return convert(RunConfig, {"tasks": filled} | blocks | settings, GROUPS)


def make_config(min_seconds=1e9, restore_best=False, evaluation=None, **trainer):
    """Make the settings that a fit reads."""
    settings = {
        "trainer": {"accelerator": "cpu", **trainer},
        "checkpoint": {"min_seconds": min_seconds, "restore_best": restore_best},
        "evaluation": {"batch_size": evaluation},
    }
    return make_run(["a"], **settings)


def fit(module, folder, *callbacks, name="a", epochs=3, config=None, uneven="cycle", steps_to_come=0):
    """Fit a task, or a list of tasks; checkpoints go into folder/checkpoints."""
    toy = Fit("toy", "toy", epochs, prunes=False, last=True, uneven=uneven)
    run_fit(
        module,
        toy,
        [name] if isinstance(name, str) else name,
        config or make_config(),
        folder,
        folder / "checkpoints",
        callbacks,
        [],
        steps_to_come,
    )


class AfterBatch(pl.Callback):
    """Call a function with (epoch, batch, module) after each training batch, and collect the results."""

    def __init__(self, look):
        self.look, self.seen = look, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(self.look(trainer.current_epoch, batch_idx, pl_module))


class AfterEpoch(pl.Callback):
    """Call a function with (trainer, module) after each validation, and collect the results."""

    def __init__(self, look):
        self.look, self.seen = look, []

    def on_validation_end(self, trainer, pl_module):
        self.seen.append(self.look(trainer, pl_module))
