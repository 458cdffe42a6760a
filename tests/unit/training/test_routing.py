"""Test which tasks can have a router, and that one's examples are prepared for another as raw inputs would be."""

import pytest
import torch

from msh.tasks import RawData, Split, build_task
from msh.tasks.preprocessing import prepare
from msh.tasks.tokens import Texts
from msh.tasks.transforms import transformed
from msh.training.routing import _can_be_told_apart, inputs_for, spread

ROWS = torch.arange(8)


def images(seed, name="a", normalize=None, transforms=()):
    inputs = torch.rand(40, 1, 6, 6, generator=torch.Generator().manual_seed(seed)) * 7
    split = Split(inputs, torch.arange(40) % 2)
    data = transformed(name, RawData("classification", split, split, 2), transforms)
    return inputs, build_task(name, data, normalize=normalize)


@pytest.mark.parametrize("normalize", ["feature", "channel", "minmax", "robust", "quantile", "none"])
@pytest.mark.parametrize("transforms", [(), ({"permute_pixels": 4},), ({"rotate": 30}, {"repeat_channels": 3})])
def test_examples_are_prepared_for_another_task_as_raw_inputs_are(normalize, transforms):
    raw, source = images(1, normalize=normalize, transforms=transforms)
    _, reader = images(2, transforms=({"permute_pixels": 9},))
    found = inputs_for(source, reader, "test", ROWS)
    expected = prepare(reader.steps, raw[:8])
    if normalize == "quantile" and not transforms:  # values beyond those of the training split were clipped
        assert torch.isclose(found, expected, rtol=1e-4, atol=1e-4).float().mean() > 0.95
    else:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(inputs_for(source, source, "test", ROWS), source.splits["test"].inputs[ROWS])


def texts(name, words):
    labels = Split(torch.arange(40), torch.arange(40) % 2)
    stem = {"_target_": "msh.tasks.stems.TokenStem", "width": 4, "pooling": "mean"}
    return build_task(name, RawData("classification", labels, labels, 2, Texts(words, 20, 5)), stem=stem)


def test_texts_are_prepared_by_the_other_tasks_tokenizer():
    words = [f"one{i % 5} two{i % 3}" for i in range(40)]
    source, reader = texts("a", words), texts("b", [f"two{i % 9}" for i in range(40)])
    assert torch.equal(inputs_for(source, reader, "test", ROWS), prepare(reader.steps, words[:8]))


def test_tasks_with_the_same_raw_inputs_cannot_be_told_apart():
    (_, one), (_, same), (_, other) = images(1), images(1, "b", transforms=({"permute_pixels": 2},)), images(3, "c")
    assert not _can_be_told_apart([one, same])
    assert not _can_be_told_apart([one, other, same])
    assert _can_be_told_apart([one, other])


def test_rows_are_spread_evenly():
    assert spread(3, 5).tolist() == [0, 1, 2]
    assert spread(10, 4).tolist() == [0, 3, 6, 9]
