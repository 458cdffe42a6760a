"""Backbones by name: models of libraries and the user's modules, their shapes, weights, pools, and refusals."""

import logging
import socket

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from messages import says
from msh.backbones import Adapted
from msh.backbones.adapted import _tensor_in
from msh.backbones.libraries import Images, Tokens, hf_model, timm_model, torchvision_model
from msh.backbones.named import Named, named, read_weights
from msh.files.state_file import save_network
from msh.recipes import build, outline, rebuild
from msh.subnetworks import MultiSubnetwork

BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 30}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def built(shape, **settings):
    torch.manual_seed(0)
    chosen = Named(**settings)
    inputs = chosen.inputs()
    recipe = chosen.recipe(chosen.shape(inputs, [shape]), inputs)
    backbone = build(recipe)
    chosen.load(backbone.model)
    return backbone, recipe


CASES = [
    ({"library": "torchvision", "name": "mobilenet_v3_small"}, (3, 32, 32), 1024),
    ({"library": "torchvision", "name": "squeezenet1_1"}, (3, 32, 32), 512),
    ({"library": "timm", "name": "test_resnet.r160_in1k"}, (3, 32, 32), None),
    ({"library": "timm", "name": "test_vit"}, (3, 32, 32), None),
    ({"library": "hf", "name": "bert", "args": BERT}, (6,), 16),
    ({"library": "hf", "name": "gpt2", "args": {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 30}}, (6,), 16),
]


@pytest.mark.parametrize(("settings", "shape", "features"), CASES, ids=lambda value: str(value)[:50])
def test_a_model_of_a_library_gives_features_and_a_recipe_that_rebuilds_it(settings, shape, features):
    backbone, recipe = built(shape, **settings)
    assert backbone.input_shape == shape
    if features is not None:
        assert backbone.features == features
    recipe = {**recipe, "features": backbone.features}
    numbers = sum(p.numel() for p in backbone.parameters())
    again = rebuild(recipe, "the backbone", numbers)
    again.load_state_dict(backbone.state_dict())
    inputs = torch.randint(1, 30, (2, *shape)) if hasattr(backbone, "vocabulary") else torch.randn(2, *shape)
    outputs = backbone.eval()(inputs)
    assert outputs.shape == (2, backbone.features)
    assert torch.equal(again.eval()(inputs), outputs)


def test_structures_that_read_ranges_of_numbers_are_outlined_without_memory():
    recipe = {"_target_": "msh.backbones.libraries.torchvision_model", "name": "regnet_y_400mf"}
    assert all(p.is_meta for p in outline(recipe, "the backbone").parameters())


MISSPELT = [
    (Named("timm", "resnet1"), "resnet18"),
    (Named("torchvision", "convnext_tin"), "convnext_tiny"),
]


@pytest.mark.parametrize(("chosen", "meant"), MISSPELT)
def test_a_misspelt_name_suggests_the_nearest_of_its_library(chosen, meant):
    with pytest.raises(ValueError, match=says("backbone.name", meant=meant)):
        chosen.inputs()


def test_a_config_is_read_with_all_its_problems():
    assert named({"_target_": "msh.backbones.MLP", "depth": 2}) is None
    with pytest.raises(ValueError, match="2 problems") as error:
        named({"_target_": "msh.backbones.Adapted", "library": "timm", "nam": "resnet18"})
    assert "did you mean 'name'" in str(error.value)
    assert "backbone.name is missing" in str(error.value)


@pytest.mark.parametrize(
    ("target", "key", "meant"),
    [
        ("torch.nn.Linear", "bias", "backbone.args.bias"),
        ("torch.nn.Linear", "wieghts", "weights"),
        ("torch.nn.Linear", "width", None),
        ("torch.nn.Linear", "vocabulry", "vocabulary"),
    ],
)
def test_an_unknown_setting_of_a_module_may_be_an_argument_of_its_class(target, key, meant):
    with pytest.raises(ValueError, match=f"no setting backbone.{key}; backbone has library, name") as error:
        named({"_target_": "msh.backbones.Adapted", "target": target, key: 3})
    assert str(error.value).endswith(f"did you mean {meant!r}?" if meant else "vocabulary, padding")


