"""A backbone of the user's that a file could not rebuild is refused before it trains."""

import numpy as np
import pytest
import torch
from torch import nn

from msh.training.build import check_rebuilt


class Features(nn.Module):
    """A linear layer behind something fixed that a constructor draws."""

    def __init__(self, form="persistent"):
        super().__init__()
        self.layer, self.form = nn.Linear(8, 4), form
        drawn = torch.from_numpy(np.random.default_rng().normal(size=(3, 8))).float()
        if form in ("persistent", "lost"):
            self.register_buffer("drawn", drawn, persistent=form == "persistent")
        elif form == "computed":
            self.register_buffer("drawn", torch.arange(24.0).view(3, 8).cos(), persistent=False)
        elif form == "attribute":
            self.drawn = drawn
        else:
            self.hidden = [nn.Linear(3, 8)]

    def forward(self, inputs):
        hidden = self.hidden[0](inputs) if self.form in ("list", "noisy") else inputs @ self.drawn
        hidden = hidden + torch.rand_like(hidden) if self.form == "noisy" else hidden
        return self.layer(torch.cos(hidden))


def checked(form):
    torch.manual_seed(0)
    backbone = Features(form)
    backbone.input_shape = (3,)
    state = torch.get_rng_state()
    check_rebuilt(backbone, {"_target_": "mine.Features"}, lambda: Features(form))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("form", ["persistent", "computed", "noisy"])
def test_one_that_its_state_dict_determines_passes(form):
    checked(form)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_one_of_another_type_passes(kind):
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).to(kind)
    backbone.input_shape = (3,)
    check_rebuilt(backbone, {"_target_": "mine.Net"}, lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))


@pytest.mark.parametrize("form", ["lost", "attribute", "list"])
def test_one_with_other_random_tensors_is_refused_by_its_name(form):
    with pytest.raises(ValueError, match=r"^mine.Features, built again with the same state dict, computes other"):
        checked(form)


def test_one_with_other_tensors_each_time_is_refused():
    class Wider(nn.Linear):
        made = 3

        def __init__(self):
            Wider.made += 1
            super().__init__(3, Wider.made)

    backbone = Wider()
    backbone.input_shape = (3,)
    with pytest.raises(ValueError, match=r"^mine.Wider has other tensors when it is built again: .*size mismatch"):
        check_rebuilt(backbone, {"_target_": "mine.Wider"}, Wider)
