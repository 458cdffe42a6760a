"""Build tasks, backbone and network from the config."""

from __future__ import annotations

import copy
import json
import logging
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import Tensor, nn

from msh.backbones import Adapted
from msh.backbones.libraries import Images, Tokens
from msh.backbones.named import GIVEN, named
from msh.compat import BatchNormBase
from msh.draws import drawing_apart, seed_draws
from msh.errors import Problems, ProblemsError, described, invalid
from msh.inference.computing import Computing
from msh.recipes import DTYPES, Recipe, build, freeze_base, outline, own_names
from msh.subnetworks import WEIGHTS, Blocks, Granularity, Groups, MultiSubnetwork, NofM, Units, trace_units
from msh.subnetworks.blocks import block_sizes
from msh.subnetworks.tensors import name_tensors
from msh.subnetworks.views import half_precision, sets_requires_grad
from msh.tasks import RawData, Task, build_task
from msh.tasks.checks import NoSuchPathError
from msh.tasks.image_step import ReadImages
from msh.tasks.options import TOKEN_KINDS, Normalize
from msh.tasks.own import with_own
from msh.tasks.seeds import derive_seed
from msh.tasks.steps import ReadNamed, RepeatChannels, Resize, Scale, Step, Steps, Tokenize
from msh.tasks.tokens import described_tokenizer
from msh.tasks.transforms import transformed
from msh.training.config import RunConfig, TaskConfig
from msh.training.launch import place_among_processes
from msh.training.own_code import reporting
from msh.training.precision import drawing_in, true_type
from msh.training.shared import SharedNetwork

log = logging.getLogger(__name__)

ANY_SHAPE = [3, 64, 64]
"""Shape of inputs with which a backbone's other arguments are checked."""
PROBED = 1000
"""Token ids with which a backbone is probed."""


def _load(name: str, source: dict[str, Any], folder: str) -> RawData:
    """Load a task's data; `folder` is `paths.data_dir`."""
    try:
        with reporting(f"tasks.{name}.source._target_", source.get("_target_"), "cannot load the data"):
            data = instantiate(source, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, NoSuchPathError):
            raise FileNotFoundError(_missing(name, source, error.__cause__, folder)) from error
        raise
    if not isinstance(data, RawData):
        has = f"{source['_target_']} returns a {type(data).__name__}" if "_target_" in source else "it has no _target_"
        raise ValueError(
            f"tasks.{name}.source: {has}; `_target_` must name a function that returns msh.tasks.RawData, such as "
            "msh.tasks.tables.csv_table"
        )
    return data


def _missing(name: str, source: Mapping[str, Any], error: NoSuchPathError, folder: str) -> str:
    """Name the setting of a path that does not exist, and `paths.data_dir` if the path begins with it."""
    key = f"tasks.{name}.source"
    for setting, value in source.items():
        if isinstance(value, str) and Path(value).expanduser() == error.path:
            key = f"{key}.{setting} = {value}"
    is_below = error.path.is_relative_to(Path(folder).expanduser())
    return f"{key}: {error}" + (": paths.data_dir=DIR sets the folder of the data" if is_below else "")


def build_tasks(config: RunConfig, only: Sequence[str] | None = None) -> dict[str, Task]:
    """Load the tasks' data: once per source, and split once for tasks with identical settings.

    Args:
        config: the run's.
        only: names of the tasks to build; all when None.
    Returns:
        Tasks by name, in the config's order.
    Raises:
        ValueError: a task's data or settings are invalid.
        FileNotFoundError: data is missing.
    """
    loaded: dict[str, RawData] = {}
    built: dict[str, Task] = {}
    tasks = {}
    for name, task in config.tasks.items():
        if only is not None and name not in only:
            continue
        settings = json.dumps(asdict(task), sort_keys=True)
        if settings in built:
            tasks[name] = replace(built[settings], name=name)
            continue
        source = json.dumps(task.source, sort_keys=True)
        if source not in loaded:
            loaded[source] = _load(name, task.source, config.paths.data_dir)
        data, normalize = _for_library(transformed(name, loaded[source], task.transforms), task, config)
        own = isinstance(task.metric, dict)
        made = build_task(
            name,
            data,
            batch_size=task.batch_size,
            val_fraction=config.val_fraction or task.val_fraction,
            normalize=normalize,
            metric=None if own else cast(Any, task.metric),
            loss_weight=task.loss_weight,
            repeat=task.repeat,
            normalize_target=task.normalize_target,
            stem=task.stem or None,
            augment=task.augment,
        )
        with drawing_apart(derive_seed(config.seed, name, "own loss")):
            tasks[name] = built[settings] = with_own(made, task.metric, task.loss)
    return tasks


