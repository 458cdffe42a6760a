import warnings
from collections import OrderedDict

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torchvision.models import SwinTransformer, VisionTransformer

from messages import says
from msh.subnetworks.roles import check_aliases, find_roles, padding_rows, tied_names
from msh.subnetworks.tensors import name_tensors

LAYERS = {
    "Linear": (lambda: nn.Linear(4, 3), ["weight"]),
    "Linear of one row": (lambda: nn.Linear(5, 1), ["weight"]),
    "Linear of one weight": (lambda: nn.Linear(1, 1), ["weight"]),
    "NonDynamicallyQuantizableLinear": (lambda: nn.modules.linear.NonDynamicallyQuantizableLinear(4, 3), ["weight"]),
    "Bilinear": (lambda: nn.Bilinear(2, 3, 4), ["weight"]),
    "Conv1d": (lambda: nn.Conv1d(4, 3, 2), ["weight"]),
    "depthwise Conv2d of size 1": (lambda: nn.Conv2d(4, 4, 1, groups=4), ["weight"]),
    "Conv3d": (lambda: nn.Conv3d(4, 3, 2), ["weight"]),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 3, 2), ["weight"]),
    "Embedding": (lambda: nn.Embedding(6, 3), ["weight"]),
    "EmbeddingBag": (lambda: nn.EmbeddingBag(6, 3), ["weight"]),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(3), []),
    "LayerNorm of two axes": (lambda: nn.LayerNorm([4, 3]), []),
    "GroupNorm": (lambda: nn.GroupNorm(2, 4), []),
    "RMSNorm": (lambda: nn.RMSNorm([4, 3]), []),
    "PReLU": (lambda: nn.PReLU(4), []),
    "MultiheadAttention": (lambda: nn.MultiheadAttention(4, 2), ["in_proj_weight", "out_proj.weight"]),
    "MultiheadAttention with bias_k": (
        lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True, kdim=3, vdim=5),
        ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"],
    ),
    "LSTM": (
        lambda: nn.LSTM(3, 4, num_layers=2, proj_size=2),
        [f"weight_{part}_l{layer}" for layer in (0, 1) for part in ("ih", "hh", "hr")],
    ),
    "GRU": (
        lambda: nn.GRU(3, 4, bidirectional=True),
        [f"weight_{part}_l0{way}" for way in ("", "_reverse") for part in ("ih", "hh")],
    ),
    "RNN of one unit": (lambda: nn.RNN(3, 1), ["weight_ih_l0", "weight_hh_l0"]),
    "LSTMCell": (lambda: nn.LSTMCell(3, 4), ["weight_ih", "weight_hh"]),
}


class Held(nn.Module):
    """Make a module with parameters of ones."""

    def __init__(self, **shapes):
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.ones(shape)))


def of_class(name, base=Held, *args, **options):
    """Make an instance of a new class with that name."""
    return type(name, (base,), {})(*args, **options)


def names(backbone, kind="prunable", prunable=None):
    return [role.name for role in find_roles(backbone, prunable) if role.kind == kind]


def whys(backbone, prunable=None):
    return {role.name: (role.kind, role.why) for role in find_roles(backbone, prunable)}


@pytest.mark.parametrize("case", LAYERS)
def test_the_weights_of_known_layers_are_prunable(case):
    build, expected = LAYERS[case]
    assert names(build()) == expected


def test_an_encoder_has_its_projections_prunable_and_its_norms_private():
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    weights = ["self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"]
    assert names(nn.TransformerEncoder(layer, 1)) == [f"layers.0.{name}" for name in weights]


def test_every_tensor_is_described():
    backbone = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    roles = find_roles(backbone)
    assert [(role.name, role.kind, role.why, role.parameter, tuple(role.shape)) for role in roles] == [
        ("0.weight", "prunable", "weight of Linear", True, (3, 2)),
        ("0.bias", "private", "bias", True, (3,)),
        ("1.weight", "private", "weight of BatchNorm1d", True, (3,)),
        ("1.bias", "private", "bias of BatchNorm1d", True, (3,)),
        ("1.running_mean", "private", "buffer", False, (3,)),
        ("1.running_var", "private", "buffer", False, (3,)),
        ("1.num_batches_tracked", "private", "buffer", False, ()),
    ]


