"""Names that other libraries keep private, each with the reason why msh needs it.

`tests/unit/test_compat.py` looks each up: an upgrade that removes one fails there, not within a training.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.batchnorm import _BatchNorm as BatchNormBase
from torch.nn.modules.batchnorm import _NormBase as NormBase
from torch.nn.modules.conv import _ConvNd as ConvolutionBase
from torch.nn.utils.parametrizations import _SpectralNorm as SpectralNormParametrization
from torch.nn.utils.parametrizations import _WeightNorm as WeightNormParametrization

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import WeightAveraging

__all__ = [
    "BatchNormBase",
    "ConvolutionBase",
    "NormBase",
    "SpectralNormParametrization",
    "WeightNormParametrization",
]

INHERITED = {
    "pytorch_lightning.loggers.CSVLogger": ["_experiment"],
    "pytorch_lightning.loggers.WandbLogger": ["_experiment", "_wandb_init"],
    "pytorch_lightning.loggers.MLFlowLogger": ["_initialized", "_run_id", "_mlflow_client", "_experiment_name"],
    "lightning_fabric.loggers.csv_logs._ExperimentWriter": ["_check_log_dir_exists", "_rewrite_with_new_header"],
}
"""Class to its private names that loggers in `msh.tracking` use as subclasses do: where there is an experiment already,
another takes its place; settings change before it starts; rows of an earlier session stay."""

# ---- torch: a module's own registries. Assigning an attribute refuses to turn a parameter into a buffer, or back.


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """Return the dict in which a module registers its own parameters, to be changed in place."""
    return module._parameters


def own_buffers(module: nn.Module) -> dict[str, Tensor | None]:
    """Return the dict in which a module registers its own buffers, to be changed in place."""
    return module._buffers


def own_modules(module: nn.Module) -> dict[str, nn.Module | None]:
    """Return the dict in which a module registers its children: `add_module` refuses names of its attributes."""
    return module._modules


def non_persistent(module: nn.Module) -> set[str]:
    """Return the own buffers that a module's state dict leaves out: a set to be changed in place."""
    return module._non_persistent_buffers_set


def pre_hooks(module: nn.Module) -> dict[int, Callable[..., Any]]:
    """Return the hooks that a module calls before its forward pass: a dict to be changed in place."""
    return module._forward_pre_hooks


def version_of(tensor: Tensor) -> int:
    """Count a tensor's changes in place, as autograd does; 0 for tensors of inference mode, which count none."""
    return 0 if tensor.is_inference() else tensor._version


def is_exporting() -> bool:
    """Tell whether torch.export traces; in torch 2.6, which does not tell it from torch.compile, either."""
    ask: Callable[[], bool] = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
    return ask()


def is_transformed() -> bool:
    """Tell whether a transformation of torch.func is under way, or forward-mode differentiation."""
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def hook_registries(module: nn.Module) -> list[Any]:
    """List the dicts in which a module holds hooks: copies share them."""
    return [value for key, value in vars(module).items() if "_hooks" in key]


def with_versions(tensors: Mapping[str, Tensor], module: nn.Module) -> OrderedDict[str, Tensor]:
    """Return tensors as a state dict of a module, with its modules' versions: some refuse to load without theirs."""
    state: Any = OrderedDict(tensors)
    own: Any = module.state_dict()
    state._metadata = own._metadata
    return cast("OrderedDict[str, Tensor]", state)


FLAT_WEIGHTS = "_flat_weights"
"""Attribute of recurrent layers: the list of weights that their kernel reads."""


def list_weights(layer: nn.RNNBase) -> None:
    """Let a recurrent layer's kernel read the tensors that the layer has now."""
    names: list[str] = layer._flat_weights_names
    setattr(layer, FLAT_WEIGHTS, [getattr(layer, name, None) for name in names])


def pruned_name(hook: object) -> str | None:
    """Name the tensor that a hook from `torch.nn.utils.prune` computes; None for other hooks."""
    return getattr(hook, "_tensor_name", None)


def scaled_to_norm(direction: Tensor, norm: Tensor, dim: int) -> Tensor:
    """Scale a direction's rows to norms, with the kernel of torch's weight normalization: see `weight_norm.py`."""
    weight: Tensor = torch._weight_norm(direction, norm, dim)
    return weight


class Loadable(nn.Module):
    """A module that is notified after its own tensors were loaded: hooks would be shared with other copies of it."""

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.loaded()

    def loaded(self) -> None:
        """Follow the loaded tensors."""