def _for_library(data: RawData, task: TaskConfig, config: RunConfig) -> tuple[RawData, Normalize | None]:
    """Give texts the tokenizer of the backbone's library; leave scaling of images to a pretrained model's."""
    chosen = named(config.backbone)
    expected = None if chosen is None else chosen.inputs()
    if isinstance(expected, Tokens) and expected.tokenizer is not None and data.texts is not None and not task.stem:
        if data.texts.file is None:  # one that the user has named stays
            from tokenizers import Tokenizer  # slow to import

            file = described_tokenizer(Tokenizer.from_str(expected.tokenizer), expected.padding)
            texts = replace(data.texts, vocabulary=None, file=file, unicode="none")
            data = replace(data, texts=texts)
        return data, task.normalize
    is_image = len(data.train.inputs.shape) == 4 and not task.stem
    if chosen is not None and chosen.weights and isinstance(expected, Images) and is_image:
        return data, "none" if _reads_pixels(data.raw_steps) else task.normalize or "channel"
    return data, task.normalize or ("channel" if isinstance(expected, Images) and is_image else None)


def fit_tasks(config: RunConfig, tasks: Mapping[str, Task]) -> dict[str, Task]:
    """Append the steps that make tasks' images those that a model from a library reads.

    Args:
        config: the run's.
        tasks: from `build_tasks`.
    Returns:
        The tasks; those whose inputs the backbone can read as they are, or through a stem, unchanged.
    """
    chosen = named(config.backbone)
    expected = None if chosen is None else chosen.inputs()
    if chosen is None or not isinstance(expected, Images):
        return dict(tasks)
    shape = chosen.shape(expected, [task.input_shape for task in tasks.values()])
    fitted = {}
    for name, task in tasks.items():
        steps = _image_steps(task, expected, shape, chosen.weights is not None)
        if steps:
            words = " and ".join(step.step.replace("_", " ") for step in steps)
            log.info("task %s: its images %s fit the backbone's %s by %s", name, task.input_shape, shape, words)
        splits = dict(task.splits)
        for step in steps:
            splits = {part: split.then(step) for part, split in splits.items()}
        fitted[name] = replace(task, splits=splits, steps=(*task.steps, *steps))
    return fitted


def _image_steps(task: Task, expected: Images, shape: tuple[int, ...], pretrained: bool) -> list[Step]:
    steps: list[Step] = []
    if task.stem is not None or len(task.input_shape) != 3 or len(shape) != 3:
        return steps
    if task.input_shape[0] not in (1, shape[0]):
        raise ValueError(
            f"task {task.name!r} has images with {task.input_shape[0]} channels, and the backbone reads {shape[0]}: "
            f"set backbone.input_shape=[{task.input_shape[0]}, height, width] or read them as grey images "
            f"(tasks.{task.name}.source.mode=L)"
        )
    if task.input_shape[0] != shape[0]:
        steps.append(RepeatChannels(shape[0]))
    if task.input_shape[1:] != shape[1:]:
        steps.append(Resize((shape[1], shape[2]), "bicubic" if expected.interpolation == "bicubic" else "bilinear"))
    if pretrained and _reads_pixels(task.steps[:-1]):
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (expected.mean, expected.std))
        steps.append(Scale(mean, std))
    return steps


def _reads_pixels(steps: Steps) -> bool:
    """Tell whether steps return pixels in [0, 1], which a library's mean and deviation are for."""
    return isinstance(steps[0], ReadImages) and not any(isinstance(step, Scale) for step in steps)


