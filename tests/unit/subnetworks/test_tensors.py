import pytest
import torch
from torch import nn

from msh.subnetworks import MultiSubnetwork
from msh.subnetworks.tensors import (
    TensorBag,
    as_buffers,
    count_true,
    keep_only,
    kth_highest,
    mask_bits,
    masked_weight,
    name_tensors,
    raw_bytes,
    restore,
    same_bits,
    scattered_weight,
    selected,
)

LAYERS = {
    "Linear": (lambda: nn.Linear(4, 3), (2, 4)),
    "Conv1d": (lambda: nn.Conv1d(4, 3, 2), (2, 4, 5)),
    "Conv2d": (lambda: nn.Conv2d(4, 3, 2), (2, 4, 5, 5)),
    "Conv3d": (lambda: nn.Conv3d(4, 3, 2), (2, 4, 5, 5, 5)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(4, 3, 2), (2, 4, 5)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 3, 2), (2, 4, 5, 5)),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(4, 3, 2), (2, 4, 5, 5, 5)),
    "Embedding": (lambda: nn.Embedding(6, 3), None),
}


class Tied(nn.Module):
    """A decoder that shares the encoder's weight."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(4, 4)
        self.decoder = nn.Linear(4, 4)
        self.decoder.weight = self.encoder.weight

    def forward(self, inputs):
        return self.decoder(self.encoder(inputs).relu())


@pytest.mark.parametrize("kind", LAYERS)
def test_every_kind_of_layer_is_found_and_computes_with_its_owned_weights_only(kind):
    make, shape = LAYERS[kind]
    torch.manual_seed(0)
    layer = make()
    names = name_tensors(nn.Sequential(layer))
    assert names.prunable == ["0.weight"]
    assert names.parameters == (["0.bias"] if kind != "Embedding" else [])
    inputs = torch.randn(shape) if shape else torch.arange(6)
    network = MultiSubnetwork(nn.Sequential(layer))
    network.add_task("a")
    network.begin("a")
    mask = torch.arange(layer.weight.numel()).view(layer.weight.shape) % 3 == 0
    network.restrict("a", {"0.weight": mask})
    network.compact("a")
    network.freeze("a")
    expected = make()
    state = {"weight": layer.weight * mask} | ({} if kind == "Embedding" else {"bias": layer.bias})
    expected.load_state_dict(state)
    torch.testing.assert_close(network(inputs), expected(inputs).detach())


@pytest.mark.parametrize(
    "norm",
    [nn.LayerNorm([3, 4]), nn.LayerNorm(4), nn.RMSNorm([3, 4]), nn.GroupNorm(2, 4), nn.BatchNorm2d(4)],
    ids=lambda norm: f"{type(norm).__name__}{list(norm.weight.shape)}",
)
def test_normalisation_is_never_shared(norm):
    names = name_tensors(nn.Sequential(nn.Linear(4, 4, bias=False), norm))
    assert names.prunable == ["0.weight"]
    assert names.parameters == [f"1.{name}" for name, _ in norm.named_parameters()]
    assert names.buffers == [f"1.{name}" for name, _ in norm.named_buffers()]


def test_a_parameter_of_the_module_itself_is_found():
    names = name_tensors(nn.Linear(2, 2))
    assert (names.prunable, names.parameters) == (["weight"], ["bias"])


def test_another_rule_may_select_prunable_tensors():
    backbone = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2))
    names = name_tensors(backbone, lambda module, name, parameter: isinstance(module, nn.Linear) and name == "weight")
    assert (names.prunable, names.parameters) == (["1.weight"], ["0.weight", "1.bias"])


def test_a_tied_weight_is_named_once():
    names = name_tensors(Tied())
    assert names.prunable == ["encoder.weight"]
    assert names.parameters == ["encoder.bias", "decoder.bias"]
    assert names.tied == {"decoder.weight": "encoder.weight"}


def test_parameters_become_buffers_in_the_same_memory():
    module = Tied()
    place = module.encoder.weight.data_ptr()
    as_buffers(module)
    assert list(module.parameters()) == []
    assert module.encoder.weight is module.decoder.weight
    assert module.encoder.weight.data_ptr() == place
    assert not module.encoder.weight.requires_grad


def test_a_layer_without_bias_still_has_none_as_buffers():
    module = nn.Linear(2, 2, bias=False)
    as_buffers(module)
    assert module.bias is None
    assert [name for name, _ in module.named_buffers()] == ["weight"]


def test_a_bag_preserves_dotted_names_and_parameters():
    bag = TensorBag()
    bag.set("layers.0.weight", nn.Parameter(torch.ones(2)))
    bag.set("layers.0.mean", torch.zeros(3))
    bag.set("scratch", torch.zeros(1), persistent=False)
    assert list(bag) == ["layers.0.weight", "layers.0.mean", "scratch"]
    assert [tensor.numel() for _, tensor in bag.items()] == [2, 3, 1]
    assert "layers.0.mean" in bag
    assert "layers.0" not in bag
    assert len(list(bag.parameters())) == 1
    assert len(bag.state_dict()) == 2


def test_a_bag_replaces_and_drops():
    bag = TensorBag()
    bag.set("a.b", nn.Parameter(torch.ones(2)))
    bag.set("a.b", torch.zeros(3))
    assert list(bag.parameters()) == []
    assert bag["a.b"].shape == (3,)
    bag.set("scratch", torch.zeros(1), persistent=False)
    bag.clear()
    assert list(bag) == []
    bag.set("scratch", torch.zeros(1))
    assert list(bag.state_dict()) == ["scratch"]


def test_a_bag_names_a_missing_tensor():
    with pytest.raises(KeyError, match=r"a\.b"):
        TensorBag()["a.b"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_masked_weight_by_hand(dtype):
    values = nn.Parameter(torch.tensor([1.0, float("nan"), 3.0, 4.0], dtype=dtype))
    bits = mask_bits(torch.tensor([True, False, True, False]), values)
    restore(values, bits, torch.tensor([0.0, 8.0, 0.0, 0.0], dtype=dtype))
    weight = masked_weight(values, bits)
    assert weight.tolist() == [1.0, 8.0, 3.0, 0.0]
    assert values.tolist() == [1.0, 8.0, 3.0, 0.0]
    (weight * torch.tensor([1.0, float("nan"), 2.0, 3.0], dtype=dtype)).nansum().backward()
    assert values.grad.tolist() == [1.0, 0.0, 2.0, 0.0]


@pytest.mark.parametrize("unchanged", [True, False])
def test_scattered_weight_by_hand(unchanged):
    values, index = nn.Parameter(torch.tensor([5.0, 6.0])), torch.tensor([3, 0])
    dense = torch.tensor([[0.0, 9.0], [0.0, 0.0]])
    weight = scattered_weight(values, dense, index, unchanged)
    assert weight.tolist() == [[6.0, 9.0], [0.0, 5.0]]
    assert weight.data_ptr() == dense.data_ptr()
    (weight * torch.tensor([[1.0, 2.0], [3.0, 4.0]])).sum().backward()
    assert values.grad.tolist() == [4.0, 1.0]


def make_tied_network():
    torch.manual_seed(0)
    return MultiSubnetwork(Tied())


def learn_tied(network):
    network.add_task("a")
    network.begin("a")
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    network(torch.rand(3, 4)).square().sum().backward()
    optimizer.step()
    network.restrict("a", {"encoder.weight": torch.eye(4) == 1})
    network.freeze("a")


def test_a_tied_weight_stays_tied_through_training():
    network, inputs = make_tied_network(), torch.rand(3, 4)
    learn_tied(network)
    weight = network.backbone.encoder.weight * torch.eye(4)
    biases = network.subnetwork("a").private
    hidden = (inputs @ weight.T + biases["encoder.bias"]).relu()
    torch.testing.assert_close(network(inputs), hidden @ weight.T + biases["decoder.bias"])


def test_a_moved_tied_weight_is_saved_once():
    """Moving a module to another device or type copies buffers one by one."""
    network, loaded, inputs = make_tied_network().double().float(), make_tied_network(), torch.rand(3, 4)
    learn_tied(network)
    loaded.add_task("a")
    loaded.load_state_dict(network.state_dict())
    assert torch.equal(loaded(inputs), network(inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_selections_are_those_of_torch(dtype, density):
    values = torch.randn(40, 30).to(dtype).t().requires_grad_()  # not contiguous, as some weights are
    mask = torch.rand(30, 40) < density
    found = selected(values, mask)
    assert torch.equal(found, values.detach()[mask])
    assert not found.requires_grad
    assert count_true(mask) == int(mask.sum())
    for k in (1, 7, len(found)) if len(found) else ():
        assert torch.equal(kth_highest(found, k), found.sort(descending=True).values[k - 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_a_mask_leaves_out_becomes_0_whatever_it_was(dtype):
    values = torch.tensor([1.5, float("nan"), -2.0, float("-inf"), float("nan")], dtype=dtype)
    keep_only(torch.tensor([True, False, False, False, True]), values)
    expected = torch.tensor([1.5, 0.0, 0.0, 0.0, float("nan")], dtype=dtype)
    assert same_bits(values, expected)


class Spectral(nn.Module):
    """Computes with the conjugate of its weights, whose gradient torch holds as the negative of a tensor."""

    def __init__(self):
        super().__init__()
        self.re_weight, self.im_weight = (nn.Parameter(torch.randn(4, 4)) for _ in range(2))

    def forward(self, inputs):
        return (torch.fft.fft(inputs) @ torch.complex(self.re_weight, self.im_weight).conj()).real


def test_gradients_that_are_held_as_negatives_are_masked():
    torch.manual_seed(0)
    network, inputs = MultiSubnetwork(Spectral()), torch.randn(5, 4)
    network.add_task("a")
    network.begin("a")
    network(inputs, "a").square().sum().backward()
    values = network.subnetwork("a").values
    whole = {name: values[name].grad.clone() for name in network.sizes()}
    masks = {name: torch.rand(4, 4) < 0.5 for name in whole}
    bits = {name: mask_bits(mask, values[name]) for name, mask in masks.items()}
    network.restrict("a", masks)
    assert all(torch.equal(network.subnetwork("a").bits[name], bits[name]) for name in bits)
    network.zero_grad()
    network(inputs, "a").square().sum().backward()
    assert not any(values[name].grad[~masks[name]].any() for name in masks)
    assert all(values[name].grad[masks[name]].any() for name in masks)


@pytest.mark.parametrize("tensor", [torch.ones(3, 4)[:1, 0], torch.ones(3, 4)[:, 1], torch.tensor(2.0)])
def test_bytes_of_any_layout(tensor):
    assert raw_bytes(tensor) == tensor.contiguous().clone().numpy().tobytes()
    assert same_bits(tensor, tensor.clone())
