"""Batches by index: their examples, order and ranks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from messages import says
from msh.tasks import Split
from msh.tasks.loaders import MEASURING_BATCH, ShuffledBatches, even_out, measuring_loader, train_loader
from msh.tasks.seeds import derive_seed


def make_split(examples):
    """Build examples whose input and target are their number."""
    return Split(torch.arange(examples)[:, None].float(), torch.arange(examples))


def batches(sampler, epoch=0):
    sampler.set_epoch(epoch)
    return [batch.tolist() for batch in sampler]


def flat(epoch):
    return [index for batch in epoch for index in batch]


# ---- training


@given(examples=st.integers(1, 60), batch=st.integers(1, 20), seed=st.integers(0, 5), epoch=st.integers(0, 5))
def test_an_epoch_has_full_batches_and_no_example_twice(examples, batch, seed, epoch):
    batch = min(batch, examples)
    indices = batches(ShuffledBatches(examples, batch, seed), epoch)
    assert [len(rows) for rows in indices] == [batch] * (examples // batch)
    assert len(set(flat(indices))) == len(flat(indices))
    assert set(flat(indices)) <= set(range(examples))


def test_an_epoch_whose_batches_divide_the_examples_has_every_example():
    assert sorted(flat(batches(ShuffledBatches(24, 6, seed=0)))) == list(range(24))


def test_examples_dropped_in_one_epoch_appear_in_others():
    sampler = ShuffledBatches(10, 4, seed=0)
    seen = {index for epoch in range(8) for index in flat(batches(sampler, epoch))}
    assert seen == set(range(10))


def test_the_order_depends_on_seed_and_epoch_only():
    torch.manual_seed(1)
    first = batches(ShuffledBatches(24, 6, seed=0), epoch=3)
    torch.manual_seed(2)
    sampler = ShuffledBatches(24, 6, seed=0)
    batches(sampler, epoch=1)
    assert batches(sampler, epoch=3) == first
    assert batches(sampler, epoch=4) != first
    assert batches(ShuffledBatches(24, 6, seed=1), epoch=3) != first


def test_drawing_an_order_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    batches(ShuffledBatches(24, 6, seed=0))
    assert torch.equal(torch.rand(3), expected)


@given(examples=st.integers(12, 60), share=st.integers(1, 4), ranks=st.integers(1, 3), epoch=st.integers(0, 3))
def test_ranks_share_the_batches_of_a_single_process(examples, share, ranks, epoch):
    size = share * ranks
    alone = batches(ShuffledBatches(examples, size, seed=7), epoch)
    shared = [batches(ShuffledBatches(examples, size, 7, rank, ranks), epoch) for rank in range(ranks)]
    assert all(len(rows) == share for part in shared for rows in part)
    assert [sorted(flat(parts)) for parts in zip(*shared, strict=True)] == [sorted(batch) for batch in alone]


@pytest.mark.parametrize(("size", "ranks"), [(5, 2), (1, 2), (32, 3)])
def test_a_batch_that_ranks_cannot_share_evenly_is_rejected(size, ranks):
    with pytest.raises(ValueError, match=says("batch_size", f"a multiple of {ranks}, the number of processes", size)):
        ShuffledBatches(100, size, seed=0, world_size=ranks)


def test_a_training_loader_gives_inputs_with_their_targets():
    loader = train_loader(make_split(20), batch_size=8, seed=0)
    examples = list(loader)
    assert len(loader) == len(examples) == 2
    for inputs, targets in examples:
        assert inputs.shape == (8, 1)
        assert torch.equal(inputs[:, 0].long(), targets)


# ---- several tasks at once


def evened(uneven, epoch=0):
    """Even out the epochs of tasks with 9 and 4 examples, in batches of 2."""
    loaders = [train_loader(make_split(examples), batch_size=2, seed=0) for examples in (9, 4)]
    even_out(loaders, uneven)
    assert [len(loader) for loader in loaders] == [len(list(loader)) for loader in loaders]
    return [batches(loader.sampler, epoch) for loader in loaders]


def test_with_cycle_the_shorter_task_restarts_in_a_new_order():
    long, short = evened("cycle")
    assert long == batches(ShuffledBatches(9, 2, seed=0))
    assert len(long) == len(short) == 4
    first, second = short[:2], short[2:]
    assert sorted(flat(first)) == sorted(flat(second)) == list(range(4))
    assert any(evened("cycle", epoch)[1][:2] != evened("cycle", epoch)[1][2:] for epoch in range(4))
    assert first == batches(ShuffledBatches(4, 2, seed=0))
    assert evened("cycle") == [long, short]


def test_with_shortest_every_task_has_as_many_batches_as_the_shortest():
    long, short = evened("shortest")
    assert long == batches(ShuffledBatches(9, 2, seed=0))[:2]
    assert short == batches(ShuffledBatches(4, 2, seed=0))
    assert {index for epoch in range(9) for index in flat(evened("shortest", epoch)[0])} == set(range(9))


# ---- evaluation


@given(examples=st.integers(1, 40), batch=st.integers(1, 12), ranks=st.integers(1, 4))
def test_evaluation_batches_hold_every_example_once_over_all_ranks(examples, batch, ranks):
    split = make_split(examples)
    parts = [targets for rank in range(ranks) for _, targets in measuring_loader(split, rank, ranks, batch_size=batch)]
    assert sorted(torch.cat(parts).tolist()) == list(range(examples))
    assert max(map(len, parts)) <= batch


def test_evaluation_batches_are_in_order_with_a_smaller_last_one():
    targets = [targets.tolist() for _, targets in measuring_loader(make_split(7), batch_size=3)]
    assert targets == [[0, 1, 2], [3, 4, 5], [6]]


def test_an_evaluation_loader_knows_its_length():
    loader = measuring_loader(make_split(2 * MEASURING_BATCH + 1))
    assert len(loader) == len(list(loader)) == 3


# ---- seeds


def test_a_seed_depends_on_every_part_and_its_type_and_place():
    parts = [(0,), (1,), ("0",), (0, 0), (0, "a"), ("a", 0), ("a", "b"), ("ab",), ("a", "b", ""), ()]
    seeds = [derive_seed(*part) for part in parts]
    assert len(set(seeds)) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_seed_is_the_same_in_every_process():
    assert derive_seed(0) == 3696793467068528757  # the first 8 bytes of the SHA-256 of "int:0", halved


def test_seeds_fit_torch_generators():
    assert torch.Generator().manual_seed(derive_seed(2**62, "x")).initial_seed() == derive_seed(2**62, "x")
