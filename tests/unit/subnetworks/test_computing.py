"""Test a task's computation, and its compatibility with the rest of torch."""

import pytest
import torch
from torch import nn

from helpers import learn, make_batch, make_head, make_mlp, make_network, make_optimizer, quarter, seen_weights, train
from msh.subnetworks import MultiSubnetwork, prune


def make_two_by_two():
    """One layer of 2 x 2 weights, 1 2 / 3 4, without bias."""
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    return MultiSubnetwork(nn.Sequential(layer))


def take(network, task, mask, reuse="none"):
    network.add_task(task, reuse=reuse)
    network.begin(task)
    network.restrict(task, {"0.weight": torch.tensor(mask, dtype=torch.bool)})
    return network.subnetwork(task)


def make_in_training(form, norm="none"):
    network = make_network(norm)
    network.add_task("a", head=make_head())
    network.begin("a")
    if form != "dense":
        prune(network, "a", quarter(network))
    if form == "compact":
        network.compact("a")
    return network


def test_the_first_task_starts_with_the_backbones_values():
    torch.manual_seed(0)
    backbone, inputs = make_mlp(3, 4, 2), torch.randn(5, 3)
    expected = backbone(inputs).detach()
    network = MultiSubnetwork(backbone)
    network.add_task("a")
    network.begin("a")
    torch.testing.assert_close(network(inputs).detach(), expected)


def test_a_later_task_starts_at_the_backbones_norm():
    network = make_two_by_two()
    take(network, "a", [[0, 0], [1, 1]])
    network.freeze("a")
    network.add_task("b")
    network.begin("b")
    # 1 and 2 are free, of norm sqrt(5); the whole had sqrt(30)
    expected = torch.tensor([[6**0.5, 2 * 6**0.5], [0.0, 0.0]])
    torch.testing.assert_close(network.subnetwork("b").values["0.weight"].detach(), expected)
    assert dict(network.weights())["0.weight"].tolist() == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        # it reads 1, and 2, 3, 4 have norm sqrt(29): 30 - 1 is what is left
        ([[1, 0], [0, 0]], [[1.0, 2.0], [3.0, 4.0]]),
        # it reads 4, and 1, 2, 3 have norm sqrt(14): 30 - 16 is less than 22.5, the share of three weights in four
        ([[0, 0], [0, 1]], [[(22.5 / 14) ** 0.5, 2 * (22.5 / 14) ** 0.5], [3 * (22.5 / 14) ** 0.5, 4.0]]),
    ],
)
def test_beside_read_weights_a_task_starts_with_its_part_of_the_norm(read, expected):
    network = make_two_by_two()
    take(network, "a", read)
    network.freeze("a")
    network.add_task("b", reuse="all")
    network.begin("b")
    torch.testing.assert_close(network(torch.eye(2)).detach().T, torch.tensor(expected))


@pytest.mark.parametrize("form", ["masked", "compact", "frozen"])
@pytest.mark.parametrize(("reuse", "expected"), [("none", [[0, 0], [3, 0]]), ("all", [[1, 0], [3, 0]])])
def test_a_task_reads_earlier_weights_only_with_reuse(form, reuse, expected):
    network = make_two_by_two()
    take(network, "a", [[1, 0], [0, 0]])
    network.freeze("a")
    values = take(network, "b", [[0, 0], [1, 0]], reuse).values
    with torch.no_grad():
        values["0.weight"][1, 0] = 3.0
    if form != "masked":
        network.compact("b")
    if form == "frozen":
        network.freeze("b")
    with torch.no_grad():
        assert network(torch.eye(2)).T.tolist() == expected
    assert network.state.readers("a") == (["b"] if reuse == "all" else [])


def test_a_task_reads_only_tasks_frozen_before_it():
    network = make_two_by_two()
    take(network, "a", [[1, 0], [0, 0]])
    network.compact("a")
    network.add_task("b", reuse="all")
    network.freeze("a")
    network.add_task("c", reuse="all")
    assert network.subnetwork("b").reads == ()
    assert network.subnetwork("c").reads == ("a",)


@pytest.mark.parametrize("form", ["dense", "masked", "compact"])
def test_gradients_reach_the_tasks_own_weights_only(form):
    network, (inputs, _) = make_in_training(form), make_batch()
    network(inputs).square().sum().backward()
    for name, values in network.subnetwork("a").values.items():
        gradient = values.grad if form != "compact" else torch.zeros(network.owners[name].shape)
        assert not gradient[~network.masks("a")[name]].any()
        assert values.grad.any()


@pytest.mark.parametrize("form", ["dense", "masked", "compact"])
def test_two_forward_passes_before_one_backward_pass(form):
    """A sum of two losses, or a second view of the same batch, needs this."""
    network, (inputs, _) = make_in_training(form), make_batch()
    (network(inputs).sum() + network(2 * inputs).square().sum()).backward()
    together = [values.grad.clone() for _, values in network.subnetwork("a").values.items()]
    network.zero_grad()
    network(inputs).sum().backward()
    network(2 * inputs).square().sum().backward()
    for both, (_, values) in zip(together, network.subnetwork("a").values.items(), strict=True):
        torch.testing.assert_close(both, values.grad)


