"""Test exports of tasks against the network's own outputs."""

import json

import pytest
import torch

import msh
from frozen import frozen
from msh.files.state_file import save_network
from msh.inference.export import export_all, export_file, export_task
from msh.tasks import RawData, Split, build_task
from msh.tasks.steps import Resize
from msh.tasks.tokens import Texts
from msh.tasks.transforms import transformed

TRANSFORMER = {"_target_": "msh.backbones.transformer.Transformer", "vocabulary": 30, "width": 8, "heads": 2}
RESNET = {"_target_": "msh.backbones.resnet.ResNet18", "width": 4}
BACKBONES = {
    "mlp": ({"_target_": "msh.backbones.mlp.MLP", "width": 12, "depth": 3, "norm": True}, (1, 8, 8)),
    "conv": ({"_target_": "msh.backbones.conv.PaperConv"}, (1, 11, 11)),
    "resnet": (RESNET, (3, 12, 12)),
    "resnet on grey": (RESNET, (1, 12, 12)),
    "resnet on others' sizes": (RESNET, (3, 7, 14)),
    "transformer": (TRANSFORMER, (6,)),
}
CASES = [
    ("mlp", ()),
    ("conv", ({"permute_pixels": 3},)),
    ("resnet", ()),
    ("resnet on grey", ({"repeat_channels": 3},)),
    ("resnet on others' sizes", ()),
    ("transformer", ()),
]


def data_of(shape, kind="classification"):
    torch.manual_seed(1)
    inputs = torch.rand(40, *shape) * 7
    targets = torch.arange(40) % 3 if kind == "classification" else torch.randn(40, 1) * 50 + 1000
    return RawData(kind, Split(inputs, targets), Split(inputs[:8], targets[:8]), 3 if kind == "classification" else 1)


def build_for(backbone, transforms=(), kind="classification"):
    recipe, shape = BACKBONES[backbone]
    if backbone == "transformer":
        words = Texts([f"word{i % 20} word{i % 7}" for i in range(40)], vocabulary=30, length=6)
        rows = Split(torch.arange(40), torch.arange(40) % 2)
        return {**recipe, "input_shape": [6]}, build_task("a", RawData("classification", rows, rows, 2, words))
    data = transformed("a", data_of(shape, kind), transforms)
    if "sizes" in backbone:
        data = data.then(Resize((12, 12), "bicubic"))
    task = build_task("a", data)
    return {**recipe, "input_shape": list(task.input_shape)}, task


def loaded(tmp_path, recipe, task, granularity="weight"):
    save_network(tmp_path / "net", frozen(recipe, [task], granularity))
    return msh.load(tmp_path / "net")


def raw_inputs(predictor):
    """Inputs as the first step of the preprocessing returns them, of another batch size than the example's."""
    first = predictor.task().steps[0]
    torch.manual_seed(5)
    if first.step == "tokenize":
        return torch.randint(0, 30, (5, 6))
    return torch.rand(5, *first.shape) * 7


@pytest.mark.parametrize(("backbone", "transforms"), CASES)
def test_a_pt2_file_computes_the_predictors_answers(tmp_path, backbone, transforms):
    predictor = loaded(tmp_path, *build_for(backbone, transforms))
    export_task(predictor, "a", tmp_path / "a.pt2", "pt2")
    notes = {"msh.json": ""}
    program = torch.export.load(tmp_path / "a.pt2", extra_files=notes).module()
    inputs = raw_inputs(predictor)
    logits, probabilities = program(inputs)
    assert torch.allclose(logits, expected_logits(predictor, inputs), rtol=1e-5, atol=1e-6)
    assert torch.allclose(probabilities, logits.softmax(1))
    assert json.loads(json.loads(notes["msh.json"])["task"]) == "a"


def expected_logits(predictor, inputs):
    for step in predictor.task().steps[1:]:
        inputs = step(inputs)
    return predictor.module()(inputs)


