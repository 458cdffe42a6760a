"""Test that steps and outputs survive a file, and prepare raw inputs bitwise as in training."""

import json
import math

import numpy as np
import pytest
import torch

from messages import says
from msh.tasks import RawData, Split, build_task
from msh.tasks.outputs import Outputs, outputs_from_data
from msh.tasks.preprocessing import prepare, steps_from_data, steps_to_data
from msh.tasks.steps import ReadArrays, ReadNamed, Tokenize
from msh.tasks.tokens import Texts
from msh.tasks.transforms import transformed


def through_json(data):
    return json.loads(json.dumps(data))


def images(channels=1):
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.rand(40, channels, 6, 6, generator=generator), torch.arange(40) % 4
    return RawData("classification", Split(inputs, targets), Split(inputs[:8], targets[:8]), 4)


@pytest.mark.parametrize("normalize", ["feature", "all", "minmax", "none"])
@pytest.mark.parametrize(
    "transforms",
    [
        [],
        [{"permute_pixels": 3}],
        [{"rotate": 30}, {"repeat_channels": 3}],
        [{"split_classes": [2, 0]}, {"rotate": 90}],
    ],
)
def test_a_task_prepares_raw_inputs_bitwise_as_in_training(transforms, normalize):
    data = images()
    raw = data.test.inputs
    if transforms and "split_classes" in transforms[0]:
        raw = raw[torch.isin(data.test.targets, torch.tensor([0, 2]))]
    task = build_task("a", transformed("a", data, transforms), normalize=normalize)
    steps = steps_from_data(through_json(steps_to_data(task.steps)))
    assert torch.equal(prepare(steps, raw.numpy()), task.splits["test"].inputs[:])


def test_texts_are_prepared_bitwise_as_in_training():
    texts = Texts([f"word{i % 7} and {i}" for i in range(40)], vocabulary=20, length=3)
    rows = Split(torch.arange(30), torch.arange(30) % 2), Split(torch.arange(30, 40), torch.arange(10) % 2)
    task = build_task("a", RawData("classification", *rows, 2, texts))
    steps = steps_from_data(through_json(steps_to_data(task.steps)))
    assert torch.equal(prepare(steps, texts.texts[30:]), task.splits["test"].inputs)
    with pytest.raises(ValueError, match=says("inputs", "texts", 7)):
        prepare(steps, ["word1", 7])
    with pytest.raises(ValueError, match=says("inputs", "texts", "\ud83d")):
        prepare(steps, ["word1", "\ud83d"])


def test_large_numbers_are_centred_before_they_lose_precision():
    inputs = 1.7e9 + torch.arange(50, dtype=torch.float64)[:, None]
    split = Split(inputs, torch.arange(50) % 2)
    task = build_task("a", RawData("classification", split, split, 2))
    prepared = task.splits["test"].inputs
    assert prepared.dtype == torch.float32
    assert len(prepared.unique()) == 50
    assert torch.equal(prepare(task.steps, inputs), prepared)


@pytest.mark.parametrize("value", [0.1, 0.3, 1.7, 123.456, 1e-3, 98765.43])
@pytest.mark.parametrize("normalize", ["feature", "minmax"])
def test_a_constant_feature_is_not_scaled_by_its_rounding_error(value, normalize):
    inputs = torch.stack([torch.full((150,), value), torch.randn(150)], 1)
    shifted = Split(inputs[:20] + torch.tensor([value * 1e-3, 0.0]), torch.arange(20) % 2)
    task = build_task(
        "a", RawData("classification", Split(inputs, torch.arange(150) % 2), shifted, 2), normalize=normalize
    )
    assert task.splits["train"].inputs[:, 0].abs().max() <= 1e-6 * max(1, value)
    assert task.splits["test"].inputs[:, 0].abs().max() <= 2e-3 * max(1, value)


@pytest.mark.parametrize(
    ("inputs", "value"),
    [(torch.zeros(3, 5), (3, 5)), ([[1.0, 2.0]], (1, 2)), ([["a", "b", "c", "d"]], "list"), (7, "int")],
)
def test_arrays_of_another_shape_or_without_numbers_are_refused(inputs, value):
    with pytest.raises(ValueError, match=r"\(examples, 4\)") as raised:
        ReadArrays((4,))(inputs)
    assert str(value) in str(raised.value)


MASKED = np.ma.masked_array([[1.0, 2.0, 3.0, 4.0]], [[False, True, False, False]])
UNFIT = {
    "nan": (np.array([[1, 2, np.nan, 4]]), "float32", says("inputs: each number", "finite", math.nan)),
    "infinite": (torch.tensor([[1, -math.inf, 3, 4]]), "float64", says("inputs: each number", "finite", -math.inf)),
    "none": ([[1.0, None, 3.0, 4.0]], "float32", r"inputs must be numbers of the shape \(examples, 4\)"),
    "too large": (np.array([[1, 2, 3, 1e300]]), "float32", says("inputs: each number", "finite in float32", 1e300)),
    "complex": (np.ones((1, 4), "complex64"), "float32", says("inputs: the type", "real numbers", "complex64")),
    "dates": (np.zeros((1, 4), "datetime64[s]"), "float32", r"inputs must be numbers of the shape \(examples, 4\)"),
    "no whole number": (np.array([[1, 2.5, 3, 4]]), "int64", says("inputs: each number", "a whole number", 2.5)),
    "no number for int64": (
        torch.tensor([[1, 2, 3, math.nan]]),
        "int64",
        says("inputs: each number", "a whole number"),
    ),
    "masked": (MASKED, "float32", r"inputs must be numbers of the shape \(examples, 4\)"),
    "masked in a list": ([MASKED[0]], "float32", r"inputs must be numbers of the shape \(examples, 4\)"),
}


