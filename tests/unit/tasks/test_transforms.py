"""Transforms: classes, permutations, rotations, channels."""

import pickle
from dataclasses import replace

import pytest
import torch
import yaml

from messages import says
from msh.tasks import RawData, Split, build_task
from msh.tasks.lazy import LazyInputs
from msh.tasks.loaders import measuring_loader
from msh.tasks.tokens import Texts
from msh.tasks.transforms import transformed


def make_data(shape=(1, 4, 4), classes=5, kind="classification"):
    generator = torch.Generator().manual_seed(0)

    def split(count):
        inputs = torch.rand(count, *shape, generator=generator)
        targets = torch.arange(count) % classes
        return Split(inputs, targets if kind == "classification" else targets[:, None].float())

    return RawData(kind, split(50), split(20), classes if kind == "classification" else 1)


def apply(data, *transforms):
    return transformed("a", data, transforms)


# ---- classes

SPLIT = "tasks.a.transforms.split_classes"


def test_selected_classes_are_numbered_from_0_in_their_order():
    data = make_data()
    kept = apply(data, {"split_classes": [3, 1]})
    assert kept.outputs == 2
    for whole, part in ((data.train, kept.train), (data.test, kept.test)):
        for new, old in ((0, 3), (1, 1)):
            assert torch.equal(part.inputs[part.targets == new], whole.inputs[whole.targets == old])
        assert set(part.targets.tolist()) == {0, 1}


def test_texts_can_be_split_by_class():
    texts = Texts([f"word{i}" for i in range(70)], vocabulary=100, length=1)
    train, test = Split(torch.arange(50), torch.arange(50) % 5), Split(torch.arange(50, 70), torch.arange(20) % 5)
    kept = apply(RawData("classification", train, test, 5, texts), {"split_classes": [2, 4]})
    assert [kept.texts.texts[row] for row in kept.test.inputs.tolist()][:2] == ["word52", "word54"]
    assert build_task("a", kept).splits["train"].inputs.unique().numel() == 16


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ([1, 7], says(f"{SPLIT}[1]", "a class of the train split (0, 1, 2, 3, 4)", 7)),
        ([2], says(SPLIT, "a list of at least two classes, by number", [2])),
        ([], says(SPLIT, value=[])),
        ([2, 2], says(SPLIT, "a list of different classes", [2, 2])),
        (3, says(SPLIT, value=3)),
        (None, says(SPLIT, value=None)),
        (["0", "1"], says(f"{SPLIT}[0]", value="0")),
        ([[0], [1]], says(f"{SPLIT}[0]", value=[0])),
        ([0, 1.0], says(f"{SPLIT}[1]", value=1.0)),
    ],
)
def test_a_missing_repeated_or_single_class_is_rejected(keep, message):
    with pytest.raises(ValueError, match=message):
        apply(make_data(), {"split_classes": keep})


def named(*classes):
    return replace(make_data(), classes=classes)


def test_classes_can_be_selected_by_name():
    data = named("cat", "dog", "fox", "3", "owl")
    by_number = apply(data, {"split_classes": [4, 3, 1]})
    by_name = apply(data, {"split_classes": ["owl", 3, "dog"]})
    assert by_name.classes == by_number.classes == ("owl", "3", "dog")
    assert torch.equal(by_name.train.targets, by_number.train.targets)
    assert apply(by_name, {"split_classes": ["dog", "3"]}).classes == ("dog", "3")
    assert apply(data, {"split_classes": [3, "cat"]}).classes == apply(data, {"split_classes": ["3", "cat"]}).classes


@pytest.mark.parametrize(
    ("classes", "written", "expected"),
    [
        (("maybe", "no", "yes", "x", "z"), "[yes, no]", ("yes", "no")),
        (("off", "on", "x", "y", "z"), "[on, off]", ("on", "off")),
        (("false", "true", "x", "yy", "z"), "[true, false]", ("true", "false")),
        (("null", "none", "x", "yy", "z"), "[null, none]", ("null", "none")),
        (("1", "2", "3", "4", "5"), "[1, 2]", ("1", "2")),
        (("1", "2", "3", "4", "5"), "['1', '2']", ("1", "2")),
        (("10", "20", "30", "40", "x"), "[x, 10]", ("x", "10")),
        (("001", "002", "003", "004", "5"), "[001, 003]", ("001", "003")),
        (("0.5", "1.5", "2", "3", "4"), "[0.5, 2]", ("0.5", "2")),
        (("2020-01-01", "2021-01-01", "x", "yy", "z"), "[2021-01-01, x]", ("2021-01-01", "x")),
        (("0", "1", "2", "a", "b"), "[1, 3, 4]", ("1", "a", "b")),
    ],
)
def test_names_are_taken_as_written(classes, written, expected):
    data = apply(named(*classes), {"split_classes": yaml.safe_load(written)})
    assert data.classes == expected
    assert data.train.targets.bincount().tolist() == [10] * len(expected)