def find_input_shape(config: RunConfig) -> tuple[tuple[int, ...], str]:
    """Find the shape of an example that the backbone reads in a run, from as little data as possible.

    Returns:
        (the shape, its origin in words).
    Raises:
        ValueError: no setting, library or data says it.
    """
    chosen = named(config.backbone)
    expected = None if chosen is None else chosen.inputs()
    if (given := config.backbone.get("input_shape")) is not None:
        return tuple(given), "of backbone.input_shape"
    if chosen is None or expected is None or not chosen.weights or isinstance(expected, Tokens):
        for name in config.tasks:
            try:
                (task,) = build_tasks(config, [name]).values()
            except (OSError, InstantiationException) as error:
                if not isinstance(error.__cause__ or error, OSError):
                    raise
                continue  # its data is not here
            is_text = task.vocabulary is not None and task.stem is None
            if isinstance(expected, Images) and len(task.input_shape) == 3:
                assert chosen is not None
                return chosen.shape(expected, [task.input_shape]), f"as task {name} has them"
            if not isinstance(expected, Images) and (is_text or not isinstance(expected, Tokens)):
                return task.input_shape, f"as task {name} has them"
    if isinstance(expected, Images):
        return expected.shape, "as the library says"
    needed = "[tokens]" if isinstance(expected, Tokens) else "the shape of one example"
    raise invalid("backbone.input_shape", f"{needed}, as the data of no task is here that has such inputs", None)


def backbone_recipe(config: RunConfig, tasks: Mapping[str, Task]) -> Recipe:
    """Return the backbone's recipe; its `input_shape` is the first task's unless config or library set one."""
    settings: Recipe = dict(config.backbone)
    shapes = [task.input_shape for task in tasks.values()]
    if any(task.per_token for task in tasks.values()):
        settings |= _per_token(settings, tasks)
    if chosen := named(settings):
        inputs = chosen.inputs()
        if isinstance(inputs, Tokens) and chosen.library is not None and inputs.tokenizer is None:
            paddings = [task.padding for task in tasks.values() if task.vocabulary is not None and task.stem is None]
            inputs = replace(inputs, padding=chosen.padding if chosen.padding is not None else [*paddings, 0][0])
        parts = named_parts(tasks)
        settings = chosen.recipe(shapes[0] if parts else chosen.shape(inputs, shapes), None if parts else inputs)
        settings |= {"parts": parts} if parts else {}
        firsts = [task.steps[0] for task in tasks.values() if task.steps and task.stem is None]
        if isinstance(inputs, Tokens) and any(isinstance(step, Tokenize) and step.pads_left for step in firsts):
            settings["left_padded"] = True
    elif named_parts(tasks):
        raise invalid("backbone", "module, or hf, which can take inputs by name", settings["_target_"])
    elif settings.get("input_shape") is None:
        settings["input_shape"] = list(shapes[0])
    kind = true_type(config)
    return settings if kind is None else {**settings, "_dtype_": kind}


def named_parts(tasks: Mapping[str, Task]) -> dict[str, Any]:
    """Return the form of the tasks' inputs by name, as `Adapted` takes it; {} if they have one input, or none is there.

    Raises:
        ValueError: two tasks have inputs of different names, shapes or types, of which no stem could make the same.
    """
    found = {name: _parts_of(task) for name, task in tasks.items()}
    if not found:
        return {}
    first = next(iter(found))
    for name, parts in found.items():
        forms = [{key: part | {"below": 0} for key, part in each.items()} for each in (parts, found[first])]
        if forms[0] != forms[1]:
            texts = [
                ", ".join(f"{k} {v['dtype']} {v['shape']}" for k, v in e.items()) or "one input"
                for e in (parts, found[first])
            ]
            raise ValueError(
                f"tasks {first!r} and {name!r} cannot share a backbone: the one has {texts[1]}, the other {texts[0]}; "
                "train them in networks of their own"
            )
    below = {key: max(parts[key]["below"] for parts in found.values()) for key in found[first]}
    return {key: part | {"below": below[key]} for key, part in found[first].items()}


def _parts_of(task: Task) -> dict[str, Any]:
    step = task.steps[0] if task.steps else None
    if not isinstance(step, ReadNamed):
        return {}
    if task.stem is not None:
        raise invalid(f"tasks.{task.name}.stem", "null for inputs by name", task.stem)
    return {name: {**asdict(part), "shape": list(part.shape)} for name, part in step.parts.items()}


def _per_token(settings: Recipe, tasks: Mapping[str, Task]) -> Recipe:
    """Return the setting by which a backbone gives its features of each token, as the tasks' kind needs.

    Raises:
        ValueError: other tasks need one vector per text, or the settings pool the tokens in a way that has no effect.
    """
    one, token = ([t for t in tasks.values() if t.per_token == per_token] for per_token in (False, True))
    if one:
        raise _different(one[0].name, one[0].kind, token[0].name, token[0].kind)
    for key in {"pool", "pooling"} & settings.keys():
        usual = (None, "mean", "none", "tokens")
        if settings[key] not in usual:
            what = f"tokens (or left out), as tasks of kind {token[0].kind} answer each token"
            raise invalid(f"backbone.{key}", what, settings[key])
        return {key: "tokens"}
    return {}


