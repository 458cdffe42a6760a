"""Private names of other libraries: all are in `msh.compat`, and the installed releases have them."""

import inspect
from importlib.metadata import version
from pkgutil import resolve_name

import pytest
import pytorch_lightning as pl
import torch
import wandb_workspaces.workspaces as ws
from pytorch_lightning.utilities import CombinedLoader
from torch import nn

NAMES = [
    "torch:_weight_norm",
    "torch:Tensor._version",
    "torch.nn:Module._apply",
    "torch.nn.modules.batchnorm:_BatchNorm",
    "torch.nn.modules.batchnorm:_NormBase",
    "torch.nn.modules.conv:_ConvNd",
    "torch.nn.modules.dropout:_DropoutNd",
    "torch.nn.utils.parametrizations:_SpectralNorm",
    "torch.nn.utils.parametrizations:_WeightNorm",
    "pytorch_lightning.callbacks:RichProgressBar._get_train_description",
    "pytorch_lightning.utilities:CombinedLoader._load_state_dicts",
    "lightning_fabric.loggers.csv_logs:_ExperimentWriter._check_log_dir_exists",
    "lightning_fabric.loggers.csv_logs:_ExperimentWriter._rewrite_with_new_header",
    "wandb.sdk.wandb_run:Run._log_artifact",
    "wandb_workspaces.workspaces:Workspace._to_model",
]


def gone(name, library):
    return f"{library} {version(library)} no longer has {name}: replace what uses it in src/msh/compat.py"


@pytest.mark.parametrize("name", NAMES)
def test_a_library_has_the_name(name):
    try:
        resolve_name(name)
    except (ImportError, AttributeError):
        pytest.fail(gone(name.replace(":", "."), name.partition(":")[0].partition(".")[0]))


ATTRIBUTES = ["_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_forward_pre_hooks"]


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_a_module_has_the_registry(name):
    assert hasattr(nn.Linear(2, 2), name), gone(f"torch.nn.Module.{name}", "torch")


@pytest.mark.parametrize("name", ["_flat_weights", "_flat_weights_names"])
def test_a_recurrent_layer_lists_its_weights(name):
    assert hasattr(nn.GRU(2, 2), name), gone(f"torch.nn.RNNBase.{name}", "torch")


def test_hooks_are_found_by_their_name():
    from msh.compat import hook_registries

    layer = nn.Linear(2, 2)
    layer.register_forward_hook(print)
    layer.register_state_dict_pre_hook(print)
    filled = [registry for registry in hook_registries(layer) if registry]
    assert len(filled) >= 2, gone("torch.nn.Module.*_hooks", "torch")


def test_the_hook_of_pruning_names_its_tensor():
    from msh.compat import pre_hooks, pruned_name

    layer = nn.Linear(2, 2)
    nn.utils.prune.identity(layer, "weight")
    names = [pruned_name(hook) for hook in pre_hooks(layer).values()]
    assert names == ["weight"], gone("torch.nn.utils.prune.BasePruningMethod._tensor_name", "torch")


def test_a_move_is_noticed_in_a_child_too():
    from msh.compat import Movable

    class Counter(Movable):
        moves = 0

        def moved(self):
            self.moves += 1

    counter = Counter()
    nn.Sequential(counter).to(torch.float64)
    assert counter.moves == 1, gone("the call of torch.nn.Module._apply", "torch")


def test_a_trainer_has_a_step_for_logs_and_logs_a_batch():
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    steps, logs = trainer.fit_loop.epoch_loop, getattr(trainer, "_logger_connector", None)
    assert hasattr(steps, "_batches_that_stepped"), gone(
        "_TrainingEpochLoop._batches_that_stepped", "pytorch_lightning"
    )
    assert hasattr(logs, "update_train_step_metrics"), gone("Trainer._logger_connector", "pytorch_lightning")


def test_loaders_skip_batches():
    from msh.compat import skip_batches

    taken = []

    class Loader(torch.utils.data.DataLoader):
        def load_state_dict(self, state):
            taken.append(state)

        def state_dict(self):
            return {}

    skip_batches(CombinedLoader([Loader([1])], "max_size_cycle"), [{"place": 1}])
    assert taken == [{"place": 1}], gone("CombinedLoader._load_state_dicts", "pytorch_lightning")


def test_wandb_takes_the_arguments_of_an_offline_artifact():
    import wandb.sdk.wandb_run

    allowed = inspect.signature(wandb.sdk.wandb_run.Run._log_artifact).parameters
    assert {"aliases", "is_user_created", "use_after_commit"} <= allowed.keys(), gone("Run._log_artifact", "wandb")


def test_a_workspace_becomes_a_model():
    from msh.compat import workspace_model

    model = workspace_model(ws.Workspace(entity="a", project="b"))
    assert hasattr(model, "model_dump"), gone("Workspace._to_model", "wandb_workspaces")


def test_loggers_inherit_the_names(tmp_path):
    from msh.compat import INHERITED

    for path, names in INHERITED.items():
        cls = resolve_name(path)
        source = "".join(inspect.getsource(parent) for parent in cls.__mro__ if parent is not object)
        for name in names:
            assert f"self.{name}" in source or hasattr(cls, name), gone(f"{path}.{name}", path.partition(".")[0])