class Movable(nn.Module):
    """A module that is notified after each move to another device or type, for which torch has no hook."""

    def _apply(self, fn: Any, recurse: bool = True) -> Movable:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.moved()
        return self

    def moved(self) -> None:
        """Restore what the move has broken."""


# ---- Lightning


def set_log_step(trainer: pl.Trainer, step: int) -> None:
    """Set the step at which the trainer's next values are logged; Lightning starts each fit at 0."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = step


def skip_batches(loaders: Any, states: Sequence[Mapping[str, Any]]) -> None:
    """Restore a `CombinedLoader`'s places; Lightning forgets to once its length was asked for.

    Args:
        loaders: of a fit, not started.
        states: of its loaders, as a checkpoint has them.
    """
    loaders._load_state_dicts(list(states))


def end_when_done(trainer: pl.Trainer) -> None:
    """Let a fit that resumes after its last epoch call the hooks of its start and end; Lightning would skip it."""
    kind = type(trainer.fit_loop)
    trainer.fit_loop.__class__ = type(kind.__name__, (kind,), {"skip": False})


def log_batch(trainer: pl.Trainer) -> None:
    """Log the last batch's values now; Lightning does so after the callbacks, too late to end a run."""
    trainer._logger_connector.update_train_step_metrics()


def log_again(module: pl.LightningModule, name: str, value: Any, examples: int) -> bool:
    """Update a value that the present hook has logged in an earlier batch of the epoch, in a fraction of `log`'s time.

    Args:
        module: within one of its hooks.
        name: of the value.
        value: as for `log`.
        examples: in the batch.
    Returns:
        True if it is updated; False if `log` has to be called.
    """
    results: Any = None if module._trainer is None else module._trainer._results
    key = f"{module._current_fx_name}.{name}"
    if not results or key not in results or results[key].has_reset:
        return False
    results.update_metrics(key, value, examples)
    return True


def averaging_settings(callback: WeightAveraging) -> dict[str, Any]:
    """Return the arguments that a callback for weight averaging passes to torch's `AveragedModel`."""
    return {"device": callback._device, "use_buffers": callback._use_buffers, **callback._kwargs}


def csv_writer() -> Any:
    """Return the class that writes Lightning's metrics.csv, to be subclassed: CSVLogger takes no other writer."""
    from lightning_fabric.loggers.csv_logs import _ExperimentWriter

    return _ExperimentWriter


# ---- W&B


@contextmanager
def without_launch() -> Iterator[None]:
    """Start W&B runs inside the context without W&B Launch, which takes a second to import.

    Each start looks there for inputs that the program has declared; without the import, it has declared none.
    """
    from wandb.sdk.wandb_run import Run

    before = Run._detect_and_apply_job_inputs
    if "wandb.sdk.launch.inputs.internal" not in sys.modules:
        Run._detect_and_apply_job_inputs = lambda self: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        Run._detect_and_apply_job_inputs = before  # type: ignore[method-assign]


def use_offline(run: Any, artifact: Any) -> None:
    """Record that an offline run uses an artifact: `use_artifact` refuses, although the file can hold it."""
    run._log_artifact(artifact, aliases=[], is_user_created=True, use_after_commit=True)


def workspace_model(workspace: Any) -> Any:
    """Return a W&B workspace as the pydantic model that is sent; the public `save` needs a network."""
    return workspace._to_model()


# ---- Hydra


def hydra_commands() -> Any:
    """Return the module with Hydra's commands: its `ConfigLoaderImpl` composes their configs, and may be replaced."""
    from hydra._internal import hydra

    return hydra


class Composing:
    """A part of Hydra's loader that is notified after a config is composed, before overrides are applied to it."""

    overrides: Sequence[Any] = ()

    def _parse_overrides_and_create_caching_repo(self, *args: Any, **kwargs: Any) -> Any:
        parsed = cast(Any, super())._parse_overrides_and_create_caching_repo(*args, **kwargs)
        self.overrides = parsed[0]
        return parsed

    def _compose_config_from_defaults_list(self, *args: Any, **kwargs: Any) -> Any:
        config = cast(Any, super())._compose_config_from_defaults_list(*args, **kwargs)
        self.composed(config, self.overrides)
        return config

    def composed(self, config: Any, overrides: Sequence[Any]) -> None:
        """Change parsed overrides in place before they are applied."""