@pytest.mark.parametrize(
    "recipe",
    [
        {"_target_": "msh.backbones.libraries.timm_model", "name": "resnet10t", "args": {"checkpoint_path": "/x"}},
        {"_target_": "msh.backbones.libraries.timm_model", "name": "hf-hub:them/theirs"},
        {"_target_": "msh.backbones.libraries.torchvision_model", "name": "resnet18", "args": {"weights": "DEFAULT"}},
        {"_target_": "msh.backbones.libraries.hf_model", "config": {"model_type": "bert", "auto_map": {"a": "b"}}},
        {
            "_target_": "msh.backbones.libraries.hf_model",
            "config": {"model_type": "bert", "attn_implementation": "them/kernel"},
        },
        {
            "_target_": "msh.backbones.libraries.hf_model",
            "config": {"model_type": "detr", "backbone_config": {"use_pretrained_backbone": True}},
        },
        {"_target_": "msh.backbones.Adapted", "model": {"_target_": "os.system", "command": "x"}, "input_shape": [3]},
    ],
)
def test_a_file_of_unknown_origin_cannot_read_files_or_call_other_code(recipe):
    with pytest.raises(ValueError, match=r"backbone\.|not in msh"):
        outline(recipe, "the backbone")


# ---- images and tokens


def test_pretrained_models_read_the_librarys_images_others_the_tasks():
    chosen = Named("timm", "resnet18")
    images = chosen.inputs()
    assert images == Images((3, 224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic", False)
    assert chosen.shape(images, [(4,), (1, 8, 8)]) == (3, 8, 8)
    assert Named("timm", "resnet18", weights="default").shape(images, [(1, 8, 8)]) == (3, 224, 224)
    assert Named("timm", "resnet18", input_shape=[3, 64, 64]).shape(images, [(1, 8, 8)]) == (3, 64, 64)


@pytest.mark.parametrize(
    ("name", "kind"), [("beit", Images), ("vit", Images), ("wav2vec2", type(None)), ("bert", Tokens), ("t5", Tokens)]
)
def test_a_models_main_input_tells_images_from_texts(name, kind):
    pytest.importorskip("transformers")
    assert isinstance(Named(library="hf", name=name).inputs(), kind)  # beit and wav2vec2 have a vocabulary, too


def test_models_with_a_fixed_size_are_built_for_the_size_of_the_images():
    chosen = Named("timm", "vit_tiny_patch16_224")
    recipe = chosen.recipe((3, 32, 48), chosen.inputs())
    assert recipe["model"]["args"] == {"img_size": [32, 48]}
    chosen = Named("torchvision", "resnet18")
    with pytest.raises(ValueError, match=says("backbone.input_shape", "[3, height, width]", [1, 8, 8])):
        chosen.recipe((1, 8, 8), chosen.inputs())
    chosen = Named("timm", "resnet18")
    assert chosen.recipe((1, 8, 8), chosen.inputs())["model"]["args"] == {"in_chans": 1}


def test_a_text_longer_than_the_models_positions_is_refused():
    chosen = Named("hf", "bert", args={**BERT, "max_position_embeddings": 8})
    assert chosen.inputs() == Tokens(30, 8)
    with pytest.raises(ValueError, match=says("source.length", value=9)):
        chosen.recipe((9,), chosen.inputs())


# ---- the user's modules


class Pair(nn.Module):
    """Returns its features among other outputs, in several forms."""

    def __init__(self, input_shape=(4,), form="tuple", width=5):
        super().__init__()
        self.layer = nn.Linear(input_shape[-1], width)
        self.never = nn.Linear(3, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.form = form

    def forward(self, inputs):
        self.calls += 1
        features = torch.dropout(self.layer(inputs), 0.5, self.training)
        forms = {"tuple": (features, None), "dict": {"last_hidden_state": features}, "text": "text", "none": features}
        return forms[self.form]


TARGET = f"{__name__}.Pair"


@pytest.mark.parametrize("form", ["tuple", "dict", "none"])
def test_own_modules_may_return_features_among_other_outputs(form):
    chosen = Named(target=TARGET, args={"form": form, "width": 7})
    recipe = chosen.recipe((4,), None)
    assert recipe["model"] == {"_target_": TARGET, "input_shape": [4], "form": form, "width": 7}
    assert build(recipe).features == 7


def test_finding_the_features_changes_nothing_but_what_is_never_used(caplog):
    torch.manual_seed(3)
    model = Pair()
    before, expected = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    with caplog.at_level(logging.INFO):
        Adapted(model, (4,))
    assert torch.equal(torch.get_rng_state(), expected)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["never.weight", "never.bias"]
    assert "never.weight" in caplog.text


def test_other_outputs_are_refused_by_name():
    with pytest.raises(ValueError, match=r"the backbone's outputs must be a tensor.*got 'str'"):
        Adapted(Pair(form="text"), (4,))
    with pytest.raises(ValueError, match=r"got 'tuple of \(str, int\)'"):
        _tensor_in(("a", 1))


def test_modules_whose_first_dimension_is_not_the_batch_are_refused():
    with pytest.raises(ValueError, match="batch_first=True"):
        Adapted(nn.LSTM(4, 6), (5, 4))
    assert Adapted(nn.LSTM(4, 6, batch_first=True), (5, 4)).features == 6


def test_wrong_targets_and_shapes_name_the_setting():
    with pytest.raises(ValueError, match=says("backbone.target")):
        Named(target="nowhere.Net").recipe((4,), None)
    with pytest.raises(ValueError, match=r"cannot compute inputs of the shape \[3\]"):
        Adapted(nn.Linear(4, 2), (3,))


class Echo(nn.Module):
    """Returns (batch, tokens, 1): the ids."""

    def forward(self, tokens):
        return tokens.float()[..., None]


@pytest.mark.parametrize(("pool", "expected"), [("cls", 3.0), ("mean", 4.0), ("last", 5.0)])
def test_pools_of_texts_leave_padding_out(pool, expected):
    backbone = Adapted(Echo(), (4,), pool, vocabulary=9, features=1)
    assert backbone(torch.tensor([[3, 5, 0, 0]])).tolist() == [[expected]]


def test_pools_of_positions():
    outputs = torch.arange(12.0).view(1, 2, 2, 3)
    assert Adapted(nn.Identity(), (2, 2, 3), features=2)(outputs).tolist() == [[2.5, 8.5]]
    assert Adapted(nn.Identity(), (2, 2, 3), "none", features=12)(outputs).tolist() == [list(range(12))]
    with pytest.raises(ValueError, match=r"pool=cls must be \(batch, features\)"):
        Adapted(nn.Identity(), (2, 2, 3), "cls", features=2)(outputs)
    with pytest.raises(ValueError, match=says("backbone.pool", value="max")):
        Adapted(nn.Identity(), (2,), "max")


# ---- weights


@pytest.mark.parametrize("form", ["safetensors", "pth", "nested"])
def test_weights_come_from_a_file_in_several_forms(form, tmp_path):
    torch.manual_seed(5)
    source = timm_model("test_resnet")
    state = source.state_dict() | {"fc.weight": torch.zeros(3)}
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}} if form == "nested" else state, path)
    backbone, _ = built((3, 32, 32), library="timm", name="test_resnet", weights=str(path), input_shape=[3, 32, 32])
    for name, value in source.state_dict().items():
        assert torch.equal(backbone.model.state_dict()[name], value)