def _different(one: str, kind: str, other: str, other_kind: str) -> ValueError:
    return ValueError(
        f"tasks {one!r} ({kind}) and {other!r} ({other_kind}) cannot share a backbone: the one needs a vector per "
        "text, the other one a vector per token; train them in networks of their own"
    )


def check_kinds(tasks: Mapping[str, Task], recipes: Mapping[str, Mapping[str, Any]]) -> None:
    """Check that tasks fit a network that has others, which answer each token or do not, as the tasks must.

    Args:
        tasks: of the run.
        recipes: task to its recipe, in the network that the run starts from.
    Raises:
        ValueError: naming two tasks that differ.
    """
    for other, recipe in recipes.items():
        kind = str(recipe.get("outputs", {}).get("kind"))
        for task in tasks.values():
            if task.per_token != (kind in TOKEN_KINDS):
                raise _different(
                    *(
                        (task.name, task.kind, other, kind)
                        if kind in TOKEN_KINDS
                        else (other, kind, task.name, task.kind)
                    )
                )


def build_network(config: RunConfig, tasks: dict[str, Task], prunable: Sequence[str] | None = None) -> MultiSubnetwork:
    """Build a network without tasks, from the config's backbone.

    Args:
        config: the run's.
        tasks: by name.
        prunable: names of the prunable tensors, where a file lists them; None: found by the layers' roles.
    """
    recipe, master = backbone_recipe(config, tasks), config.master_weights
    backbone = build_backbone(config, tasks, recipe)
    if isinstance(backbone, Adapted):
        recipe = {**recipe, "features": backbone.features, "pool": backbone.pool}
    if config.reuse == "backbone":
        if getattr(named(config.backbone), "weights", "its own") is None:
            log.warning("reuse=backbone reads random weights: load pretrained ones with backbone.weights")
        recipe["_base_"] = name_tensors(backbone).prunable
        freeze_base(backbone, recipe["_base_"])
    network = MultiSubnetwork(backbone, prunable, recipe, master_weights=master, small_while_masked=True)
    if half := half_precision(weight for _, weight in network.weights()):
        log.info("the backbone is %s: its weights train in %s", half, torch.float32 if master else half)
    return network


def build_backbone(config: RunConfig, tasks: Mapping[str, Task], recipe: Recipe | None = None) -> nn.Module:
    """Build the backbone, with initial weights drawn from the run's seed, or pretrained ones.

    Args:
        config: the run's.
        tasks: by name.
        recipe: from `backbone_recipe`, if it is known.
    """
    settings = dict(backbone_recipe(config, tasks) if recipe is None else recipe)
    kind = settings.pop("_dtype_", None)
    seed_draws(derive_seed(config.seed, "backbone"))
    chosen = named(config.backbone)
    with drawing_in(kind):
        backbone = _build_module(config, settings)
    if chosen is not None:
        chosen.load(cast(Any, backbone).model)
    for name in ("input_shape", "features"):
        if not hasattr(backbone, name):
            raise ValueError(f"backbone {settings['_target_']} has no attribute {name!r}: see docs/backbones.md")
    if kind is not None:
        backbone.to(DTYPES[kind])
    whole = [name for name, part in getattr(backbone, "parts", {}).items() if part["dtype"] == "int64"]
    if whole and half_precision(backbone.parameters()):
        bound = "'bf16-mixed' or '32-true'"
        raise invalid("trainer.precision", f"{bound}, as whole numbers such as {whole[0]!r} need float32", kind)
    if not isinstance(backbone, Adapted):
        check_outputs(backbone, any(task.per_token for task in tasks.values()))
    for task in tasks.values():
        check_inputs(backbone, task)
        check_batch(backbone, task)
    for task in {task.kind: task for task in tasks.values() if task.per_token}.values():
        check_tokens(backbone, task)
    if own_names(settings) and (chosen is None or chosen.target not in GIVEN):
        with drawing_in(kind):
            check_rebuilt(backbone, settings, lambda: _build_module(config, settings))
    return backbone