@pytest.mark.parametrize(("backbone", "transforms"), CASES)
def test_an_onnx_file_computes_the_predictors_answers(tmp_path, backbone, transforms):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    predictor = loaded(tmp_path, *build_for(backbone, transforms))
    export_task(predictor, "a", tmp_path / "a.onnx", "onnx")
    session = runtime.InferenceSession(tmp_path / "a.onnx")
    assert [output.name for output in session.get_outputs()] == ["logits", "probabilities"]
    inputs = raw_inputs(predictor)
    logits, _ = session.run(None, {"inputs": inputs.numpy()})
    expected = expected_logits(predictor, inputs)
    assert torch.allclose(torch.from_numpy(logits), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert json.loads(session.get_modelmeta().custom_metadata_map["outputs"])["kind"] == "classification"


class Branching(torch.nn.Module):
    """Its forward pass branches on a value."""

    def __init__(self):
        super().__init__()
        self.input_shape, self.features, self.layer = (64,), 4, torch.nn.Linear(64, 4)

    def forward(self, inputs):
        return self.layer(inputs) if float(inputs.sum()) > 0 else -self.layer(inputs)


class Ranking(Branching):
    """It has an operation that ONNX lacks."""

    def forward(self, inputs):
        return torch.linalg.svdvals(self.layer(inputs)[:, None])[:, :1].expand(-1, 4)


def load_own(tmp_path, make):
    target = f"{__name__}.{make.__name__}"
    save_network(tmp_path / "net", frozen({"_target_": target}, [build_task("a", data_of((64,)))]))
    return msh.load(tmp_path / "net", classes={target: make})


def test_a_network_whose_code_branches_on_values_cannot_be_exported_and_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"torch.export cannot follow the network's forward pass: .*data-dependent"):
        export_task(load_own(tmp_path, Branching), "a", tmp_path / "a.pt2", "pt2")
    assert not (tmp_path / "a.pt2").exists()


@pytest.mark.filterwarnings("ignore")  # of torch.onnx
def test_an_operation_that_onnx_lacks_is_named(tmp_path):
    pytest.importorskip("onnxscript")
    predictor = load_own(tmp_path, Ranking)
    export_task(predictor, "a", tmp_path / "a.pt2", "pt2")
    with pytest.raises(ValueError, match=r"ONNX has no form for an operation of the network: .*svd.*--format pt2"):
        export_task(predictor, "a", tmp_path / "a.onnx", "onnx")


def test_a_regression_is_exported_in_the_targets_unit(tmp_path):
    predictor = loaded(tmp_path, *build_for("mlp", kind="regression"))
    export_task(predictor, "a", tmp_path / "a.pt2", "pt2")
    inputs = raw_inputs(predictor)
    (values,) = torch.export.load(tmp_path / "a.pt2").module()(inputs)
    assert torch.allclose(values, predictor.predict(inputs).values, rtol=1e-5)
    assert abs(float(values.mean()) - 1000) < 500


@pytest.mark.parametrize("backbone", ["mlp", "conv"])
def test_whole_units_are_exported_as_a_small_dense_network(tmp_path, backbone):
    predictor = loaded(tmp_path, *build_for(backbone), granularity="unit")
    export_task(predictor, "a", tmp_path / "small.pt2", "pt2")
    whole = loaded(tmp_path, *build_for(backbone))
    export_task(whole, "a", tmp_path / "whole.pt2", "pt2")
    sizes = {name: count(tmp_path / f"{name}.pt2") for name in ("small", "whole")}
    assert sizes["small"] < 0.6 * sizes["whole"]
    inputs = raw_inputs(predictor)
    logits, _ = torch.export.load(tmp_path / "small.pt2").module()(inputs)
    assert torch.allclose(logits, expected_logits(predictor, inputs), rtol=1e-4, atol=1e-5)


def count(path):
    return sum(tensor.numel() for tensor in torch.export.load(path).state_dict.values())


