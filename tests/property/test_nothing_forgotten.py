"""A frozen task's outputs stay bitwise the same after any later training with any optimizer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import dense_optimizers, learn, live, make_batch, make_head, make_network

HOW = st.fixed_dictionaries({"autocast": st.booleans(), "clip": st.booleans()})
REUSES = st.sampled_from(["none", "all", "learned"])


def outputs(network, task):
    """Compute the task's outputs on fixed inputs, in full precision and under autocast."""
    inputs, _ = make_batch(seed=99, size=9)
    with torch.no_grad():
        exact = network(inputs, task)
        with torch.autocast("cpu", torch.bfloat16):
            return exact, network(inputs, task)


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("norm", ["batch", "layer", "group"])
@pytest.mark.parametrize("optimizer", dense_optimizers(), ids=lambda cls: cls.__name__)
@settings(max_examples=4)
@given(form=st.sampled_from(["dense", "masked", "scored", "compact"]), how=HOW, reuse=REUSES, seed=st.integers(0, 1000))
def test_no_later_task_changes_a_frozen_one(norm, optimizer, form, how, reuse, seed):
    network = make_network(norm, seed).train()
    learn(network, "first", seed=seed)
    first = outputs(network, "first")
    for _ in live(network, "second", optimizer, form, reuse, seed + 1, **how):
        assert same(outputs(network, "first"), first)
    assert not torch.equal(network.subnetwork("second").head.weight, make_head(seed + 1).weight)
    second = outputs(network, "second")
    assert second[0].isfinite().all()
    learn(network, "third", optimizer, "masked", "all", seed + 2)
    assert same(outputs(network, "first"), first)
    assert same(outputs(network, "second"), second)
    assert network.training


@pytest.mark.parametrize("norm", ["none", "batch", "layer", "group"])
@settings(max_examples=15)
@given(reuse=REUSES, seed=st.integers(0, 1000))
def test_freezing_changes_no_output_and_no_digest_changes_later(norm, reuse, seed):
    network = make_network(norm, seed)
    learn(network, "first", seed=seed)
    life = live(network, "second", torch.optim.AdamW, "compact", reuse, seed)
    while next(life) != "trained":
        pass
    network.eval()
    trained, digests = outputs(network, "second"), {task: network.digest(task) for task in ("first", "second")}
    next(life)
    network.train()
    assert same(outputs(network, "second"), trained)
    learn(network, "third", torch.optim.Adam, seed=seed)
    assert {task: network.digest(task) for task in digests} == digests


@given(norm=st.sampled_from(["none", "batch"]), seed=st.integers(0, 1000))
def test_tasks_trained_side_by_side_do_not_change_each_other(norm, seed):
    network = make_network(norm, seed)
    learn(network, "old", seed=seed)
    lives = [live(network, task, torch.optim.SGD, "compact", "none", seed + n) for n, task in enumerate(("a", "b"))]
    for _ in range(3):
        next(lives[0])
    other = outputs(network.eval(), "a")
    network.train()
    for done in lives[1]:
        if done == "frozen":
            break
    assert same(outputs(network.eval(), "a"), other)