def check_backbone(config: RunConfig) -> None:
    """Check the arguments of a backbone of msh, as far as this needs no data.

    Raises:
        ValueError: naming every argument that has an invalid value.
    """
    target = str(config.backbone["_target_"])
    if named(config.backbone) is not None or not target.startswith("msh."):
        return
    try:
        outline({**config.backbone, "input_shape": config.backbone.get("input_shape") or ANY_SHAPE}, "the backbone")
    except ValueError as error:
        if isinstance(error.__cause__, ValueError):
            with Problems() as problems:
                for text in _problems_of_arguments(error.__cause__, config.backbone):
                    if config.backbone.get("input_shape") is not None or not text.startswith("backbone.input_shape"):
                        problems.add(text)


def _problems_of_arguments(error: ValueError, settings: Recipe) -> Iterator[str]:
    """Yield the sentences of an error that begin with an argument of the backbone, with its key: backbone.width."""
    for text in getattr(error, "problems", [str(error)]):
        if text.partition(" ")[0].partition("[")[0] in {"input_shape", *settings}:
            yield f"backbone.{text}"


def _build_module(config: RunConfig, settings: Recipe) -> nn.Module:
    """Build the backbone's module from its recipe.

    Raises:
        ValueError: its class, or the user's in it, raises an error; naming the setting.
    """
    chosen = named(config.backbone)
    if chosen is None:
        try:
            with reporting("backbone._target_", settings["_target_"]):
                module: nn.Module = instantiate(settings, _convert_="all")
        except InstantiationException as error:
            if isinstance(error.__cause__, ValueError) and (
                found := list(_problems_of_arguments(error.__cause__, settings))
            ):
                raise ProblemsError(found) from error
            raise
        return module
    target = chosen.target
    if target is None or target in GIVEN:
        return build(settings, GIVEN)
    constructor = pkgutil.resolve_name(target)
    key = "backbone._target_" if config.backbone["_target_"] == target else "backbone.target"

    def construct(*args: Any, **kwargs: Any) -> Any:
        with reporting(key, target):
            return constructor(*args, **kwargs)

    return build(settings, {**GIVEN, target: construct})


def build_granularity(config: RunConfig, network: MultiSubnetwork) -> Granularity:
    """Build the granularity that the config names: choose blocks, or for whole units trace the backbone.

    Raises:
        ValueError: whole units do not work with the backbone or another setting.
    """
    granularity = config.pruning.granularity
    assert granularity is not None  # `choose_granularity` has filled it in
    if granularity == "weight":
        return WEIGHTS
    if granularity == "block":
        return Blocks.of(network, config.pruning.sides)
    if granularity == "nm":
        return NofM(Groups.of(network, *config.pruning.n_of_m))
    if config.reuse != "none":
        raise invalid(
            "reuse",
            f"'none' with pruning.granularity={granularity}, as whole units read no other task's weights",
            config.reuse,
        )
    try:
        return Units(trace_units(network, granularity))
    except ValueError as error:
        raise ValueError(f"pruning.{error}") from error


def check_inputs(backbone: nn.Module, task: Task) -> None:
    """Check that a backbone can read a task's inputs; one that reads tokens has an attribute `vocabulary`.

    Raises:
        ValueError: the task has tokens and the backbone reads numbers or knows fewer tokens, or the reverse.
    """
    name, words = type(backbone).__name__, getattr(backbone, "vocabulary", None)
    if words is not None and (task.vocabulary is None or task.stem is not None):
        cure = "" if task.stem is None else f", because of its stem: remove it with tasks.{task.name}.stem=null"
        raise ValueError(f"the backbone {name} reads the tokens of texts; task {task.name!r} gives it numbers{cure}")
    if words is None and task.vocabulary is not None and task.stem is None:
        raise ValueError(
            f"task {task.name!r} is of kind {task.kind}, which answers each token, and the backbone {name} reads "
            "numbers: use one that reads tokens, such as backbone=hf backbone.name=gpt2"
            if task.per_token
            else f"task {task.name!r} has texts, and the backbone {name} reads numbers: give the task a stem "
            f"(tasks.{task.name}.stem, as in conf/tasks/movie_reviews.yaml), or choose backbone=transformer"
        )
    if task.stem is not None and task.per_token:
        raise invalid(f"tasks.{task.name}.stem", f"null, as a task of kind {task.kind} answers each token", task.stem)
    if words is not None and task.vocabulary is not None and task.vocabulary > words:
        raise ValueError(
            f"task {task.name!r} has {task.vocabulary} token ids, but backbone.vocabulary is {words}: "
            f"raise it, or lower tasks.{task.name}.source.vocabulary (a tokenizer file has its own number)"
        )
    padding = getattr(backbone, "padding", task.padding)
    if words is not None and padding != task.padding:
        raise ValueError(
            f"task {task.name!r} pads texts with the token id {task.padding}, but backbone.padding is {padding}: "
            f"set backbone.padding={task.padding}"
        )
    if words is not None and task.input_shape != tuple(cast(Any, backbone).input_shape):
        raise ValueError(
            f"task {task.name!r} has {task.input_shape[0]} tokens per text, but the backbone reads "
            f"{cast(Any, backbone).input_shape[0]}: set tasks.{task.name}.source.length to that"
        )
    if sets_requires_grad(backbone) and task.stem_recipe(tuple(cast(Any, backbone).input_shape)) is not None:
        raise ValueError(
            f"task {task.name!r} would have a stem before the backbone "
            f"{type(getattr(backbone, 'model', backbone)).__name__}, which lets its inputs require gradients, and "
            f"torch allows that of data alone: set backbone.input_shape={list(task.input_shape)} "
            f"and tasks.{task.name}.stem=null"
        )


