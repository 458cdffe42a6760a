"""Fresh values follow the initialiser of the tensor's own layer."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from msh.files.state_file import read_state, save_network
from msh.subnetworks import MultiSubnetwork
from msh.subnetworks.initial import fresh_values

ROWS, COLUMNS = 60, 40


class Own(nn.Module):
    """A layer with its own initialiser, a bias and running statistics."""

    def __init__(self, draw):
        super().__init__()
        self.draw = draw
        self.weight, self.bias = nn.Parameter(torch.empty(ROWS, COLUMNS)), nn.Parameter(torch.empty(ROWS))
        self.register_buffer("running_mean", torch.ones(ROWS))
        self.reset_parameters()

    def reset_parameters(self):
        self.draw(self.weight)
        nn.init.ones_(self.bias)
        self.running_mean.zero_()

    def forward(self, inputs):
        return nn.functional.linear(inputs, self.weight, self.bias)


class OwnLinear(nn.Linear):
    def reset_parameters(self):
        nn.init.trunc_normal_(self.weight, std=0.5, a=-1.0, b=1.0)
        nn.init.zeros_(self.bias)


class Raises(Own):
    def reset_parameters(self):
        if self.running_mean.sum() == 0:  # once it was called
            raise RuntimeError("only once")
        super().reset_parameters()


def fresh(backbone, seed=1):
    """The values that a new task starts from, by tensor."""
    network = MultiSubnetwork(backbone)
    network.add_task("a")
    network.begin("a", generator=torch.Generator().manual_seed(seed))
    return {name: network.subnetwork("a").values[name].detach() for name in network.names.prunable}, network


def kurtosis(values):
    return float(values.pow(4).mean() / values.pow(2).mean().pow(2))


UNIFORM = [
    partial(nn.Linear, 40, 60),
    partial(nn.Conv2d, 20, 30, 3),
    partial(nn.ConvTranspose1d, 20, 30, 5),
    partial(nn.Bilinear, 10, 10, 30),
    partial(nn.LSTM, 20, 30),
    partial(nn.GRUCell, 20, 30),
    partial(nn.MultiheadAttention, 32, 4),
    lambda: weight_norm(nn.Linear(40, 60)),
    partial(Own, nn.init.kaiming_uniform_),
    partial(Own, partial(nn.init.constant_, val=0.5)),  # draws nothing
    partial(Raises, nn.init.normal_),
]
NORMAL = [partial(nn.Embedding, 60, 40), partial(nn.EmbeddingBag, 60, 40), partial(Own, nn.init.normal_)]


@pytest.mark.parametrize("make", UNIFORM)
def test_layers_whose_initialiser_is_uniform_start_from_uniform_values(make):
    torch.manual_seed(0)
    values, network = fresh(make())
    assert not network.initialisers.families
    assert all(abs(kurtosis(tensor) - 1.8) < 0.15 for tensor in values.values())


@pytest.mark.parametrize("make", NORMAL)
def test_layers_whose_initialiser_is_normal_start_from_normal_values(make):
    torch.manual_seed(0)
    values, network = fresh(make())
    assert network.initialisers.families == dict.fromkeys(values, "normal")
    assert all(abs(kurtosis(tensor) - 3.0) < 0.5 for tensor in values.values())


def test_uniform_values_are_bitwise_those_of_earlier_releases():
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    values, network = fresh(layer, seed=7)
    norm = network.initial_norms["weight"]
    drawn = fresh_values(values["weight"], norm, torch.Generator().manual_seed(7))
    bound = float((3.0 / 12) ** 0.5) * float(norm)
    plain = torch.empty(3, 4).uniform_(-bound, bound, generator=torch.Generator().manual_seed(7))
    assert torch.equal(drawn, plain)
    assert torch.equal(values["weight"], plain * (float(norm) / float(plain.norm())))


def test_an_initialiser_of_the_users_draws_and_leaves_the_layer_as_it_is():
    torch.manual_seed(0)
    layer = Own(nn.init.orthogonal_)
    before = copy.deepcopy(layer.state_dict())
    values, network = fresh(layer)
    gram = values["weight"].T @ values["weight"]
    torch.testing.assert_close(gram, torch.eye(COLUMNS), atol=1e-5, rtol=0.0)
    assert not torch.equal(values["weight"], before["weight"])
    assert all(torch.equal(network.backbone.state_dict()[name], tensor) for name, tensor in before.items())


def test_truncated_values_stay_truncated():
    torch.manual_seed(0)
    values, network = fresh(OwnLinear(COLUMNS, ROWS))
    assert network.initialisers.families == {"weight": "normal"}
    assert float(values["weight"].abs().max()) < 1.1  # two deviations, scaled to the initial norm


def test_draws_follow_from_the_seed_alone():
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Embedding(9, 40), Own(nn.init.orthogonal_), nn.Linear(60, 2))
    second, third = copy.deepcopy(backbone), copy.deepcopy(backbone)
    values, _ = fresh(backbone, seed=3)
    state = torch.manual_seed(5).get_state()
    again, _ = fresh(second, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    other, _ = fresh(third, seed=4)
    assert all(torch.equal(values[name], again[name]) for name in values)
    assert not any(torch.equal(values[name], other[name]) for name in values)


def test_fresh_values_have_the_initial_norm():
    torch.manual_seed(0)
    values, network = fresh(nn.Sequential(nn.Embedding(50, 40), Own(nn.init.normal_)))
    for name, tensor in values.items():
        assert float(tensor.norm()) == pytest.approx(float(network.initial_norms[name]), rel=1e-5)


def test_a_released_embedding_is_normal_again_in_a_network_and_in_its_file(tmp_path):
    torch.manual_seed(0)
    network = MultiSubnetwork(nn.Embedding(80, 40, padding_idx=2))
    network.add_task("a")
    network.begin("a", generator=torch.Generator().manual_seed(0))
    network.freeze("a")
    save_network(tmp_path / "network.safetensors", network)
    file = read_state(tmp_path / "network.safetensors").state
    assert file.draws == {"weight": "normal"}
    file.release("a")
    network.release("a")
    weight = dict(network.weights())["weight"]
    assert torch.equal(weight, file.weights["weight"])
    assert abs(kurtosis(weight[3:]) - 3.0) < 0.3
    assert not weight[2].any()


def test_a_file_without_the_entry_is_uniform(tmp_path):
    torch.manual_seed(0)
    network = MultiSubnetwork(nn.Linear(40, 60))
    save_network(tmp_path / "network.safetensors", network)
    assert read_state(tmp_path / "network.safetensors").state.draws == {}


def test_an_unknown_family_is_refused(tmp_path):
    network = MultiSubnetwork(nn.Embedding(5, 4))
    network.initialisers.families["weight"] = "cauchy"
    save_network(tmp_path / "network.safetensors", network)
    with pytest.raises(ValueError, match="draws"):
        read_state(tmp_path / "network.safetensors")