def test_in_unknown_classes_only_matrices_called_weights_are_prunable():
    backbone = of_class(
        "Block",
        weight=(3, 4),
        kernel=(1, 3, 4),
        up_weight=(3, 4),
        weight_down=(3, 4),
        class_token=(1, 1, 4),
        register_tokens=(2, 4),
        positions=(1, 7, 4),
        pos_weight=(3, 4),
        relative_position_bias_table=(9, 2),
        layer_scale=(4, 1),
        weight_scale=(3, 4),
        gamma=(3, 4),
        temperature=(2, 2),
        row_weight=(1, 4, 1),
        out_bias=(3, 4),
    )
    assert names(backbone) == ["weight", "kernel", "up_weight", "weight_down"]
    assert whys(backbone)["relative_position_bias_table"] == ("private", "position embedding")
    assert whys(backbone)["gamma"] == ("private", "gamma of Block, not a layer's weight")


@pytest.mark.parametrize("name", ["ChannelNorm", "LayerScale", "GateUnit", "PositionalEncoding", "SegmentEmbedding"])
def test_unknown_classes_that_are_not_layers_are_private(name):
    assert names(of_class(name, weight=(3, 4))) == []


@pytest.mark.parametrize("name", ["Conv1D", "RelativeAttention", "TokenMixer", "PositionwiseLinear", "PatchEmbed"])
def test_unknown_classes_that_are_layers_are_prunable(name):
    assert names(of_class(name, weight=(3, 4))) == ["weight"]


class Filter(nn.Module):
    """A layer with a complex weight, as Fourier layers have."""

    def __init__(self):
        super().__init__()
        self.real = nn.Linear(3, 4)
        self.weight = nn.Parameter(torch.randn(3, 4, dtype=torch.cfloat))


def test_complex_weights_are_private():
    assert names(Filter()) == ["real.weight"]
    assert whys(Filter())["weight"] == ("private", "complex")


@pytest.mark.parametrize("prunable", [["real.weight", "weight"], lambda module, name, parameter: name == "weight"])
def test_complex_weights_cannot_be_selected(prunable):
    with pytest.raises(ValueError, match="prunable: 'weight' is complex"):
        find_roles(Filter(), prunable)


def test_the_projections_of_all_experts_in_one_parameter_are_prunable():
    class TinyExperts(nn.Module):
        def __init__(self):
            super().__init__()
            self.down_proj = nn.Parameter(torch.ones(2, 3, 4))
            self.gate_up_proj_bias = nn.Parameter(torch.ones(2, 3))

    kinds = {role.name: role.kind for role in find_roles(TinyExperts())}
    assert kinds == {"down_proj": "prunable", "gate_up_proj_bias": "private"}


def test_a_subclass_of_a_known_layer_has_its_role_under_any_name():
    class GatedNormLinear(nn.Linear):
        def __init__(self):
            super().__init__(4, 3)
            self.gain = nn.Parameter(torch.ones(3, 4))

    assert names(GatedNormLinear()) == ["weight"]


@pytest.mark.parametrize(
    "name",
    [
        "pos_embed",
        "position_embeddings",
        "pos_embedding",
        "position_embedding",
        "embed_positions",
        "wpe",
        "posEmbedding",
        "relative_attention_bias",
        "token_type_embeddings",
        "segment_embeddings",
    ],
)
def test_embeddings_of_positions_and_token_types_are_private(name):
    kind = "token type embedding" if "token" in name or "segment" in name else "position embedding"
    for inner, leaf in ((nn.Embedding(5, 4), "weight"), (nn.Sequential(nn.Embedding(5, 4)), "0.weight")):
        backbone = nn.ModuleDict({"body": nn.ModuleDict({name: inner})})
        assert whys(backbone) == {f"body.{name}.{leaf}": ("private", kind)}


@pytest.mark.parametrize("name", ["tokens", "places", "word_embeddings", "pos_tag_embedding", "wte", "types"])
def test_other_embeddings_are_prunable(name):
    assert names(nn.ModuleDict({name: nn.Embedding(5, 4)})) == [f"{name}.weight"]


