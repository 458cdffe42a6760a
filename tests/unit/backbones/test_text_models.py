"""GPT-2- and BERT-like models from a config: padding changes no answer, wherever it is and however long."""

import pytest
import torch

from msh.backbones import Adapted
from msh.backbones.libraries import Tokens, hf_config, hf_model
from msh.backbones.named import Named

pytest.importorskip("transformers", reason="needs msh[hf]")

MODELS = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "bert": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16},
    "roberta": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 16},
}
PADDING = 1
"""RoBERTa's, whose positions count from it."""
TEXTS = [[5, 6, 7, 8, 9], [11, 12], [20]]


def built(name, length, pool, **settings):
    torch.manual_seed(0)
    chosen = Named(library="hf", name=name, args=MODELS[name] | {"vocab_size": 40}, pool=pool)
    inputs = Tokens(40, 32, padding=PADDING)
    from msh.recipes import build

    return build({**chosen.recipe((length,), inputs), **settings}).eval()


def padded(length, left=False):
    rows = [[PADDING] * (length - len(text)) for text in TEXTS]
    pairs = zip(rows, TEXTS, strict=True)
    return torch.tensor([filler + text if left else text + filler for filler, text in pairs])


@pytest.mark.parametrize("pool", ["mean", "last", "cls"])
@pytest.mark.parametrize("name", MODELS)
def test_the_length_and_the_side_of_padding_change_nothing(name, pool):
    short = built(name, 5, pool)
    with torch.no_grad():
        expected = short(padded(5))
        for other in (built(name, 12, pool)(padded(12)), short(padded(5)[:, :5])):
            assert torch.allclose(other, expected, atol=1e-5)
        for length in (5, 12):
            left = built(name, length, pool, left_padded=True)
            assert torch.allclose(left(padded(length, left=True)), expected, atol=1e-5)
            assert torch.allclose(left(padded(length)), expected, atol=1e-5)
        alone = torch.cat([short(torch.tensor([text])) for text in TEXTS])
        assert torch.allclose(alone, expected, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_pooling_takes_the_tokens_it_says(name):
    tokens = built(name, 8, "tokens")
    with torch.no_grad():
        vectors = tokens(padded(8))  # (texts, tokens, width)
        assert vectors.shape == (3, 8, 16)
        assert tokens.features == 16
        last = torch.stack([row[len(text) - 1] for row, text in zip(vectors, TEXTS, strict=True)])
        mean = torch.stack([row[: len(text)].mean(0) for row, text in zip(vectors, TEXTS, strict=True)])
        for pool, expected in (("last", last), ("mean", mean), ("cls", vectors[:, 0])):
            assert torch.allclose(built(name, 8, pool)(padded(8)), expected, atol=1e-6), pool


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_what_stands_for_padding_does_not_matter(name):
    """The vector of the padding token is read by nobody."""
    backbone = built(name, 8, "mean")
    with torch.no_grad():
        before = backbone(padded(8))
        table = backbone.model.get_input_embeddings().weight
        table[PADDING] = 9.0
        assert torch.allclose(backbone(padded(8)), before, atol=1e-5)


def test_a_model_that_takes_no_mask_is_pooled_without_padding():
    class Bag(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.words = torch.nn.Embedding(40, 4)

        def forward(self, tokens):
            return self.words(tokens)

    bag = Adapted(Bag(), (5,), "mean", 40, PADDING)
    words = bag.model.words.weight
    assert torch.allclose(bag(padded(5))[1], words[[11, 12]].mean(0))


def test_special_tokens_beyond_a_small_vocabulary_are_left_out():
    config = hf_config("gpt2", {"vocab_size": 40, "n_embd": 16, "n_layer": 1, "n_head": 2})
    assert (config["bos_token_id"], config["eos_token_id"]) == (None, None)
    assert hf_model(config).config.eos_token_id is None
    assert hf_config("gpt2", {"n_layer": 1})["eos_token_id"] == 50256
    assert hf_config("gpt2", {"vocab_size": 40, "eos_token_id": 3})["eos_token_id"] == 3