def test_weights_of_a_model_saved_with_its_head(tmp_path):
    source = hf_model({"model_type": "bert", **BERT})
    save_file({f"bert.{k}": v.contiguous() for k, v in source.state_dict().items()}, tmp_path / "model.safetensors")
    backbone, _ = built((6,), library="hf", name="bert", args=BERT, weights=str(tmp_path))
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in backbone.model.state_dict().items())


def test_weights_that_lack_a_parameter_are_refused(tmp_path):
    save_file({"conv1.weight": torch.zeros(3)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"has no conv1\.0\.weight|has no .* and \d+ more: the weights are of another"):
        built((3, 32, 32), library="timm", name="test_resnet", weights=str(tmp_path / "w.safetensors"))
    with pytest.raises(FileNotFoundError, match=r"backbone\.weights"):
        read_weights(tmp_path / "none.pth")


def test_a_network_of_msh_is_no_file_of_weights(tmp_path):
    save_network(tmp_path / "network.safetensors", MultiSubnetwork(nn.Linear(2, 3)))
    for path in (tmp_path, tmp_path / "network.safetensors"):
        with pytest.raises(ValueError, match=rf"backbone\.weights = {tmp_path}.* holds msh's tasks, not the weights"):
            read_weights(path)


class Evil:
    def __reduce__(self):
        return print, ("called",)


def test_weights_cannot_run_code(tmp_path, capsys):
    torch.save({"a": Evil()}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="cannot be read without running code"):
        read_weights(tmp_path / "w.pth")
    assert capsys.readouterr().out == ""


def test_weights_that_cannot_be_downloaded_say_how_to_get_them(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no internet")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with pytest.raises(ValueError, match=r"no internet.*backbone\.weights=FILE"):
        built((3, 32, 32), library="torchvision", name="resnet18", weights="default")


def test_the_heads_of_torchvision_are_removed():
    assert isinstance(torchvision_model("convnext_tiny").classifier[-1], nn.Identity)
    assert isinstance(torchvision_model("resnet18").fc, nn.Identity)
