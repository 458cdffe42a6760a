"""Export a task for other programs: ONNX, torch.export, a network file of its own, or a smaller dense network."""

from __future__ import annotations

import copy
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from msh.errors import invalid
from msh.files.atomic import write_bytes
from msh.files.state_file import read_state
from msh.inference.computing import usual_defaults
from msh.inference.hub import source_file
from msh.subnetworks import MultiSubnetwork, TaskNetwork, UnitGraph, trace_units
from msh.subnetworks.small import SmallTensors, narrow
from msh.subnetworks.tensors import as_parameters, bag_key, evaluating, put_tensor
from msh.subnetworks.tracing import CONVOLUTIONS, example_inputs
from msh.subnetworks.units import columns
from msh.subnetworks.views import cast_type, frozen_network
from msh.tasks.preprocessing import steps_to_data
from msh.tasks.steps import Reader, Steps

if TYPE_CHECKING:
    from msh.inference.predictor import Predictor, TaskInfo

Format = Literal["onnx", "pt2", "safetensors"]
OPSET = 20
TENSOR_STEPS = ("permute", "repeat_channels", "resize", "scale")
"""Steps of preprocessing that exports can hold."""


class ExportedTask(nn.Module):
    """A task from raw tensors to named outputs: preprocessing after the first step, network, probabilities or values.

    Args:
        module: prepared tensors to the head's outputs.
        info: the task.
    Raises:
        ValueError: a step of the preprocessing cannot be exported.
    """

    def __init__(self, module: nn.Module, info: TaskInfo) -> None:
        super().__init__()
        self.module, self.info = module, info
        if wrong := [step.step for step in info.steps[1:] if step.step not in TENSOR_STEPS]:
            raise ValueError(f"task {info.name!r} cannot be exported: its step {wrong[0]!r} needs msh predict")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return ("values",) if self.info.kind == "regression" else ("logits", "probabilities")

    def forward(self, inputs: Tensor, *shared: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Map inputs (batch, *shape) to the outputs (batch, numbers), in the order of `names`.

        Args:
            inputs: as the first step of the preprocessing returns them.
            shared: further arguments of the module; see `MaskedTask`.
        """
        for step in self.info.steps[1:]:
            inputs = step(inputs)
        outputs = self.module(inputs, *shared)
        values = self.info.outputs.values(outputs)
        return (values,) if self.info.kind == "regression" else (outputs, values)


@usual_defaults()
def exported(predictor: Predictor, task: str) -> ExportedTask:
    """Build a task's module to export; a task of whole units becomes a small dense network.

    Raises:
        ValueError: there is no such task, or it cannot be exported.
    """
    info = predictor.task(task)
    if not is_sliceable(predictor.network, task):
        return ExportedTask(predictor.module(task), info).eval()
    small = sliced(predictor.network, task)
    for tensor in [*small.parameters(), *small.buffers()]:
        tensor.data = tensor.detach().clone(memory_format=torch.contiguous_format)  # files hold no parts of tensors
    return ExportedTask(small, info).eval()


class MaskedTask(nn.Module):
    """A task whose weights are selected from tensors that it shares with other tasks.

    Args:
        network: holds the task, frozen.
        task: its name.
    """

    def __init__(self, network: MultiSubnetwork, task: str) -> None:
        super().__init__()
        names, state = network.names, network.view(task)
        replaced = {name: (weight.new_zeros(1), None) for name, weight in network.weights()}  # in `forward`
        self.tree = frozen_network(network, network.subnetwork(task), replaced)
        self.places = {name: [name] for name in names.prunable}
        for again, name in names.tied.items():
            if name in self.places:
                self.places[name].append(again)
        entry = state.task(task)
        self.ids = [entry.owner, *(network.state.task(other).owner for other in entry.reads if not entry.reading)]
        for name in entry.reading:
            self.register_buffer(bag_key(name), state.read_mask(task, name))
        self.reading = {name: bag_key(name) for name in entry.reading}

    def forward(self, inputs: Tensor, weights: Mapping[str, Tensor], owners: Mapping[str, Tensor]) -> Tensor:
        """Map prepared inputs (batch, *input shape) to the head's outputs (batch, outputs).

        Args:
            inputs: prepared for the task.
            weights: tensor name to (*shape), of all tasks.
            owners: tensor name to each weight's owner, int (*shape).
        """
        tensors: dict[str, Tensor] = {}
        for name, places in self.places.items():
            mask = owners[name] == self.ids[0]
            for other in self.ids[1:]:
                mask = mask | (owners[name] == other)
            if name in self.reading:
                mask = mask | self.get_buffer(self.reading[name])
            weight = torch.where(mask, weights[name], 0.0)
            tensors |= {f"backbone.{place}": weight for place in places}
        outputs: Tensor = functional_call(self.tree, tensors, (inputs,), tie_weights=False)
        return outputs


class ExportedTasks(nn.Module):
    """All tasks, from the same raw tensors to named outputs: those of each `ExportedTask`, in order.

    Tasks of whole units are small dense networks; the others select their weights from tensors that are there once.

    Args:
        predictor: holds the tasks.
    Raises:
        ValueError: tasks read different inputs, or one cannot be exported.
    """

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        network, infos = predictor.network, list(predictor.tasks.values())
        forms = {_tensor_form(info.steps): info.name for info in reversed(infos)}
        if len(forms) > 1:
            raise ValueError(
                f"tasks {' and '.join(map(repr, reversed(forms.values())))} read different inputs, and a file has one "
                "input: export them apart with --task NAME, or as a network with --format safetensors"
            )
        masked = {info.name: not is_sliceable(network, info.name) for info in infos}
        self.tasks = nn.ModuleList(
            ExportedTask(MaskedTask(network, info.name), info) if masked[info.name] else exported(predictor, info.name)
            for info in infos
        )
        self.shared = {name: bag_key(name) for name in network.names.prunable} if any(masked.values()) else {}
        for name, key in self.shared.items():
            owners = network.owners[name]
            ids = torch.tensor([network.state.task(task).owner for task in network.tasks])
            used = torch.isin(owners, ids.to(owners.dtype))
            self.register_buffer(f"weights_{key}", torch.where(used, network.backbone.get_buffer(name), 0.0))
            self.register_buffer(f"owners_{key}", owners.clone())

    @property
    def by_task(self) -> dict[TaskInfo, list[str]]:
        """Each task's facts, and the names of its outputs: TASK_logits, TASK_probabilities, TASK_values."""
        tasks = [cast(ExportedTask, task) for task in self.tasks]
        return {task.info: [f"{task.info.name}_{name}" for name in task.names] for task in tasks}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all outputs, in order."""
        return tuple(name for names in self.by_task.values() for name in names)

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Map inputs (batch, *shape) to the outputs (batch, numbers) of all tasks, in the order of `names`."""
        weights = {name: self.get_buffer(f"weights_{key}") for name, key in self.shared.items()}
        owners = {name: self.get_buffer(f"owners_{key}") for name, key in self.shared.items()}
        outputs: list[Tensor] = []
        for task in self.tasks:
            shared = (weights, owners) if isinstance(cast(ExportedTask, task).module, MaskedTask) else ()
            outputs += task(inputs, *shared)
        return tuple(outputs)


def _tensor_form(steps: Steps) -> str:
    """Name what the first step returns: arrays and images of a shape are alike whoever reads them, others are not."""
    first: Any = steps[0]
    if first.step in ("arrays", "images"):
        return json.dumps([first.step, first.shape, first.dtype])
    return json.dumps(steps_to_data([first]))


def example_of(steps: Steps) -> Tensor:
    """Return inputs as the second step takes them, zeros (2, *shape)."""
    first = cast(Reader, steps[0])
    return torch.zeros(2, *first.shape, dtype=getattr(torch, first.dtype))


def description(info: TaskInfo) -> dict[str, str]:
    """Describe a task for whoever uses the export: its metadata, as JSON texts."""
    first = {key: value for key, value in info.outputs.to_data().items() if key in ("kind", "names", "unit")}
    return {
        "task": json.dumps(info.name),
        "outputs": json.dumps(first),
        "inputs": json.dumps({"read_by": info.steps[0].step, "shape": list(example_of(info.steps).shape[1:])}),
    }


@usual_defaults()
def export_task(predictor: Predictor, task: str, out: Path, kind: Format, quantize: bool = False) -> dict[str, str]:
    """Write a task as an ONNX or PT2 file: inputs (batch, *shape) as the first step of preprocessing returns them.

    Args:
        predictor: holds the task.
        task: its name.
        out: file to write.
        kind: "onnx" or "pt2".
        quantize: ONNX: store weights as int8, which onnxruntime computes with.
    Returns:
        The file's metadata; see `description`.
    Raises:
        ValueError: the task cannot be exported, or a package is missing; the message says why.
    """
    module = exported(predictor, task)
    return _write(module, description(module.info), module.info.steps, out, kind, quantize)


@usual_defaults()
def export_all(predictor: Predictor, out: Path, kind: Format) -> dict[str, str]:
    """Write all tasks as one ONNX or PT2 file, with the outputs of each: TASK_logits, TASK_probabilities, TASK_values.

    Args:
        predictor, out, kind: as in `export_task`.
    Returns:
        The file's metadata: "inputs", and "tasks", a list of each task's name, outputs and names of outputs.
    Raises:
        ValueError: tasks read different inputs, one cannot be exported, or a package is missing.
    """
    module = ExportedTasks(predictor).eval()
    notes = {info: description(info) for info in module.by_task}
    tasks = [
        {"task": info.name, "outputs": json.loads(notes[info]["outputs"]), "names": names}
        for info, names in module.by_task.items()
    ]
    first = next(iter(notes))
    about = {"tasks": json.dumps(tasks), "inputs": notes[first]["inputs"]}
    return _write(module, about, first.steps, out, kind, quantize=False)


def _write(
    module: ExportedTask | ExportedTasks, notes: dict[str, str], steps: Steps, out: Path, kind: Format, quantize: bool
) -> dict[str, str]:
    batch = torch.export.Dim("batch", min=1)
    try:
        with torch.no_grad():
            program = torch.export.export(module, (example_of(steps),), dynamic_shapes=({0: batch},))
    except Exception as error:  # torch.export raises many types
        raise ValueError(f"torch.export cannot follow the network's forward pass: {_cause(error)}") from error
    if kind == "pt2":
        content = io.BytesIO()
        torch.export.save(program, content, extra_files={"msh.json": json.dumps(notes)})
        write_bytes(out, content.getvalue())
    else:
        write_bytes(out, _onnx(program, module.names, notes, quantize))
    return notes


def _onnx(program: torch.export.ExportedProgram, names: Sequence[str], notes: dict[str, str], quantize: bool) -> bytes:
    try:
        import onnx
        import onnxscript  # noqa: F401  # torch's exporter needs it

        if quantize:
            from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise ValueError(f"ONNX needs further packages ({error.name}): pip install 'msh[onnx]'") from error
    try:
        exported_program = torch.onnx.export(
            program, input_names=["inputs"], output_names=names, opset_version=OPSET, dynamo=True, verbose=False
        )
    except torch.onnx.OnnxExporterError as error:
        cure = "--format pt2 writes the network for torch"
        raise ValueError(f"ONNX has no form for an operation of the network: {_cause(error)}; {cure}") from error
    assert exported_program is not None
    model = exported_program.model_proto
    onnx.helper.set_model_props(model, notes)
    if not quantize:
        return bytes(model.SerializeToString())
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quantized.onnx"
        quantize_dynamic(model, path, weight_type=QuantType.QInt8)
        return path.read_bytes()


def _cause(error: BaseException) -> str:
    """Return the first line of the error at the start of a chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@usual_defaults()
def export_file(source: str | os.PathLike[str], task: str | None, out: Path) -> None:
    """Write a network file with one task and those whose weights it reads, or with all; `load` opens it.

    Args:
        source: run folder, file, or address on the hub.
        task: its name; None: all.
        out: file to write.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or has no such task.
    """
    file = read_state(source_file(source), "network", "subnetwork")
    tasks = file.state.tasks
    if task is not None and task not in tasks:
        raise invalid("task", f"one of {', '.join(tasks)}", task)
    kept = set(tasks) if task is None else {task, *tasks[task].reads}
    for other in reversed([name for name in tasks if name not in kept]):
        file.state.release(other)
    file.write(out)


# ---- tasks of whole units


def is_sliceable(network: MultiSubnetwork, task: str) -> bool:
    """Tell whether a task owns whole units of every layer and reads no other task's weights: `sliced` can copy it."""
    sub = network.subnetwork(task)
    if sub.granularity not in ("unit", "neuron", "channel") or sub.reads or type(sub.head) is not nn.Linear:
        return False
    return all(bool(mask.any()) for mask in network.masks(task).values())


@torch.no_grad()
def sliced(network: MultiSubnetwork, task: str, example: Tensor | None = None) -> TaskNetwork:
    """Copy a task that was allocated in whole units into a smaller dense network, in evaluation mode.

    Its outputs equal the task's in evaluation mode up to rounding. Units that were not kept still have a bias, so that
    the last layer has constant features: the head's bias absorbs them. Weights of two-dimensional convolutions have
    channels-last memory: pooling and narrow layers, which dominate here, are several times as fast.

    Args:
        network: holds the task; not changed.
        task: a compact or frozen one, with a linear head.
        example: (batch, *input shape) of the backbone; zeros of its `input_shape` when None.
    Raises:
        ValueError: the task has another phase or kind of head, or reads other tasks' weights; or the backbone's units
            are not known.
    """
    sub = network.subnetwork(task)
    if sub.phase not in ("compact", "frozen"):
        raise ValueError(f"task {task!r} is {sub.phase}: only a compact or frozen task is exported")
    if sub.reads:
        raise ValueError(f"task {task!r} reads other tasks' weights: it cannot be exported alone")
    if type(sub.head) is not nn.Linear:
        raise ValueError(f"task {task!r} has a head of type {type(sub.head).__name__}: only a Linear one is exported")
    graph = trace_units(network, example=example)
    small = SmallTensors(network, task, graph)
    memo: dict[int, object] = {}
    backbone = copy.deepcopy(network.backbone)
    for name, tensor in _sliced_tensors(network, task, graph, small).items():
        copied = tensor.detach().clone()
        where, _, leaf = name.rpartition(".")
        put_tensor(
            backbone.get_submodule(where), leaf, copied if name in network.names.buffers else nn.Parameter(copied)
        )
    small.shrink(backbone)
    for where, passed in graph.norms.items():  # those behind the last layer, too
        narrow(backbone.get_submodule(where), int(small.units[passed.layer].sum()) * passed.block)
    for name in graph.small:
        _resize(backbone.get_submodule(graph.layers[name].module))
    stem = copy.deepcopy(sub.stem, memo)
    as_parameters([(cast(nn.Module, memo[id(m)]), name) for m, name in sub.untrained if id(m) in memo])
    head, dtype = copy.deepcopy(sub.head), cast_type(weight for _, weight in network.weights())
    as_parameters([(head, name) for module, name in sub.untrained if module is sub.head])
    if graph.output is not None:
        constants = _constants(network, task, graph, example_inputs(network, example))
        features = columns(graph.output, small.units, len(constants), constants.device)
        head = _sliced_head(sub.head, features, constants)
    smaller = TaskNetwork(task, stem, backbone, head, frozen=False, cast=dtype).eval()
    return smaller.to(memory_format=torch.channels_last)


def _constants(network: MultiSubnetwork, task: str, graph: UnitGraph, example: Tensor) -> Tensor:
    """Compute the features of units that the task does not keep, from biases and normalisation alone: (features,)."""
    nothing = {name: weight.new_zeros(()).expand(weight.shape) for name, weight in network.weights()}
    tensors = {**nothing, **dict(network.subnetwork(task).private.items())}
    with evaluating(network.backbone):
        features: Tensor = functional_call(network.backbone, tensors, (example,))
    return features[0]


def _sliced_tensors(network: MultiSubnetwork, task: str, graph: UnitGraph, small: SmallTensors) -> dict[str, Tensor]:
    """Slice the task's weights, biases and normalisation to its units, under the backbone's names."""
    sub, masks = network.subnetwork(task), network.masks(task)
    tensors, rows = {}, {}
    for name, units in small.units.items():
        rows[graph.layers[name].module] = graph.layers[name].rows(units)
    for name, weight in network.weights():
        values = sub.values[name] if sub.phase == "compact" else weight[masks[name]]
        whole = torch.zeros_like(weight).masked_scatter(masks[name], values.to(weight))
        tensors[name] = small.weight(name, values) if name in small.shapes else whole
    for where, passed in graph.norms.items():
        rows[where] = columns(passed, small.units, 0, masks[passed.layer].device)
    for key, tensor in network.view(task).private(task).items():
        kind, _, name = key.partition(".")
        where = name.rpartition(".")[0]
        if kind != "private":
            continue
        tensors[name] = tensor[rows[where]] if where in rows and tensor.dim() else small.private(name, tensor)
    return tensors


def _resize(module: nn.Module) -> None:
    """Set a layer's size attributes from its tensors."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, CONVOLUTIONS):
        module.out_channels, module.in_channels = module.weight.shape[0], module.weight.shape[1] * module.groups


def _sliced_head(head: nn.Linear, features: Tensor, constants: Tensor) -> nn.Linear:
    """Slice the head to the marked features (features,); its bias absorbs the constants of the others."""
    smaller = nn.Linear(int(features.sum()), head.out_features, device=head.weight.device, dtype=head.weight.dtype)
    smaller.weight.copy_(head.weight[:, features])
    added = head.weight[:, ~features] @ constants[~features].to(head.weight)  # (outputs,)
    smaller.bias.copy_(added if head.bias is None else head.bias + added)
    return smaller