def test_int8_weights_make_a_smaller_onnx_file(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    recipe, task = build_for("mlp")
    predictor = loaded(tmp_path, {**recipe, "width": 128}, task)
    for name, quantize in (("full", False), ("small", True)):
        export_task(predictor, "a", tmp_path / name, "onnx", quantize)
    assert (tmp_path / "small").stat().st_size < 0.5 * (tmp_path / "full").stat().st_size


def test_a_step_that_no_format_expresses_is_refused(tmp_path):
    predictor = loaded(tmp_path, *build_for("conv", [{"rotate": 30}]))
    with pytest.raises(ValueError, match="task 'a' cannot be exported: its step 'rotate' needs msh predict"):
        export_task(predictor, "a", tmp_path / "a.pt2", "pt2")


def test_a_file_of_one_task_holds_it_alone(tmp_path):
    recipe, shape = BACKBONES["mlp"]
    tasks = [build_task(name, data_of(shape)) for name in "abc"]
    save_network(tmp_path / "all", frozen({**recipe, "input_shape": list(shape)}, tasks))
    export_file(tmp_path / "all", "b", tmp_path / "b")
    alone, network = msh.load(tmp_path / "b"), msh.load(tmp_path / "all")
    assert list(alone.tasks) == ["b"]
    inputs = raw_inputs(alone)
    assert torch.equal(alone.predict(inputs).raw, network.predict("b", inputs).raw)
    with pytest.raises(ValueError, match="task must be one of a, b, c, got 'd'"):
        export_file(tmp_path / "all", "d", tmp_path / "d")


# ---- all tasks in one file


def many(tmp_path, backbone, granularity="weight", density=0.2, number=3):
    """A predictor with tasks "a", "a_b", ...: same inputs, of which each scales its own examples."""
    recipe, shape = BACKBONES[backbone]
    kinds = ["classification", "classification", "regression"]
    tasks = [
        build_task(
            "a" + "_b" * place, data_of(shape, kind).map_splits(lambda s, p=place: Split(s.inputs + p, s.targets))
        )
        for place, kind in enumerate(kinds[:number])
    ]
    recipe = {**recipe, "input_shape": list(tasks[0].input_shape)}
    save_network(tmp_path / "net", frozen(recipe, tasks, granularity, density))
    return msh.load(tmp_path / "net")


def found_in(path, kind, inputs):
    """The outputs of an exported file, by name, and its description."""
    if kind == "pt2":
        notes = {"msh.json": ""}
        outputs = torch.export.load(path, extra_files=notes).module()(inputs)
        about = json.loads(notes["msh.json"])
        names = [name for task in json.loads(about["tasks"]) for name in task["names"]]
    else:
        runtime = pytest.importorskip("onnxruntime")
        session = runtime.InferenceSession(path)
        outputs = map(torch.from_numpy, session.run(None, {"inputs": inputs.numpy()}))
        about = session.get_modelmeta().custom_metadata_map
        names = [output.name for output in session.get_outputs()]
    return dict(zip(names, outputs, strict=True)), about


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
@pytest.mark.parametrize(
    ("backbone", "granularity", "density"),
    [("mlp", "weight", 0.2), ("conv", "weight", 0.2), ("resnet", "weight", 0.2), ("mlp", "unit", 0.1)],
)
def test_one_file_computes_all_tasks(tmp_path, backbone, granularity, density, kind):
    if kind == "onnx":
        pytest.importorskip("onnxscript")
    predictor = many(tmp_path, backbone, granularity, density)
    notes = export_all(predictor, tmp_path / "all", kind)
    inputs = torch.rand(5, *predictor.tasks["a"].steps[0].shape) * 7
    found, about = found_in(tmp_path / "all", kind, inputs)
    assert list(found) == ["a_logits", "a_probabilities", "a_b_logits", "a_b_probabilities", "a_b_b_values"]
    for name in ("a", "a_b"):
        expected = predictor.predict(name, inputs)
        scale = 1e-5 * float(expected.raw.abs().max())
        torch.testing.assert_close(found[f"{name}_logits"].detach(), expected.raw, rtol=1e-5, atol=scale)
        torch.testing.assert_close(
            found[f"{name}_probabilities"].detach(), expected.probabilities, rtol=1e-4, atol=1e-5
        )
    values = predictor.predict("a_b_b", inputs).values
    torch.testing.assert_close(found["a_b_b_values"].detach(), values, rtol=1e-5, atol=1e-2)
    assert json.loads(about["tasks"]) == json.loads(notes["tasks"])
    assert [task["names"] for task in json.loads(notes["tasks"])][2] == ["a_b_b_values"]


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_shared_weights_are_stored_once(tmp_path, kind):
    if kind == "onnx":
        pytest.importorskip("onnxscript")
    BACKBONES["wide"] = ({"_target_": "msh.backbones.mlp.MLP", "width": 700, "depth": 3}, (64,))
    sizes = {}
    for number in (1, 3):
        predictor = many(tmp_path, "wide", number=number)
        export_all(predictor, tmp_path / "all", kind)
        sizes[number] = (tmp_path / "all").stat().st_size
    weights = sum(weight.numel() for _, weight in predictor.network.weights())
    assert 4 * weights < sizes[1] < sizes[3] < sizes[1] * 1.1


def test_a_task_that_reads_others_computes_with_their_weights(tmp_path):
    predictor = many(tmp_path, "mlp")
    network, kept = predictor.network, {}
    for name, weight in network.weights():
        kept[name] = weight.clone()
    network.subnetwork("a_b").reads = ("a",)
    network.forget_modules()
    export_all(predictor, tmp_path / "all", "pt2")
    inputs = torch.rand(5, 1, 8, 8)
    found, _ = found_in(tmp_path / "all", "pt2", inputs)
    expected = predictor.predict("a_b", inputs).raw
    torch.testing.assert_close(
        found["a_b_logits"].detach(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max())
    )


def test_tasks_with_other_inputs_are_exported_apart(tmp_path):
    recipe, task = build_for("mlp")
    other = build_task("other", data_of((5,)))
    save_network(tmp_path / "net", frozen(recipe, [task, other]))
    with pytest.raises(ValueError, match="tasks 'a' and 'other' read different inputs, and a file has one input"):
        export_all(msh.load(tmp_path / "net"), tmp_path / "all", "pt2")
    export_file(tmp_path / "net", None, tmp_path / "all.safetensors")
    again = msh.load(tmp_path / "all.safetensors")
    inputs = torch.rand(3, 5)
    assert list(again.tasks) == ["a", "other"]
    assert torch.equal(again.predict("other", inputs).raw, msh.load(tmp_path / "net").predict("other", inputs).raw)