def _ones(backbone: nn.Module, examples: int) -> Tensor:
    kind = next((p.dtype for p in backbone.parameters() if p.is_floating_point()), torch.float32)
    kind = kind if getattr(backbone, "vocabulary", None) is None else torch.int64
    return torch.ones(examples, *cast(Any, backbone).input_shape, dtype=kind)


def check_outputs(backbone: nn.Module, per_token: bool) -> None:
    """Check that a backbone of the user's, which is used as it is, returns features.

    Args:
        backbone: with `input_shape` and `features`.
        per_token: whether tasks answer each token; `check_tokens` checks more.
    Raises:
        ValueError: it returns something else; the message says what.
    """
    name, features = type(backbone).__name__, cast(Any, backbone).features
    shape = list(cast(Any, backbone).input_shape)
    with drawing_apart(), torch.no_grad():
        try:
            outputs = copy.deepcopy(backbone).eval()(_ones(backbone, 2))
        except Exception as error:  # a module may raise any type
            raise ValueError(
                f"backbone {name} cannot compute inputs of its input_shape {shape}: {described(error)}"
            ) from error
    found = f"a {type(outputs).__name__}"
    if isinstance(outputs, Tensor):
        found = f"a tensor {list(outputs.shape)} for two examples"
        axes = (3,) if per_token else (2,)
        if outputs.dim() in axes and len(outputs) == 2 and outputs.shape[-1] == features:
            return
    bound = f"a tensor (batch, {'tokens, ' * per_token}{features}), as its attribute `features` says"
    cure = f"backbone=module backbone.target={type(backbone).__module__}.{name} finds and pools other outputs"
    raise ValueError(f"{invalid(f'the outputs of backbone {name}', bound, found)}; {cure}")


def check_batch(backbone: nn.Module, task: Task) -> None:
    """Check that a backbone can train on a process's share of a task's batches, where that is a single example.

    Raises:
        ValueError: its batch normalization needs several.
    """
    if task.batch_size > place_among_processes()[1] or not any(
        isinstance(m, BatchNormBase) for m in backbone.modules()
    ):
        return
    with drawing_apart(), torch.no_grad():
        try:
            copy.deepcopy(backbone).train()(_ones(backbone, 1))
        except ValueError as error:  # of batch_norm
            bound = f"two examples or more per process, as the backbone normalizes batches ({error})"
            raise invalid(f"tasks.{task.name}.batch_size", bound, task.batch_size) from error