def test_an_embedding_inside_a_module_for_positions_is_private():
    assert names(nn.ModuleDict({"positions": nn.ModuleDict({"embedding": nn.Embedding(5, 4)})})) == []
    assert names(nn.ModuleDict({"x": of_class("LearnedPositionalEmbedding", nn.Embedding, 5, 4)})) == []


def test_frozen_parameters_are_shared_even_if_selected():
    backbone = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8))
    backbone[0].weight.requires_grad_(False)
    for prunable in (None, ["*.weight"], lambda module, name, parameter: True):
        assert whys(backbone, prunable)["0.weight"] == ("shared", "requires_grad is False")
        assert "1.weight" in names(backbone, prunable=prunable)


def test_buffers_that_are_not_persistent_are_shared():
    backbone = nn.Module()
    backbone.register_buffer("mean", torch.zeros(2))
    backbone.register_buffer("index", torch.arange(3), persistent=False)
    backbone.register_buffer("again", backbone.mean)
    backbone.register_buffer("none", None)
    assert whys(backbone) == {"mean": ("private", "buffer"), "index": ("shared", "buffer that is not persistent")}


def test_patterns_select_exactly_their_matches():
    backbone = nn.Sequential(OrderedDict(a=nn.Linear(2, 2), norm=nn.LayerNorm(2), b=nn.Linear(2, 2)))
    assert names(backbone, prunable=["a.*", "norm.weight"]) == ["a.weight", "a.bias", "norm.weight"]
    assert names(backbone, prunable="b.w*") == ["b.weight"]
    assert names(backbone, prunable=[]) == []
    assert whys(backbone, ["a.weight"])["b.weight"] == ("private", "not selected")


def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest_name():
    backbone = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"'0\.wieght'.*did you mean '0\.weight'\?"):
        find_roles(backbone, ["0.weight", "0.wieght"])


def test_a_function_selects_prunable_parameters():
    backbone = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    assert names(backbone, prunable=lambda module, name, _: isinstance(module, nn.LayerNorm)) == ["1.weight", "1.bias"]


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(6, 4, padding_idx=0)
        self.decoder = nn.Linear(4, 6, bias=False)
        self.decoder.weight = self.tokens.weight


def test_tied_parameters_are_named_once():
    assert names(Tied()) == ["tokens.weight"]
    assert tied_names(Tied()) == {"decoder.weight": "tokens.weight"}
    assert names(Tied(), prunable=["decoder.*"]) == ["tokens.weight"]


def test_a_tied_parameter_is_prunable_if_one_place_is():
    backbone = nn.Sequential(nn.Linear(3, 3))
    backbone.table = backbone[0].weight
    assert tied_names(backbone) == {"0.weight": "table"}
    assert whys(backbone)["table"] == ("prunable", "weight of Linear")


def test_padding_rows_of_prunable_tables():
    backbone = nn.ModuleDict(
        {
            "words": nn.Embedding(6, 4, padding_idx=0),
            "last": nn.EmbeddingBag(6, 4, padding_idx=-1),
            "plain": nn.Embedding(6, 4),
            "positions": nn.Embedding(6, 4, padding_idx=1),
            "frozen": nn.Embedding(6, 4, padding_idx=1).requires_grad_(False),
            "normed": parametrizations.weight_norm(nn.Embedding(6, 4, padding_idx=2)),
        }
    )
    expected = {"words.weight": 0, "last.weight": 5, "normed.parametrizations.weight.original1": 2}
    assert padding_rows(backbone) == expected
    assert padding_rows(Tied()) == {"tokens.weight": 0}


def test_weight_norm_has_its_direction_prunable_and_its_scale_private():
    backbone = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3)))
    assert whys(backbone) == {
        "0.bias": ("private", "bias"),
        "0.parametrizations.weight.original0": ("private", "scale of weight_norm"),
        "0.parametrizations.weight.original1": ("prunable", "direction of weight_norm, weight of Linear"),
    }


@pytest.mark.parametrize("parametrization", [parametrizations.spectral_norm, parametrizations.orthogonal])
def test_parametrized_weights_have_their_original_prunable(parametrization):
    backbone = parametrization(nn.Conv1d(4, 4, 1))
    assert names(backbone) == ["parametrizations.weight.original"]
    assert whys(backbone)["parametrizations.weight.original"][1] == "original of the reparametrized weight of Conv1d"


