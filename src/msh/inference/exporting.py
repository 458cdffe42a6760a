"""Export a task for other programs: ONNX, torch.export, or a network file of its own."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn

from msh.errors import invalid
from msh.files.atomic import write_bytes
from msh.files.state_file import network_file, read_state
from msh.inference.export import is_sliceable, sliced
from msh.inference.predictor import Predictor, TaskInfo
from msh.tasks.steps import Reader, Steps

Format = Literal["onnx", "pt2", "safetensors"]
OPSET = 20
TENSOR_STEPS = ("permute", "repeat_channels", "scale")
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

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Map inputs (batch, *shape) to the outputs (batch, numbers), in the order of `names`."""
        for step in self.info.steps[1:]:
            inputs = step(inputs)
        outputs = self.module(inputs)
        values = self.info.outputs.values(outputs)
        return (values,) if self.info.kind == "regression" else (outputs, values)


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


def example_of(steps: Steps) -> Tensor:
    """Return inputs as the second step takes them, zeros (2, *shape)."""
    first = cast(Reader, steps[0])
    return torch.zeros(2, *first.shape, dtype=getattr(torch, first.dtype))


def description(module: ExportedTask) -> dict[str, str]:
    """Describe a task for whoever uses the export: its metadata, as JSON texts."""
    info = module.info
    first = {key: value for key, value in info.outputs.to_data().items() if key in ("kind", "names", "unit")}
    return {
        "task": json.dumps(info.name),
        "outputs": json.dumps(first),
        "inputs": json.dumps({"read_by": info.steps[0].step, "shape": list(example_of(info.steps).shape[1:])}),
    }


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
        ValueError: the task cannot be exported, or a package is missing.
    """
    module = exported(predictor, task)
    notes = description(module)
    example, batch = example_of(module.info.steps), torch.export.Dim("batch", min=1)
    with torch.no_grad():
        program = torch.export.export(module, (example,), dynamic_shapes=({0: batch},))
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
    exported_program = torch.onnx.export(
        program, input_names=["inputs"], output_names=names, opset_version=OPSET, dynamo=True, verbose=False
    )
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


def export_file(source: Path, task: str, out: Path) -> None:
    """Write a network file with one task and those whose weights it reads; `load` opens it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or has no such task.
    """
    file = read_state(network_file(source), "network", "subnetwork")
    tasks = file.state.tasks
    if task not in tasks:
        raise invalid("task", f"one of {', '.join(tasks)}", task)
    kept = {task, *tasks[task].reads}
    for other in reversed([name for name in tasks if name not in kept]):
        file.state.release(other)
    file.write(out)