def check_rebuilt(backbone: nn.Module, settings: Recipe, build_again: Callable[[], nn.Module]) -> None:
    """Check that a backbone of the user's, built again and given the same state dict, computes the same features.

    Files hold the state dict alone, so that they would answer otherwise than the run.

    Raises:
        ValueError: it has random tensors or modules that the state dict lacks, or other tensors each time.
    """
    target = own_names(settings)[0]
    with drawing_apart(derive_seed(0, "built again")), torch.no_grad():
        again = build_again()
        types = {name: tensor.dtype for name, tensor in _named_tensors(backbone)}
        for name, tensor in _named_tensors(again):
            tensor.data = tensor.data.to(types.get(name, tensor.dtype))
        try:
            again.load_state_dict(backbone.state_dict())
        except RuntimeError as error:
            raise ValueError(
                f"{target} has other tensors when it is built again: {' '.join(str(error).split())}"
            ) from error
        before = copy.deepcopy(backbone).eval()
        found = [model(_ones(backbone, 1)) for model in (before, before, again.eval())]
    if not all(isinstance(features, Tensor) for features in found):
        return
    near = 1e-3 * found[0].abs().max()
    if bool((found[1] - found[0]).abs().max() > near):  # it computes at random
        return
    if bool((found[2] - found[0]).abs().max() > near):
        raise ValueError(
            f"{target}, built again with the same state dict, computes other features, and so would msh.load: register "
            "what it draws at random, as parameters or buffers that are persistent, and modules in a ModuleList"
        )


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def check_tokens(backbone: nn.Module, task: Task) -> None:
    """Check that a backbone gives a vector per token, and for a language model that none depends on later tokens.

    A copy computes, whose parameters are moved a little, so that layers that begin as 0 count too.

    Raises:
        ValueError: it does not; naming backbone and kind.
    """
    name = type(getattr(backbone, "model", backbone)).__name__
    tokens = task.input_shape[0]
    with drawing_apart(0), torch.no_grad():
        copied: Any = copy.deepcopy(backbone).float().eval()
        for parameter in copied.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
        some = [number for number in range(min(cast(int, task.vocabulary), PROBED)) if number != task.padding]
        one, other = torch.tensor(some)[torch.randint(len(some), (2, tokens))]  # (tokens,) each
        device = next((parameter.device for parameter in copied.parameters()), torch.device("cpu"))
        first = copied(one[None].to(device))  # (1, tokens, features)
        if first.dim() != 3 or first.shape[1] != tokens:
            raise ValueError(
                f"task {task.name!r} is of kind {task.kind}, which answers each token, and the backbone {name} returns "
                f"{list(first.shape)} for a text of {tokens} tokens: it must return (batch, tokens, features)"
            )
        for place in sorted({1, tokens // 2, tokens - 1} - {0}) if task.kind == "lm" else ():
            changed = torch.where(torch.arange(tokens) < place, one, other)
            difference = (copied(changed[None].to(device)) - first)[:, :place].abs().max()
            if not difference <= 8 * torch.finfo(first.dtype).eps * first.abs().max():
                raise ValueError(
                    f"task {task.name!r} is of kind lm, and the backbone {name} is not causal: its outputs before "
                    f"token {place} depend on that token and later ones, so it could read the answer; use a causal "
                    "one, such as backbone=hf backbone.name=gpt2"
                )


def add_task(network: MultiSubnetwork | SharedNetwork, task: Task, config: RunConfig) -> None:
    """Add a task with a new head, and with a stem if its input has another shape than the backbone's."""
    seed_draws(derive_seed(config.seed, task.name, "head and stem"))
    backbone: Any = network.backbone
    kind = true_type(config)
    with drawing_in(kind):
        head, stem = task.build_head(backbone.features), task.build_stem(backbone.input_shape)
    recipe: Recipe = {"head": task.head_recipe(backbone.features), "stem": task.stem_recipe(backbone.input_shape)}
    if kind == "float64":  # in narrower types, head and stem stay float32
        recipe = {part: built and {**built, "_dtype_": kind} for part, built in recipe.items()}
        for module in filter(None, (head, stem)):
            module.to(torch.float64)
    if isinstance(network, SharedNetwork):
        network.add_task(task.name, head, stem)
    else:
        granularity = config.pruning.granularity
        assert granularity is not None  # as above
        metric = {"name": task.metric, "direction": task.direction}
        recipe |= {**task.data_recipe(), "evaluation": asdict(computing(config, task)), "metric": metric}
        blocks = block_sizes(network, config.pruning.sides) if granularity == "block" else None
        network.add_task(task.name, head, stem, config.reuse_of_tasks, granularity, recipe, blocks)


def computing(config: RunConfig, task: Task) -> Computing:
    """Return how a run evaluates a task."""
    autocast = {"bf16-mixed": "bfloat16", "16-mixed": "float16"}.get(str(config.trainer.precision))
    return Computing(config.evaluation.batch_size or task.batch_size, config.flush_denormal, autocast)  # type: ignore[arg-type]
