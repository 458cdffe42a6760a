"""Test that a file alone rebuilds its network, without config, data or user code."""

import pytest
import torch
from torch import nn

from helpers import copy_state, differences, quarter
from msh.backbones import MLP, ResNet18
from msh.files.state_file import save_network, save_subnetwork
from msh.inference.rebuilding import rebuild_network
from msh.recipes import build
from msh.subnetworks import MultiSubnetwork, prune

MLP_RECIPE = {"_target_": "msh.backbones.mlp.MLP", "input_shape": [6], "width": 12, "depth": 2, "norm": True}
RESNET_RECIPE = {"_target_": "msh.backbones.resnet.ResNet18", "input_shape": [1, 8, 8], "width": 2}
STEM_RECIPE = {"_target_": "msh.tasks.stems.linear", "inputs": 4, "output_shape": [6]}


def head_recipe(features, outputs):
    return {"_target_": "torch.nn.Linear", "in_features": features, "out_features": outputs}


def learn(network, task, features, inputs, stem=None, reuse="none"):
    recipe = {"head": head_recipe(features, 3), "stem": stem}
    torch.manual_seed(len(network.tasks))
    parts = (build(recipe["head"]), None if stem is None else build(stem))
    network.add_task(task, *parts, reuse=reuse, recipe=recipe)
    network.begin(task, generator=torch.Generator().manual_seed(0))
    network(inputs).sum().backward()
    prune(network, task, quarter(network))
    network.freeze(task)


def make_mlp(reuse="none"):
    torch.manual_seed(0)
    network = MultiSubnetwork(build(MLP_RECIPE), recipe=MLP_RECIPE)
    learn(network, "a", 12, torch.randn(8, 6))
    learn(network, "b", 12, torch.randn(8, 4), STEM_RECIPE, reuse)
    return network


@pytest.mark.parametrize("reuse", ["none", "all"])
@pytest.mark.parametrize("free_weights", [True, False])
def test_a_rebuilt_networks_tasks_compute_bitwise(reuse, free_weights, tmp_path):
    network = make_mlp(reuse)
    save_network(tmp_path / "net", network, free_weights=free_weights)
    rebuilt = rebuild_network(tmp_path / "net")
    for task, inputs in (("a", torch.randn(5, 6)), ("b", torch.randn(5, 4))):
        assert torch.equal(rebuilt(inputs, task), network(inputs, task))
        assert rebuilt.digest(task) == network.digest(task)
    if free_weights:
        assert differences(copy_state(network), copy_state(rebuilt)) == []


def test_a_subnetwork_file_is_complete_alone(tmp_path):
    network = make_mlp()
    save_subnetwork(tmp_path / "b", network, "b")
    rebuilt = rebuild_network(tmp_path / "b")
    inputs = torch.randn(5, 4)
    assert rebuilt.tasks == ["b"]
    assert torch.equal(rebuilt(inputs, "b"), network(inputs, "b"))


def test_a_reading_subnetwork_names_the_needed_file(tmp_path):
    save_subnetwork(tmp_path / "b", make_mlp("all"), "b")
    with pytest.raises(ValueError, match=r"b: task 'b' reads task 'a': use the network file of both.*\(--base on"):
        rebuild_network(tmp_path / "b")


def test_convolutions_and_statistics_are_restored(tmp_path):
    torch.manual_seed(0)
    network = MultiSubnetwork(build(RESNET_RECIPE), recipe=RESNET_RECIPE)
    learn(network, "a", 16, torch.randn(8, 1, 8, 8))
    save_network(tmp_path / "net", network)
    inputs = torch.randn(3, 1, 8, 8)
    rebuilt = rebuild_network(tmp_path / "net")
    assert isinstance(rebuilt.backbone, ResNet18)
    assert torch.equal(rebuilt(inputs, "a"), network(inputs, "a"))


class Own(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.frozen, self.layer = nn.Linear(6, width), nn.Linear(width, 12)
        self.frozen.requires_grad_(False)
        self.register_buffer("scale", torch.full((3,), 2.0), persistent=False)

    def forward(self, inputs):
        return self.layer(self.frozen(inputs)) * self.scale[0]


def test_user_code_is_passed_in_and_frozen_weights_are_in_the_file(tmp_path):
    network = MultiSubnetwork(Own(7), recipe={"_target_": "mine.Own", "width": 7})
    learn(network, "a", 12, torch.randn(8, 6))
    save_subnetwork(tmp_path / "a", network, "a")
    inputs = torch.randn(5, 6)
    with pytest.raises(ValueError, match=r"the backbone is built by 'mine.Own', .* classes=\{'mine.Own': ...\}"):
        rebuild_network(tmp_path / "a")
    rebuilt = rebuild_network(tmp_path / "a", {"mine.Own": Own})
    assert torch.equal(rebuilt(inputs, "a"), network(inputs, "a"))


def test_a_file_without_recipes_is_refused(tmp_path):
    network = MultiSubnetwork(MLP([6], 12, 1))
    save_network(tmp_path / "net", network)
    with pytest.raises(ValueError, match="net has no recipe"):
        rebuild_network(tmp_path / "net")


def test_rebuilding_draws_nothing_from_the_global_generator(tmp_path):
    save_network(tmp_path / "net", make_mlp())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    rebuild_network(tmp_path / "net")
    assert torch.equal(torch.rand(3), expected)