@pytest.mark.parametrize(
    ("classes", "keep", "message"),
    [
        (("yes", "on", "no", "x", "z"), [True, "no"], says(f"{SPLIT}[0]", "'yes' or 'on', in quotation marks", True)),
        (("1", "2", "3", "4", "5"), [0, 1], says(f"{SPLIT}[0]", "one of 1, 2, 3, 4, 5", 0)),
        (("1", "01", "3", "4", "5"), [1, 3], says(f"{SPLIT}[0]", "'1' or '01', in quotation marks", 1)),
        (("a", "b", "c", "d", "e"), [1.0, "b"], says(f"{SPLIT}[0]", value=1.0)),
    ],
)
def test_labels_that_could_be_several_classes_or_none_are_rejected(classes, keep, message):
    with pytest.raises(ValueError, match=message):
        apply(named(*classes), {"split_classes": keep})


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (["cat", "dgo"], says(f"{SPLIT}[1]", value="dgo", meant="dog")),
        (["cat", 0], says(SPLIT, "a list of different classes", ["cat", 0])),
        ("cat", says(SPLIT, "a list of at least two classes, by number or name", "cat")),
        ([True, "cat"], says(f"{SPLIT}[0]", value=True)),
    ],
)
def test_a_missing_or_repeated_name_is_rejected(keep, message):
    with pytest.raises(ValueError, match=message):
        apply(named("cat", "dog", "fox", "bee", "owl"), {"split_classes": keep})


def test_a_class_without_test_examples_is_rejected():
    data = make_data()
    few = RawData("classification", data.train, data.test.take(torch.arange(3)), 5)
    with pytest.raises(ValueError, match=says(f"{SPLIT}[1]", "a class of the test split (0, 1, 2)", 4)):
        apply(few, {"split_classes": [0, 4]})
    with pytest.raises(ValueError, match=says(f"{SPLIT}[1]", "a class of the test split (0, 1, 2)", "owl")):
        apply(replace(few, classes=("cat", "dog", "fox", "bee", "owl")), {"split_classes": ["cat", "owl"]})


def test_a_regression_has_no_classes():
    with pytest.raises(ValueError, match="split_classes needs a classification"):
        apply(make_data(kind="regression"), {"split_classes": [0, 1]})


# ---- permutations


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 4, 4), (9,)])
def test_a_seed_permutes_every_example_equally_and_another_seed_differently(shape):
    data = make_data(shape)
    permuted = {seed: apply(data, {"permute_pixels": seed}) for seed in (0, 1, 2)}
    assert torch.equal(permuted[0].train.inputs[:], data.train.inputs)
    assert not torch.equal(permuted[1].train.inputs[:], permuted[2].train.inputs[:])
    pixels = (50, 3, 16) if shape[0] == 3 else (50, 1, -1)
    before, after = data.train.inputs.view(pixels), permuted[1].train.inputs[:].view(pixels)
    order = [(before[0, 0] == value).nonzero().item() for value in after[0, 0]]
    assert order != sorted(order)
    assert torch.equal(after, before[..., order])
    tests = data.test.inputs.view(20, *before.shape[1:])
    assert torch.equal(permuted[1].test.inputs[:].view_as(tests), tests[..., order])


def test_a_permutation_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    apply(make_data(), {"permute_pixels": 3})
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("seed", [-1, 1.5, "one", True])
def test_a_bad_permutation_seed_is_rejected(seed):
    with pytest.raises(ValueError, match=says("tasks.a.transforms.permute_pixels", value=seed)):
        apply(make_data(), {"permute_pixels": seed})


def test_texts_have_no_pixels():
    rows = Split(torch.arange(4), torch.arange(4) % 2)
    data = RawData("classification", rows, rows, 2, Texts(["a"] * 4, 9, 9))
    with pytest.raises(ValueError, match=r"permute_pixels .*texts"):
        apply(data, {"permute_pixels": 1})


# ---- rotations


def test_rotation_is_counter_clockwise_and_360_degrees_change_nothing():
    data = make_data()
    rotated = apply(data, {"rotate": 90}).train.inputs[:]
    torch.testing.assert_close(rotated, data.train.inputs.rot90(1, (2, 3)), atol=1e-4, rtol=0)
    assert torch.equal(apply(data, {"rotate": 360}).test.inputs[:], data.test.inputs)


def test_corners_are_filled_with_0():
    turned = apply(make_data((1, 8, 8)), {"rotate": 45}).train.inputs[:]
    assert turned[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].abs().max() == 0
    assert turned[:, :, 3:5, 3:5].min() > 0


