"""Data are compared with those that a network learned, to within rounding."""

import base64
import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toys import make_task

from msh.tasks.steps import tensor_from_data
from msh.training.same_data import check_same_data, data_record


def as_data(tensor):
    """As files hold a tensor."""
    content = base64.b64encode(tensor.numpy().tobytes()).decode()
    return {"dtype": str(tensor.numpy().dtype), "shape": [*tensor.shape], "data": content}


def recipe_of(task):
    return copy.deepcopy(task.data_recipe())


def compared(task, recipe):
    check_same_data(Path("network.safetensors"), {task.name: task}, {task.name: recipe}, "do this")


@pytest.fixture(params=["classification", "regression"])
def task(request):
    return make_task(kind=request.param, normalize="feature")


def changed(data, by):
    """Change all tensors, and numbers that are no whole ones, by a share of themselves."""
    if isinstance(data, dict) and "data" in data:
        return as_data(tensor_from_data(data) * (1 + by))
    if isinstance(data, dict):
        return {key: changed(value, by) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [changed(value, by) for value in data]
    return data * (1 + by) if isinstance(data, float) else data


def test_the_same_data_pass_on_any_processor_and_in_files_of_earlier_releases(task):
    compared(task, recipe_of(task))
    compared(task, changed(recipe_of(task), 1e-6))
    older = recipe_of(task)
    for step in older["preprocessing"]:
        step.pop("dtype", None)  # as if the setting had been added since
    compared(task, older)
    compared(task, {"head": {}})  # without preprocessing


def test_other_statistics_are_named_with_file_task_and_cure(task):
    with pytest.raises(ValueError, match=r"^network.safetensors: task 'a' was trained on other data .*; do this$"):
        compared(task, changed(recipe_of(task), 0.01))


OTHERS = {
    "more numbers": (
        lambda recipe: recipe["preprocessing"][0].update(shape=[5]),
        r"preprocessing\[0\].shape\[0\] was 5, and is 4",
    ),
    "more steps": (
        lambda recipe: recipe["preprocessing"].extend([{"step": "resize"}] * 9),
        r"preprocessing was a list of 11, and is a list of 2",
    ),
    "another shape": (
        lambda recipe: recipe["preprocessing"][1].update(shift=as_data(torch.zeros(3))),
        r"preprocessing\[1\].shift had the shape \[3\], and has \[4\]",
    ),
    "another kind": (
        lambda recipe: recipe["outputs"].update(kind="multilabel"),
        r'outputs.kind was "multilabel", and is',
    ),
}


@pytest.mark.parametrize(("change", "message"), OTHERS.values(), ids=OTHERS)
def test_the_first_difference_is_named(change, message):
    task = make_task(normalize="feature")
    change(other := recipe_of(task))
    with pytest.raises(ValueError, match=message):
        compared(task, other)


def test_tasks_that_the_run_has_no_data_of_are_not_compared(task):
    check_same_data(Path("network.safetensors"), {}, {"b": changed(recipe_of(task), 1.0)}, "do this")


def test_records_name_a_split_with_other_examples(task):
    record = copy.deepcopy(data_record(task))
    compared(task, record)
    train = task.splits["train"]
    fewer = replace(task, splits={**task.splits, "train": train.take(torch.arange(len(train) - 1))})
    with pytest.raises(ValueError, match=r"splits.train.examples was (\d+), and is (\d+)"):
        compared(fewer, record)
    turned = replace(task, splits={**task.splits, "train": replace(train, targets=train.targets.flip(0))})
    with pytest.raises(ValueError, match=r"splits.train.targets_digest was "):
        compared(turned, record)
