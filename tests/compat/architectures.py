"""Tiny forms of architectures, each as a config names it."""

from dataclasses import dataclass, field
from typing import Any

from torch import nn

TEXT = {"vocab_size": 50, "pad_token_id": 0}
BERT = TEXT | {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
LLAMA = BERT | {"num_key_value_heads": 2}
VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
PATCHES = VIT | {"patch_size": 8}


@dataclass(frozen=True)
class Architecture:
    """A backbone as `Named` takes it, and its inputs.

    Attributes:
        name: for people.
        settings: of `Named`.
        shape: one example's.
        quick: checked by `make test`; the others by `make compat`.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = (3, 32, 32)
    quick: bool = False

    def __str__(self) -> str:
        return self.name


class Recurrent(nn.Module):
    """One of torch's recurrent layers over (batch, time, 6)."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer = getattr(nn, kind)(6, 12, num_layers=2, batch_first=True)

    def forward(self, inputs):
        return self.layer(inputs)


class Encoder(nn.Module):
    """Torch's transformer encoder over (batch, time, 8)."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, inputs):
        return self.encoder(inputs)


class Convolutions(nn.Module):
    """Convolutions over one, two or three axes, with groups, normalised weights and a transposed one."""

    def __init__(self, axes: int) -> None:
        super().__init__()
        conv, back = getattr(nn, f"Conv{axes}d"), getattr(nn, f"ConvTranspose{axes}d")
        self.layers = nn.Sequential(
            conv(2, 8, 3, padding=1),
            nn.GroupNorm(2, 8),
            nn.GELU(),
            conv(8, 8, 3, padding=1, groups=2),
            nn.ReLU(),
            nn.utils.parametrizations.weight_norm(conv(8, 8, 1)),
            back(8, 6, 2),
        )

    def forward(self, inputs):
        return self.layers(inputs)


class Mixer(nn.Module):
    """Bilinear layer, sum of embeddings, and a tied matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 8, padding_idx=0)
        self.bilinear = nn.Bilinear(8, 8, 8)
        self.back = nn.Linear(8, 50, bias=False)
        self.back.weight = self.words.weight

    def forward(self, tokens):
        words = self.words(tokens)
        return self.back(self.bilinear(words, words.roll(1, 1)))


def _timm(name: str, quick: bool = False, **args: Any) -> Architecture:
    return Architecture(name, {"library": "timm", "name": name, "args": args}, quick=quick)


def _torchvision(name: str, side: int = 32, quick: bool = False, **args: Any) -> Architecture:
    return Architecture(name, {"library": "torchvision", "name": name, "args": args}, (3, side, side), quick)


def _hf(name: str, shape: tuple[int, ...], quick: bool = False, **args: Any) -> Architecture:
    return Architecture(name, {"library": "hf", "name": name, "args": args}, shape, quick)


def _own(name: str, module: type[nn.Module], shape: tuple[int, ...], quick: bool = False, **args: Any) -> Architecture:
    extra = {"vocabulary": 50} if module is Mixer else {}
    return Architecture(name, {"target": f"{__name__}.{module.__name__}", "args": args, **extra}, shape, quick)


ARCHITECTURES = {
    "torch": [
        _own("LSTM", Recurrent, (5, 6), quick=True, kind="LSTM"),
        _own("GRU", Recurrent, (5, 6), kind="GRU"),
        _own("RNN", Recurrent, (5, 6), kind="RNN"),
        _own("TransformerEncoder", Encoder, (5, 8), quick=True),
        _own("1-d convolutions", Convolutions, (2, 9), axes=1),
        _own("2-d convolutions", Convolutions, (2, 6, 6), quick=True, axes=2),
        _own("3-d convolutions", Convolutions, (2, 4, 4, 4), axes=3),
        _own("Bilinear, tied Embedding", Mixer, (6,), quick=True),
    ],
    "torchvision": [
        _torchvision("squeezenet1_1", quick=True),
        _torchvision("mobilenet_v3_small", quick=True),
        _torchvision("shufflenet_v2_x0_5"),
        _torchvision("mnasnet0_5"),
        _torchvision("resnet18"),
        _torchvision("regnet_y_400mf"),
    ],
    "timm": [
        _timm("test_resnet", quick=True),
        _timm("test_vit", quick=True),
        _timm("test_efficientnet"),
        _timm("test_convnext"),
        _timm("test_byobnet"),
        _timm("test_mambaout"),
        _timm("vit_tiny_patch16_224", depth=1),
        _timm("cait_xxs24_224", depth=1, depth_token_only=1),
        _timm("xcit_nano_12_p8_224", depth=1),
        _timm("mobilevitv2_050"),
    ],
    "transformers": [
        _hf("bert", (6,), quick=True, **BERT),
        _hf("distilbert", (6,), **TEXT, dim=16, n_layers=1, n_heads=2, hidden_dim=24),
        _hf("roberta", (6,), **BERT),
        _hf("albert", (6,), **BERT, embedding_size=8),
        _hf("electra", (6,), **BERT, embedding_size=8),
        _hf("deberta-v2", (6,), **BERT),
        _hf("gpt2", (6,), quick=True, vocab_size=50, n_embd=16, n_layer=1, n_head=2),
        _hf("llama", (6,), quick=True, **LLAMA),
        _hf("qwen2", (6,), **LLAMA),
        _hf("opt", (6,), **TEXT, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=24,
            word_embed_proj_dim=16),
        _hf("t5", (6,), **TEXT, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2),
        _hf("mixtral", (6,), **LLAMA, num_local_experts=2),
        _hf("vit", (3, 32, 32), quick=True, **PATCHES),
        _hf("dinov2", (3, 32, 32), **{key: PATCHES[key] for key in PATCHES if key != "intermediate_size"}),
        _hf("deit", (3, 32, 32), **PATCHES),
        _hf("beit", (3, 32, 32), **PATCHES),
        _hf("convnext", (3, 32, 32), hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1]),
        _hf("resnet", (3, 32, 32), embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1]),
    ],
}  # fmt: skip
"""By library."""
