"""The data sets that ship with scikit-learn."""

import pytest
import torch

from messages import says
from msh.tasks import build_task
from msh.tasks.bundled import DATA_SETS, bundled

SIZES = {
    "digits": (1797, (1, 8, 8), 10),
    "breast_cancer": (569, (30,), 2),
    "wine": (178, (13,), 3),
    "iris": (150, (4,), 3),
    "diabetes": (442, (10,), 1),
}


def rows(split):
    """Return each example as a tuple with its values, sorted."""
    return sorted(
        map(tuple, torch.cat([split.inputs.flatten(1), split.targets.float().view(len(split), -1)], 1).tolist())
    )


@pytest.fixture(scope="module", params=sorted(DATA_SETS))
def data(request):
    return request.param, bundled(request.param)


def test_sizes_shapes_and_outputs_match_the_data_set(data):
    name, raw = data
    examples, shape, outputs = SIZES[name]
    assert (raw.kind, raw.outputs) == (DATA_SETS[name], outputs)
    assert len(raw.train) + len(raw.test) == examples
    assert len(raw.test) == pytest.approx(0.3 * examples, abs=1)
    for split in (raw.train, raw.test):
        assert split.inputs.shape[1:] == shape
        assert split.inputs.dtype == torch.float32
        assert split.targets.dtype == (torch.int64 if raw.kind == "classification" else torch.float32)


def test_no_example_is_in_two_splits(data):
    name, raw = data
    task = build_task(name, raw, normalize="none")
    parts = [rows(task.splits[part]) for part in ("train", "val", "test")]
    from sklearn import datasets

    loaded = getattr(datasets, f"load_{name}")()
    whole = torch.cat([torch.tensor(loaded.data), torch.tensor(loaded.target).view(-1, 1)], 1).float()
    assert sorted(row for part in parts for row in part) == sorted(map(tuple, whole.tolist()))


def test_the_splits_are_the_same_for_every_seed(data):
    name, raw = data
    torch.manual_seed(5)
    again = bundled(name)
    assert torch.equal(again.test.inputs, raw.test.inputs)
    assert torch.equal(again.train.targets, raw.train.targets)


def test_every_class_is_in_both_splits_in_proportion(data):
    _, raw = data
    if raw.kind == "classification":
        shares = [split.targets.bincount(minlength=raw.outputs) / len(split) for split in (raw.train, raw.test)]
        torch.testing.assert_close(shares[0], shares[1], atol=0.02, rtol=0)
        assert (shares[0] > 0).all()
    else:
        assert raw.train.targets.std() > 0


def test_the_test_splits_share_can_be_set():
    assert len(bundled("wine", test_fraction=0.5).test) == 89


def test_an_unknown_name_is_rejected_with_the_nearest():
    with pytest.raises(ValueError, match=says("source.name", value="digit", meant="digits")):
        bundled("digit")


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.3])
def test_a_share_outside_zero_and_one_is_rejected(fraction):
    with pytest.raises(ValueError, match=says("source.test_fraction", "in (0, 1)", fraction)):
        bundled("wine", test_fraction=fraction)


def test_an_unknown_name_and_a_bad_share_are_reported_together():
    with pytest.raises(ValueError, match=says("source.name", value="digit")) as caught:
        bundled("digit", test_fraction=2.0)
    caught.match(says("source.test_fraction", "in (0, 1)", 2.0))