def test_parametrized_attention_and_cells_are_known_layers():
    attention = parametrizations.weight_norm(nn.MultiheadAttention(4, 2), "in_proj_weight")
    assert names(attention) == ["out_proj.weight", "parametrizations.in_proj_weight.original1"]
    cell = parametrizations.spectral_norm(nn.GRUCell(3, 4), "weight_hh")
    assert names(cell) == ["weight_ih", "parametrizations.weight_hh.original"]


def test_other_parametrized_tensors_stay_private():
    class Double(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(2.0))

        def forward(self, tensor):
            return self.factor * tensor

    class Product(nn.Module):
        def forward(self, left, right):
            return left @ right

        def right_inverse(self, tensor):
            return tensor, torch.eye(tensor.shape[1])

    backbone = nn.Linear(4, 3)
    parametrize.register_parametrization(backbone, "bias", Double())
    parametrize.register_parametrization(backbone, "weight", Product())
    assert whys(backbone) == {
        "parametrizations.bias.original": ("private", "bias"),
        "parametrizations.bias.0.factor": ("private", "factor of Double, not a layer's weight"),
        "parametrizations.weight.original0": ("private", "part of a parametrization"),
        "parametrizations.weight.original1": ("private", "part of a parametrization"),
    }
    table = nn.ModuleDict({"positions": parametrizations.weight_norm(nn.Embedding(5, 4))})
    assert names(table) == []


