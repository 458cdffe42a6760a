"""The masked form ignores values outside the mask, and trains as the compact form does."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import (
    PRUNABLE,
    dense_optimizers,
    learn,
    make_head,
    make_network,
    make_optimizer,
    quarter,
    seen_weights,
    train,
)
from msh.subnetworks import prune

REUSES = st.sampled_from(["none", "all", "learned"])


@pytest.mark.parametrize("optimizer", dense_optimizers(), ids=lambda cls: cls.__name__)
@settings(max_examples=5)
@given(reuse=REUSES, norm=st.sampled_from(["none", "batch"]), clip=st.booleans(), seed=st.integers(0, 1000))
def test_values_outside_the_mask_are_zeros_or_read_weights_after_any_optimizer_step(optimizer, reuse, norm, clip, seed):
    network = make_network(norm, seed)
    learn(network, "first", seed=seed)
    network.add_task("second", head=make_head(seed), reuse=reuse)
    network.begin("second")
    steps = make_optimizer(optimizer, network)
    train(network, steps, seed=seed, clip=clip)
    prune(network, "second", quarter(network))
    for _ in range(3):
        train(network, steps, steps=1, seed=seed, clip=clip)
        seen = seen_weights(network, "second")
        for name, weight in network.weights():
            outside, theirs = ~network.masks("second")[name], network.masks("first")[name]
            reading = network.reading("second")[name]
            assert torch.equal(reading, theirs & reading & (reuse != "none"))
            assert int((reading | ~outside).sum()) == quarter(network)[name] or reuse != "learned"
            assert torch.equal(reading, theirs) or reuse != "all"
            read = torch.where(reading, weight, torch.zeros(()))
            assert torch.equal(seen[name][outside], read[outside])
            assert seen[name][~outside].isfinite().all()


@settings(max_examples=15)
@given(st.sampled_from(["none", "batch", "layer", "group"]), REUSES, st.integers(0, 1000))
def test_both_forms_train_to_the_same_weights(norm, reuse, seed):
    ends = []
    for form in ("masked", "compact"):
        network = make_network(norm, seed)
        learn(network, "first", seed=seed)
        network.add_task("second", head=make_head(seed), reuse=reuse)
        network.begin("second")
        prune(network, "second", quarter(network))
        if form == "compact":
            network.compact("second")
        train(network, make_optimizer(torch.optim.SGD, network, momentum=0.0), steps=5, seed=seed)
        network.freeze("second")
        ends.append(network.state_dict())
    masked, compact = ends
    assert masked.keys() == compact.keys()
    for key in masked.keys() - {"_extra_state"}:
        torch.testing.assert_close(masked[key], compact[key], msg=lambda text, key=key: f"{key}: {text}")


@given(
    st.lists(st.tuples(st.sampled_from(["masked", "scored", "compact"]), REUSES), min_size=2, max_size=3),
    st.integers(0, 99),
)
def test_a_frozen_task_computes_only_with_owned_and_read_weights(lives, seed):
    network = make_network(seed=seed)
    for place, (form, reuse) in enumerate(lives):
        learn(network, f"task{place}", form=form, reuse=reuse, seed=seed)
    for place, (_, reuse) in enumerate(lives):
        seen = seen_weights(network, f"task{place}")
        earlier = [network.masks(f"task{other}") for other in range(place)]
        own, reading = network.masks(f"task{place}"), network.reading(f"task{place}")
        dense = dict(network.weights())
        for name in PRUNABLE:
            theirs = torch.stack([torch.zeros_like(own[name]), *(mask[name] for mask in earlier)]).any(0)
            if reuse == "learned":
                assert not (reading[name] & ~theirs).any()
                assert int((own[name] | reading[name]).sum()) == quarter(network)[name]
            else:
                assert torch.equal(reading[name], theirs & (reuse == "all"))
            visible = own[name] | reading[name]
            assert torch.equal(seen[name], torch.where(visible, dense[name], torch.zeros(())))