ROTATE = "tasks.a.transforms.rotate"


@pytest.mark.parametrize(
    ("shape", "angle", "messages"),
    [
        ((9,), 30, [says(f"{ROTATE}: the input shape", value=(9,))]),
        ((1, 4, 4), "half", [says(ROTATE, value="half")]),
        ((9,), True, [says(ROTATE, value=True), says(f"{ROTATE}: the input shape", value=(9,))]),
    ],
)
def test_inputs_that_cannot_be_rotated_are_rejected(shape, angle, messages):
    with pytest.raises(ValueError, match=messages[0]) as caught:
        apply(make_data(shape), {"rotate": angle})
    assert str(caught.value).count(" must be ") == len(messages)
    caught.match(messages[-1])


# ---- channels


def test_a_grey_image_gets_equal_channels():
    data = make_data()
    wide = apply(data, {"repeat_channels": 3})
    assert wide.train.inputs.shape == (50, 3, 4, 4)
    for channel in range(3):
        assert torch.equal(wide.test.inputs[:][:, channel], data.test.inputs[:, 0])
    assert torch.equal(apply(data, {"repeat_channels": 1}).test.inputs[:], data.test.inputs)
    assert build_task("a", wide, normalize="feature").input_shape == (3, 4, 4)


@pytest.mark.parametrize("number", [0, -1, 1.5, True, "three", None])
def test_a_bad_number_of_channels_is_rejected(number):
    with pytest.raises(ValueError, match=says("tasks.a.transforms.repeat_channels", value=number)):
        apply(make_data(), {"repeat_channels": number})


@pytest.mark.parametrize("shape", [(3, 4, 4), (9,)])
def test_only_grey_images_can_get_channels(shape):
    with pytest.raises(ValueError, match=says("tasks.a.transforms.repeat_channels: the input shape", value=shape)):
        apply(make_data(shape), {"repeat_channels": 3})


# ---- together


def test_transforms_are_applied_in_order():
    data = make_data()
    both = apply(data, {"rotate": 90}, {"permute_pixels": 4}).train.inputs[:]
    other = apply(data, {"permute_pixels": 4}, {"rotate": 90}).train.inputs[:]
    turned = RawData(
        "classification", Split(apply(data, {"rotate": 90}).train.inputs[:], data.train.targets), data.test, 5
    )
    assert torch.equal(both, apply(turned, {"permute_pixels": 4}).train.inputs[:])
    assert not torch.equal(both, other)


@pytest.mark.parametrize("bad", [{"rotat": 3}, {"rotate": 3, "permute_pixels": 1}, {}, "rotate"])
def test_an_unknown_transform_is_rejected(bad):
    with pytest.raises(ValueError, match="did you mean 'rotate'|" + says("an entry of tasks.a.transforms", value=bad)):
        apply(make_data(), bad)


@pytest.mark.parametrize("normalize", ["feature", "all", "minmax", "none"])
def test_lazy_inputs_equal_inputs_computed_at_once(normalize):
    data = apply(make_data((1, 4, 4)), {"permute_pixels": 2}, {"rotate": 30})
    at_once = RawData(
        data.kind, *(Split(split.inputs[:], split.targets) for split in (data.train, data.test)), data.outputs
    )
    lazy, eager = (build_task("a", d, normalize=normalize) for d in (data, at_once))
    assert lazy.input_shape == eager.input_shape
    for name, split in eager.splits.items():
        assert len(lazy.splits[name]) == len(split)
        assert torch.equal(lazy.splits[name].inputs[:3], split.inputs[:3])
        batches = [inputs for inputs, _ in measuring_loader(lazy.splits[name], batch_size=7)]
        assert torch.equal(torch.cat(batches), split.inputs)


def test_missing_values_are_found_despite_a_transform():
    data = make_data()
    data.test.inputs[3, 0, 0, :2] = float("nan")
    with pytest.raises(ValueError, match="task 'a', test split: 2 inputs are NaN or infinite"):
        build_task("a", apply(data, {"permute_pixels": 1}))


def test_tasks_that_differ_in_their_transform_share_one_tensor():
    data = make_data()
    tasks = [build_task(str(seed), apply(data, {"permute_pixels": seed})) for seed in range(3)]
    for task in tasks:
        for name, base in (("train", data.train), ("val", data.train), ("test", data.test)):
            inputs = task.splits[name].inputs
            assert isinstance(inputs, LazyInputs)
            assert inputs.base is base.inputs


def test_lazy_inputs_survive_pickling():
    inputs = build_task("a", apply(make_data(), {"permute_pixels": 2}, {"rotate": 9})).splits["val"].inputs
    assert torch.equal(pickle.loads(pickle.dumps(inputs))[:], inputs[:])