@pytest.mark.parametrize("fault", UNFIT)
def test_numbers_that_training_refuses_are_refused(fault):
    inputs, dtype, problem = UNFIT[fault]
    with pytest.raises(ValueError, match=problem):
        ReadArrays((4,), dtype)(inputs)


@pytest.mark.parametrize("kind", ["bool", "uint8", "int32", "int64", "float16", "float32", "float64"])
def test_real_numbers_of_any_type_are_read(kind):
    given = np.array([[0, 1, 1, 0]], kind)
    for dtype in ("float32", "float64", "int64"):
        read = ReadArrays((4,), dtype)(given)
        assert (read.tolist(), str(read.dtype)) == ([[0, 1, 1, 0]], f"torch.{dtype}")
        assert torch.equal(ReadArrays((4,), dtype)(torch.from_numpy(given)), read)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"a": [1.0, math.nan]}, says("inputs.a: each number", "finite", math.nan)),
        ({"a": [math.inf, 1.0]}, says("inputs.a: each number", "finite", math.inf)),
        ({"a": [1.0, 1e300]}, says("inputs.a: each number", "finite in float32", 1e300)),
        ({"a": [1j, 0]}, r"inputs\.a must be numbers of the shape \(examples, 2\), got 'complex128"),
        ({"a": MASKED[0][:2]}, says("inputs.a", "without masked values", "MaskedArray")),
        ({"ids": [1.0, 2.5]}, says("inputs.ids: each number", "a whole number", 2.5)),
        ({"ids": [1.0, math.nan]}, says("inputs.ids", f"whole numbers below {2**24}", math.nan)),
        ({"flag": [math.nan]}, says("inputs.flag: each number", "finite", math.nan)),
    ],
)
def test_numbers_by_name_that_training_refuses_are_refused(values, problem):
    arrays = {"a": np.zeros((3, 2)), "ids": np.arange(6).reshape(3, 2), "flag": np.zeros((3, 1), bool)}
    step = ReadNamed.of(arrays)
    row = {name: array[0] for name, array in arrays.items()}
    assert step([row]).tolist() == [[0, 0, 0, 1, 0]]
    for inputs in ([row | values], step.examples(row | values) if "masked" not in problem else [row | values]):
        with pytest.raises(ValueError, match=problem):
            step(inputs)


@pytest.mark.parametrize(
    "data",
    [
        None,
        "scale",
        [{}],
        [{"step": "os.system"}],
        [{"step": "rotate", "degrees": "steep"}],
        [{"step": "rotate", "degrees": 3, "more": 1}],
        [{"step": "repeat_channels", "number": 0}],
        [{"step": "scale", "shift": {"dtype": "float32", "shape": [9], "data": "AAAA"}, "scale": 1}],
        [{"step": "scale", "shift": {"dtype": "object", "shape": [1], "data": "AAAAAAAAAAA="}, "scale": 1}],
        [{"step": "permute", "order": {"shape": [1]}}],
    ],
)
def test_damaged_steps_are_refused(data):
    with pytest.raises(ValueError, match="the preprocessing is invalid"):
        steps_from_data(data)


def test_a_tokenizer_of_a_file_is_read_when_used():
    with pytest.raises(ValueError, match="tokenizer"):
        Tokenize("{}")(["a"])


def test_outputs_of_a_regression_are_in_the_datas_unit_again():
    targets = 1e9 + torch.arange(40, dtype=torch.float64)[:, None]
    split = Split(torch.randn(40, 3), targets)
    for normalize in (None, "minmax"):
        task = build_task("a", RawData("regression", split, split, 1), normalize_target=normalize)
        outputs = outputs_from_data(through_json(task.data_recipe()["outputs"]))
        unit = task.splits["test"].targets
        perfect = (unit - task.target_mean) / task.target_std
        assert torch.allclose(outputs.values(perfect), targets, rtol=0, atol=1e-5)
        assert task.loss(perfect.float(), unit) < 1e-12


def test_outputs_name_classes_and_turn_logits_to_probabilities():
    outputs = Outputs("classification", 2, ("cat", "dog"))
    assert outputs_from_data(through_json(outputs.to_data())) == outputs
    assert outputs.values(torch.zeros(1, 2)).tolist() == [[0.5, 0.5]]
    assert (outputs.label(1), Outputs("classification", 2).label(1)) == ("dog", "1")


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"kind": "poetry", "number": 1},
        {"kind": "classification", "number": 3, "names": ["a"]},
        {"kind": "regression", "number": 2, "mean": {"dtype": "float32", "shape": [1], "data": "AAAAAA=="}},
    ],
)
def test_damaged_outputs_are_refused(data):
    with pytest.raises(ValueError, match="the outputs are invalid"):
        outputs_from_data(data)