def old(function, *args, **options):
    """Call a deprecated torch function without its warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return function(*args, **options)


def test_old_weight_norm_and_spectral_norm():
    normed = old(nn.utils.weight_norm, nn.Linear(4, 3))
    assert names(normed) == ["weight_v"]
    assert whys(normed)["weight_g"] == ("private", "scale of weight_norm")
    spectral = old(nn.utils.spectral_norm, nn.Linear(4, 1))
    assert names(spectral) == ["weight_orig"]
    assert whys(spectral)["weight_u"] == ("private", "buffer")
    recurrent = old(nn.utils.weight_norm, nn.LSTM(3, 4), "weight_hh_l0")
    assert names(recurrent) == ["weight_ih_l0", "weight_hh_l0_v"]
    assert names(old(nn.utils.weight_norm, nn.Linear(4, 3), "bias")) == ["weight"]


def test_weights_pruned_by_torch_have_their_original_prunable():
    layer = prune.l1_unstructured(nn.Linear(5, 1), "weight", 0.5)
    assert names(layer) == ["weight_orig"]


class Listed(nn.Module):
    def __init__(self, alias):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.weights = alias(self.layer.weight)


@pytest.mark.parametrize(
    "alias",
    [lambda p: [p], lambda p: (1, {"a": {p}}), lambda p: {p: 0}, lambda p: OrderedDict(a=[[p]])],
    ids=["list", "nested", "key", "ordered"],
)
def test_an_alias_in_a_container_is_refused_by_name(alias):
    with pytest.raises(ValueError, match=r"'0\.layer\.weight'.*'0\.weights' of Listed"):
        check_aliases(nn.Sequential(Listed(alias)))


def test_an_alias_in_an_attribute_or_a_buffer_is_refused():
    backbone = Listed(lambda parameter: None)
    backbone.__dict__["weight"] = backbone.layer.weight
    with pytest.raises(ValueError, match=r"'layer\.weight'.*'weight' of Listed"):
        check_aliases(backbone)
    backbone = Listed(lambda parameter: None)
    backbone.register_buffer("copy", backbone.layer.weight)
    with pytest.raises(ValueError, match=r"'layer\.weight'.*buffer 'copy'"):
        check_aliases(backbone)


def test_other_attributes_are_no_aliases():
    endless = []
    endless.append(endless)
    backbone = Listed(lambda parameter: [parameter.detach(), endless, "text"])
    backbone.modules_of_mine = [backbone.layer]
    for module in (backbone, Tied(), nn.LSTM(3, 4), nn.ParameterList([torch.ones(2)]), nn.MultiheadAttention(4, 2)):
        check_aliases(module)
    check_aliases(nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3)), nn.ParameterDict({"a": torch.ones(2)})))
    check_aliases(old(nn.utils.weight_norm, nn.Linear(4, 3)))
    check_aliases(old(nn.utils.spectral_norm, nn.Linear(4, 3)))


def test_an_alias_beside_a_recurrent_layers_own_list_is_refused():
    backbone = nn.LSTM(3, 4)
    backbone.mine = [backbone.weight_ih_l0]
    with pytest.raises(ValueError, match=r"'weight_ih_l0'.*'mine' of LSTM"):
        check_aliases(backbone)


def test_a_lazy_module_needs_a_forward_pass_first():
    backbone = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"'0\.weight'.*one forward pass"):
        find_roles(backbone)
    backbone(torch.zeros(1, 2))
    assert names(backbone) == ["0.weight"]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_torchscript_is_refused_by_name():
    with pytest.raises(ValueError, match="'0' is TorchScript"):
        find_roles(nn.Sequential(torch.jit.script(nn.Linear(2, 2))))


def test_resnet18_has_prunable_convolutions_and_head():
    backbone = torchvision.models.resnet18()
    matrices = [name for name, parameter in backbone.named_parameters() if parameter.dim() >= 2]
    assert names(backbone) == matrices
    assert len(matrices) == 21  # 1 + 16 + 3 shortcuts, and the head


def test_vit_has_its_class_token_and_positions_private():
    backbone = VisionTransformer(32, 16, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16)
    layer = "encoder.layers.encoder_layer_0"
    attention = [f"{layer}.self_attention.in_proj_weight", f"{layer}.self_attention.out_proj.weight"]
    mlp = [f"{layer}.mlp.0.weight", f"{layer}.mlp.3.weight"]
    assert names(backbone) == ["conv_proj.weight", *attention, *mlp, "heads.head.weight"]
    assert whys(backbone)["encoder.pos_embedding"] == ("private", "position embedding")


def test_convnext_has_its_layer_scales_private():
    with torch.device("meta"):
        backbone = torchvision.models.convnext_tiny()
    private = [name for name in names(backbone, "private") if "layer_scale" in name]
    assert len(private) == 18
    assert not [name for name in names(backbone) if not name.endswith("weight")]


def test_swin_has_its_relative_positions_private():
    backbone = SwinTransformer([4, 4], embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=[4, 4])
    table = "features.1.0.attn.relative_position_bias_table"
    assert whys(backbone)[table] == ("private", "position embedding")
    assert [name for name in names(backbone) if name.startswith("features.1.0.attn")] == [
        "features.1.0.attn.qkv.weight",
        "features.1.0.attn.proj.weight",
    ]


@pytest.mark.filterwarnings("ignore")
def test_timm_models():
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        backbone = timm.create_model("beit_base_patch16_224")
    assert {role.why for role in find_roles(backbone) if role.kind == "prunable"} == {
        "weight of Conv2d",
        "weight of Linear",
    }
    assert whys(backbone)["cls_token"][0] == whys(backbone)["blocks.0.gamma_1"][0] == "private"


@pytest.mark.filterwarnings("ignore")
def test_transformers_models():
    transformers = pytest.importorskip("transformers")
    backbone = transformers.GPT2Model(transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=5))
    layers = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
    assert names(backbone) == ["wte.weight", *(f"h.0.{layer}.weight" for layer in layers)]
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    bert = whys(transformers.BertModel(transformers.BertConfig(**small, vocab_size=5)))
    assert bert["embeddings.position_embeddings.weight"] == ("private", "position embedding")
    assert bert["embeddings.token_type_embeddings.weight"] == ("private", "token type embedding")
    assert bert["embeddings.word_embeddings.weight"] == ("prunable", "weight of Embedding")


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_an_embedding_that_scales_its_rows_is_refused(kind):
    backbone = nn.Sequential(OrderedDict(words=kind(6, 4, max_norm=1.5)))
    with pytest.raises(ValueError, match=says(f"max_norm of words ({kind.__name__})", value=1.5)):
        name_tensors(backbone)
