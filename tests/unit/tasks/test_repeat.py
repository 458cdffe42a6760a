"""Small data sets: epochs with several passes through the examples."""

import torch

from msh.tasks.loaders import ShuffledBatches


def test_an_epoch_repeats_every_example():
    seen = torch.cat(list(ShuffledBatches(12, 4, seed=3, repeat=3)))
    assert len(ShuffledBatches(12, 4, seed=3, repeat=3)) == 9
    assert seen.bincount(minlength=12).tolist() == [3] * 12
    assert seen[:12].tolist() != seen[12:24].tolist()


def test_the_first_pass_has_the_order_of_an_epoch_without_repeats():
    assert torch.equal(
        torch.cat(list(ShuffledBatches(12, 4, seed=3, repeat=2)))[:12], torch.cat(list(ShuffledBatches(12, 4, seed=3)))
    )