@pytest.mark.parametrize("form", ["dense", "masked", "compact"])
def test_computing_the_digest_does_not_disturb_a_backward_pass(form):
    network, (inputs, _) = make_in_training(form), make_batch()
    loss = network(inputs).square().sum()
    network.digest("a")
    loss.backward()
    assert all(values.grad.any() for _, values in network.subnetwork("a").values.items())


@pytest.mark.parametrize("form", ["masked", "compact"])
def test_values_written_outside_autograd_are_used(form):
    network = make_in_training(form)
    seen_weights(network, "a")
    for _, values in network.subnetwork("a").values.items():
        values.data.fill_(7.0)
    for name, weight in seen_weights(network, "a").items():
        assert torch.equal(weight, 7.0 * network.masks("a")[name])


@pytest.mark.parametrize("mode", [True, False])
def test_a_frozen_task_computes_in_evaluation_mode_and_leaves_the_mode_alone(mode):
    network = make_network("batch")
    network.add_task("a", head=nn.Sequential(nn.Dropout(0.5), make_head()), stem=nn.BatchNorm1d(4))
    network.begin("a")
    network.freeze("a")
    network.train(mode)
    network.backbone[3].eval()
    (inputs, _), modes = make_batch(), [module.training for module in network.modules()]
    output = network(inputs)
    assert torch.equal(network(inputs), output)
    assert [module.training for module in network.modules()] == modes
    network.eval()
    assert torch.equal(network(inputs), output)


def test_a_frozen_task_keeps_the_mode_even_when_computing_fails():
    network = make_network("batch")
    learn(network, "a")
    with pytest.raises(RuntimeError):
        network(torch.zeros(2, 9), "a")
    assert all(module.training for module in network.modules())


def test_a_frozen_task_has_a_gradient_with_respect_to_its_inputs_also_after_inference_mode():
    network = make_network()
    learn(network, "a")
    inputs = make_batch()[0].requires_grad_()
    with torch.inference_mode():
        network(inputs, "a")
    network(inputs, "a").sum().backward()
    assert inputs.grad.any()


@pytest.mark.parametrize("form", ["masked", "compact", "frozen"])
def test_a_network_can_be_moved_to_another_type(form):
    network, (inputs, _) = make_in_training("masked" if form == "masked" else "compact"), make_batch()
    if form == "frozen":
        network.freeze("a")
    single = network(inputs).detach()
    network.double()
    torch.testing.assert_close(network(inputs.double()).detach(), single.double(), atol=1e-5, rtol=1e-5)


def test_a_network_of_images_can_be_laid_out_channels_last():
    torch.manual_seed(0)
    network, images = MultiSubnetwork(nn.Sequential(nn.Conv2d(2, 3, 3))), torch.rand(1, 2, 4, 4)
    network = network.to(memory_format=torch.channels_last)
    network.add_task("a")
    network.begin("a")
    prune(network, "a", quarter(network))
    expected = network(images).detach()
    network.freeze("a")
    torch.testing.assert_close(network(images), expected)


def test_a_pass_in_inference_mode_does_not_disturb_training():
    for form in ("masked", "compact"):
        network = make_in_training(form, "batch")
        network.eval()
        with torch.inference_mode():
            network(make_batch()[0])
        network.train()
        before = network.digest("a")
        train(network, make_optimizer(torch.optim.SGD, network))
        assert network.digest("a") != before


class Tied(nn.Module):
    """Reads words from the table that it also computes with as a matrix."""

    def __init__(self):
        super().__init__()
        self.words, self.middle = nn.Embedding(30, 16, padding_idx=0), nn.Linear(16, 16)

    def forward(self, tokens):
        return nn.functional.linear(torch.tanh(self.middle(self.words(tokens))), self.words.weight).mean(1)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("pruned", [False, True])
def test_a_padding_row_stays_0_where_the_table_is_also_a_matrix(pruned, compiled):
    torch.manual_seed(0)
    network = MultiSubnetwork(Tied())
    network.add_task("a")
    network.begin("a")
    tokens, labels = torch.randint(0, 30, (6, 5)), torch.zeros(6, dtype=torch.long)
    run = torch.compile(network, backend="aot_eager") if compiled else network
    train_on(run, network, tokens, labels)
    if pruned:
        prune(network, "a", {"words.weight": 200, "middle.weight": 100})
        train_on(run, network, tokens, labels)
    assert not network.subnetwork("a").values["words.weight"][0].any()
    network.settle("a")
    before = network(tokens, "a")
    network.compact("a")
    torch.testing.assert_close(network(tokens, "a"), before)
    network.freeze("a")
    torch.testing.assert_close(network(tokens, "a"), before)


def train_on(run, network, inputs, labels, steps=5):
    optimizer = torch.optim.Adam(network.subnetwork("a").parameters(), 0.05, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(run(inputs, "a"), labels).backward()
        assert not network.subnetwork("a").values["words.weight"].grad[0].any()
        optimizer.step()
