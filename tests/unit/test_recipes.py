"""Test the modules that recipes build, and the limits on a stranger's recipe."""

import pytest
import torch
from torch import nn

from msh.backbones import MLP
from msh.recipes import build, is_known, outline, rebuild

LINEAR = {"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 2}


def test_a_recipe_builds_a_module_with_its_arguments():
    mlp = rebuild({"_target_": "msh.backbones.mlp.MLP", "input_shape": [4], "width": 5, "depth": 2}, "it", 100)
    assert isinstance(mlp, MLP)
    assert mlp(torch.zeros(2, 4)).shape == (2, 5)


def test_modules_among_the_arguments_are_built_first():
    layer = rebuild(
        {
            "_target_": "torch.nn.TransformerEncoder",
            "encoder_layer": {"_target_": "torch.nn.TransformerEncoderLayer", "d_model": 4, "nhead": 2},
            "num_layers": 1,
            "enable_nested_tensor": False,
        },
        "it",
        10**6,
    )
    assert isinstance(layer, nn.TransformerEncoder)


OTHER = [
    "os.system",
    "torch.load",
    "torch.hub.load",
    "torch.nn.init.zeros_",
    "msh.cli.app.main",
    "mine.Net",
    "builtins.eval",
]
OTHER += ["torch.nn.functional.linear", "torchvision.models.os", "torch.nn.Nothing", "torch.nn.modules.torch.load"]


@pytest.mark.parametrize("target", [*OTHER, ""])
def test_unknown_code_is_not_called(target):
    assert not is_known(target)
    with pytest.raises(ValueError, match=r"the head is built by .*, which is not in msh, torch, .*: pass"):
        rebuild({"_target_": target, "x": 1}, "the head", 10)
    with pytest.raises(ValueError, match="which is not in msh"):
        rebuild({**LINEAR, "device": {"_target_": target}}, "the head", 10)


def test_the_callers_own_constructor_is_called():
    made = rebuild({"_target_": "mine.Net", "width": 3}, "it", 10, {"mine.Net": lambda width: nn.Linear(width, 1)})
    assert made.in_features == 3


class Scaled(nn.Module):
    """Reads a value of its tensors."""

    def __init__(self, width=4):
        super().__init__()
        self.layer = nn.utils.parametrizations.orthogonal(nn.Linear(width, width))
        nn.init.constant_(self.layer.bias, 2.0)
        self.scale = float(self.layer.bias.detach().mean())


@pytest.mark.parametrize("adapted", [False, True])
def test_the_callers_own_constructor_may_read_values_of_its_tensors(adapted):
    recipe = {"_target_": "mine.Scaled", "width": 5}
    shape = {"input_shape": [5], "features": 5, "pool": "none"}
    recipe = {"_target_": "msh.backbones.Adapted", "model": recipe, **shape} if adapted else recipe
    made = rebuild(recipe, "it", 100, {"mine.Scaled": Scaled})
    made = made.model if adapted else made
    assert made.scale == 2
    assert {tensor.device.type for tensor in made.state_dict().values()} == {"cpu"}
    assert {tensor.device.type for tensor in outline(recipe, "it", {"mine.Scaled": Scaled}).parameters()} == {"meta"}
    with pytest.raises(ValueError, match=r"it would have .* numbers, and the file has 100"):
        rebuild({"_target_": "mine.Scaled", "width": 2100}, "it", 100, {"mine.Scaled": Scaled})


def test_an_error_of_the_callers_own_constructor_is_its_error_with_memory():
    with pytest.raises(ValueError, match=r"it cannot be rebuilt by 'mine.Scaled': .*unexpected keyword argument"):
        rebuild({"_target_": "mine.Scaled", "wdth": 5}, "it", 100, {"mine.Scaled": Scaled})


def test_a_module_too_large_for_its_file_is_refused_before_allocation():
    with pytest.raises(ValueError, match=r"it would have 1,000,001,000,000 numbers, and the file has 100"):
        rebuild({**LINEAR, "in_features": 10**6, "out_features": 10**6}, "it", 100)


@pytest.mark.parametrize("arguments", [{"in_features": "many"}, {"colour": 1}, {"in_features": None}])
def test_wrong_arguments_are_an_error_that_names_the_constructor(arguments):
    with pytest.raises(ValueError, match=r"the head cannot be rebuilt by 'torch.nn.Linear'"):
        rebuild({**LINEAR, **arguments}, "the head", 100)


def test_a_constructor_without_a_module_is_named():
    with pytest.raises(ValueError, match=r"collections.Counter returns a Counter, which is no torch.nn.Module"):
        build({"_target_": "collections.Counter"})
