"""Small data sets: an epoch that goes through the examples several times."""

import torch

from msh.tasks.loaders import ShuffledBatches


def test_an_epoch_goes_through_every_example_as_often_as_it_repeats():
    seen = torch.cat(list(ShuffledBatches(12, 4, seed=3, repeat=3)))
    assert len(ShuffledBatches(12, 4, seed=3, repeat=3)) == 9
    assert seen.bincount(minlength=12).tolist() == [3] * 12
    assert seen[:12].tolist() != seen[12:24].tolist()


def test_the_first_pass_is_the_order_of_an_epoch_that_does_not_repeat():
    assert torch.equal(
        torch.cat(list(ShuffledBatches(12, 4, seed=3, repeat=2)))[:12], torch.cat(list(ShuffledBatches(12, 4, seed=3)))
    )
