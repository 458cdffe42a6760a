"""Private names of other libraries: all are in `msh.compat`, and the installed releases have them."""

import ast
import inspect
import sys
from importlib.metadata import version
from pathlib import Path
from pkgutil import resolve_name

import pytest
import pytorch_lightning as pl
import torch
import wandb_workspaces.workspaces as ws
from pytorch_lightning.utilities import CombinedLoader
from torch import nn

import msh

SOURCE = Path(msh.__file__).parent
LAUNCH = "wandb.sdk.launch.inputs.internal"

NAMES = [
    "torch:_weight_norm",
    "torch:Tensor._version",
    "torch._C:_functorch.peek_interpreter_stack",
    "torch.autograd.forward_ad:_current_level",
    "torch.nn:Module._apply",
    "torch.nn:Module._load_from_state_dict",
    "torch.nn.modules.batchnorm:_BatchNorm",
    "torch.nn.modules.batchnorm:_NormBase",
    "torch.nn.modules.conv:_ConvNd",
    "torch.nn.modules.dropout:_DropoutNd",
    "torch.nn.utils.parametrizations:_SpectralNorm",
    "torch.nn.utils.parametrizations:_WeightNorm",
    "pytorch_lightning.loops.fit_loop:_FitLoop.skip",
    "pytorch_lightning.utilities:CombinedLoader._load_state_dicts",
    "lightning_fabric.loggers.csv_logs:_ExperimentWriter._check_log_dir_exists",
    "lightning_fabric.loggers.csv_logs:_ExperimentWriter._rewrite_with_new_header",
    "hydra._internal.config_loader_impl:ConfigLoaderImpl._compose_config_from_defaults_list",
    "hydra._internal.config_loader_impl:ConfigLoaderImpl._parse_overrides_and_create_caching_repo",
    "wandb.sdk.wandb_run:Run._detect_and_apply_job_inputs",
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


def test_a_state_dict_holds_its_modules_versions():
    assert hasattr(nn.Linear(2, 2).state_dict(), "_metadata"), gone("state_dict()._metadata", "torch")


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


def test_a_logged_value_is_updated_as_log_does():
    from msh.compat import log_again

    class Module(pl.LightningModule):
        def __init__(self, again):
            super().__init__()
            self.again, self.skipped, self.seen = again, 0, []
            self.weight = torch.nn.Parameter(torch.ones(1))

        def training_step(self, batch, batch_idx):
            value = (self.weight * batch).sum().detach() + batch_idx
            for name, settings in (("last", {"on_step": True}), ("mean", {"on_step": False, "on_epoch": True})):
                if self.again and log_again(self, name, value, batch_idx + 1):
                    self.skipped += 1
                else:
                    self.log(name, value, batch_size=batch_idx + 1, **settings)
            return (self.weight * batch).sum()

        def on_train_batch_end(self, *_):
            self.seen.append(float(self.trainer.callback_metrics["last"]))

        def on_train_epoch_end(self):
            self.seen.append(float(self.trainer.callback_metrics["last"]))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    assert not log_again(Module(True), "last", torch.ones(()), 1)  # without a trainer
    found = []
    for again in (True, False):
        module = Module(again)
        settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
        trainer = pl.Trainer(max_epochs=2, enable_model_summary=False, **settings)
        trainer.fit(module, torch.utils.data.DataLoader(torch.arange(4.0)))
        found.append((module.seen, trainer.callback_metrics))
        assert module.skipped == (2 * 2 * 3 if again else 0), gone("Trainer._results", "pytorch_lightning")
    assert found[0] == found[1]
    assert len(found[0][0]) == 10


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


def test_runs_start_without_launch():
    from wandb.sdk.wandb_run import Run

    from msh.compat import without_launch

    before = vars(Run).get("_detect_and_apply_job_inputs")
    assert before is not None, gone("Run._detect_and_apply_job_inputs", "wandb")
    assert "self" in inspect.signature(before).parameters
    with without_launch():
        assert (vars(Run)["_detect_and_apply_job_inputs"] is before) == (LAUNCH in sys.modules)
    assert vars(Run)["_detect_and_apply_job_inputs"] is before
    source = inspect.getsource(before)
    assert "StagedLaunchInputs().apply(self)" in source, gone("StagedLaunchInputs", "wandb")


def test_inputs_of_a_launch_still_reach_the_run(monkeypatch):
    from wandb.sdk.wandb_run import Run

    from msh.compat import without_launch

    monkeypatch.setitem(sys.modules, LAUNCH, sys)
    before = Run._detect_and_apply_job_inputs
    with without_launch():
        assert Run._detect_and_apply_job_inputs is before


def test_loggers_inherit_the_names(tmp_path):
    from msh.compat import INHERITED

    for path, names in INHERITED.items():
        cls = resolve_name(path)
        source = "".join(inspect.getsource(parent) for parent in cls.__mro__ if parent is not object)
        for name in names:
            assert f"self.{name}" in source or hasattr(cls, name), gone(f"{path}.{name}", path.partition(".")[0])


# ---- no others


def private_names(path):
    """(defined, used) private names of a file: of functions, classes and attributes."""
    defined, used = set(), {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.id)
        elif isinstance(node, ast.Attribute) and not node.attr.startswith("__") and node.attr.startswith("_"):
            is_own = isinstance(node.value, ast.Name) and node.value.id == "self"
            if is_own and isinstance(node.ctx, ast.Store):
                defined.add(node.attr)
            else:
                used[node.attr] = f"{path.relative_to(SOURCE)}:{node.lineno}"
        elif isinstance(node, ast.ImportFrom) and not str(node.module).startswith("msh"):
            used |= {a.name: str(path.relative_to(SOURCE)) for a in node.names if a.name.startswith("_")}
    return defined, used


def test_no_other_file_uses_a_private_name_of_a_library():
    from msh.compat import INHERITED

    found = {path: private_names(path) for path in SOURCE.rglob("*.py") if path.name != "compat.py"}
    own = set().union(*(defined for defined, _ in found.values()), *map(set, INHERITED.values()))
    foreign = {name: place for _, used in found.values() for name, place in used.items() if name not in own}
    assert foreign == {}
