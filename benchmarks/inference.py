"""Rows 10, 17 and 18: inference with one subnetwork or all, and exports, against a dense network of the same shape."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from benchmarks.networks import BACKBONES, CLASSES, FC, SHAPES, dense, drawn, frozen
from benchmarks.records import Record
from benchmarks.timing import Settings
from msh.inference.computing import Computing
from msh.inference.export import export_task
from msh.inference.predictor import Predictor, TaskInfo
from msh.subnetworks import Budget, MultiSubnetwork, Units, plan_units, prune, trace_units
from msh.tasks.outputs import Outputs
from msh.tasks.steps import ReadArrays, Scale

TASKS = 10


def unstructured(settings: Settings) -> Iterator[Record]:
    """Measure row 10."""
    for density in settings.cases((0.1, 0.05, 0.02), (0.1, 0.05)):
        network = frozen(BACKBONES[FC](), density, device=settings.device)
        model = dense(BACKBONES[FC](), settings.device).eval()
        for batch in settings.cases((1, 32, 256), (1, 32)):
            inputs, _ = drawn(SHAPES[FC], batch, settings.device)
            rounds, burst = settings.rounds(60), 20 if batch < 256 else 5
            what = (
                f"forward of the active frozen task at {1 - density:.0%} sparsity / of a dense network of the same "
                f"shape, {FC}, batch {batch}"
            )
            id = f"10-density{density}-batch{batch}"
            with torch.no_grad():
                record = settings.against(id, what, partial(model, inputs), partial(network, inputs), rounds, burst)
            yield record


def all_tasks(settings: Settings) -> Iterator[Record]:
    """Measure row 17: `predict_all`, from raw inputs to predictions, of tasks that own a tenth of all units each."""
    predictor = _predictor(TASKS, 1 / TASKS, "unit", settings)
    model, shape = dense(BACKBONES[FC](), settings.device).eval(), SHAPES[FC]
    for batch in settings.cases((1, 32, 512), (1, 32)):
        inputs, _ = drawn(shape, batch, settings.device)
        rounds, burst = settings.rounds(60), 20 if batch < 512 else 4
        what = (
            f"predict_all, from inputs to predictions of {TASKS} tasks with {1 / TASKS:.0%} of the units each / a "
            f"forward of one dense network, {FC}, batch {batch}"
        )
        with torch.no_grad():
            all_at_once = partial(predictor.predict_all, inputs)
            yield settings.against(f"17-all-batch{batch}", what, partial(model, inputs), all_at_once, rounds, burst)


def exports(settings: Settings) -> Iterator[Record]:
    """Measure row 18: a task's ONNX file, its size and its speed in onnxruntime, beside the dense network's."""
    try:
        import onnxruntime
    except ImportError:
        what = "exports in onnxruntime; not measured: pip install 'msh[onnx]'"
        yield settings.record("18-exports", what, None, "ratio", None, 0)
        return
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.threads
    with tempfile.TemporaryDirectory() as folder:
        sessions, sizes = {}, {}
        for name, predictor in _exported(settings).items():
            path = Path(folder) / f"{name}.onnx"
            export_task(predictor, "0", path, "onnx")
            sizes[name] = path.stat().st_size
            sessions[name] = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    for name, who in {"weights": "10% of the weights", "units": "10% of the weights in whole units"}.items():
        what = f"bytes of the ONNX file of a task with {who} / of the dense network's, {FC}"
        ratio = sizes[name] / sizes["dense"]
        yield settings.record(f"18-{name}-size", what, ratio, "ratio (dense in bytes)", sizes["dense"], 1)
        for batch in (1, 32):
            inputs = {"inputs": drawn(SHAPES[FC], batch)[0].numpy()}
            run = {other: partial(sessions[other].run, None, inputs) for other in ("dense", name)}
            what = f"onnxruntime with the file of a task with {who} / of the dense network, {FC}, batch {batch}"
            yield settings.against(f"18-{name}-batch{batch}", what, run["dense"], run[name], settings.rounds(60), 20)


def _exported(settings: Settings) -> dict[str, Predictor]:
    """Make predictors with a task "0": of single weights, of whole units, and of all weights, a dense network's."""
    densities = {"weights": (0.1, "weight"), "units": (0.1, "unit"), "dense": (1.0, "weight")}
    cpu = replace(settings, device="cpu")
    return {name: _predictor(1, density, granularity, cpu) for name, (density, granularity) in densities.items()}


def _predictor(tasks: int, density: float, granularity: str, settings: Settings) -> Predictor:
    """Make a predictor with tasks "0", "1", ... that own so many weights, or units where there are several, each."""
    network = MultiSubnetwork(BACKBONES[FC]()).to(settings.device)
    units = Units(trace_units(network)) if granularity == "unit" else None
    counts = Budget(density=density).counts(network.sizes(), {})
    if units is not None and tasks == 1:
        counts = plan_units(units.graph, {"0": Budget(density=density)})["0"]
    elif units is not None:
        counts = {name: int(density * len(weight)) for name, weight in network.weights()}
    names = [str(number) for number in range(tasks)]
    for name in names:
        network.add_task(name, nn.Linear(network.backbone.features, CLASSES), granularity=granularity)
        network.begin(name)
        prune(network, name, counts, **({} if units is None else {"granularity": units}))
        network.freeze(name)
    outputs, shape = Outputs("classification", CLASSES), SHAPES[FC]
    steps = ReadArrays(shape), Scale(torch.zeros(shape), torch.ones(shape))
    facts = (outputs.kind, outputs.names, outputs.unit, steps, outputs, Computing(512))
    return Predictor(network.eval(), {name: TaskInfo(name, *facts) for name in names})
