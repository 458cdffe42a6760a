"""Tasks that answer each token: the backbone must return a vector per token, and for language models be causal."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from messages import says
from msh.backbones import Adapted
from msh.backbones.transformer import Transformer
from msh.subnetworks import MultiSubnetwork
from msh.tasks import build_task
from msh.tasks.text import texts
from msh.training.build import backbone_recipe, check_inputs, check_kinds, check_tokens

SMALL = {"vocab_size": 40, "attn_implementation": "eager"}
GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 8} | SMALL
BERT = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
} | SMALL


@pytest.fixture
def task(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("".join(f"word{i} is after word{i - 1}\n" for i in range(20)))
    return build_task("a", texts(str(path), kind="lm", length=8, vocabulary=30))


class Recurrent(nn.Module):
    """A vector per token, from the tokens before it, or from all."""

    def __init__(self, both_ways=False, gate=1.0):
        super().__init__()
        self.words = nn.Embedding(40, 8)
        self.past = nn.GRU(8, 8, batch_first=True)
        self.future = nn.GRU(8, 8, batch_first=True)
        self.gate = nn.Parameter(torch.tensor(gate))
        self.both_ways = both_ways

    def forward(self, tokens):
        vectors = self.words(tokens)
        outputs = self.past(vectors)[0]
        if self.both_ways:
            outputs = outputs + self.gate * self.future(vectors.flip(1))[0].flip(1)
        return outputs


class NextWord(nn.Module):
    """Reads one token ahead."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(40, 8)

    def forward(self, tokens):
        return self.words(tokens) + torch.cat([self.words(tokens[:, 1:]), self.words(tokens[:, :1])], 1)


def hf(config):
    from msh.backbones.libraries import hf_model

    return hf_model(config)


def adapted(model):
    torch.manual_seed(0)
    return Adapted(model, (8,), "tokens", 40)


@pytest.mark.parametrize("model", [lambda: hf(GPT2), Recurrent], ids=["gpt2", "recurrent"])
def test_a_causal_backbone_is_accepted_and_stays_as_it_was(task, model):
    backbone = adapted(model())
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    check_inputs(backbone, task)
    check_tokens(backbone, task)
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.state_dict().items())
    assert backbone(task.splits["val"].inputs[:3]).shape == (3, 8, backbone.features)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (lambda: hf(BERT), "BertModel"),
        (lambda: Recurrent(True), "Recurrent"),
        (lambda: Recurrent(True, gate=0.0), "Recurrent"),  # would leak once the gate has learned to
        (NextWord, "NextWord"),
    ],
    ids=["bert", "both_ways", "closed_gate", "next_word"],
)
def test_a_backbone_that_sees_later_tokens_is_refused_by_name_and_kind(task, model, name):
    with pytest.raises(ValueError, match=rf"task 'a' is of kind lm, and the backbone {name} is not causal"):
        check_tokens(adapted(model()), task)


def test_the_projects_own_transformer_is_refused_too(task):
    with pytest.raises(ValueError, match="backbone Transformer is not causal"):
        check_tokens(Transformer((8,), 40, 16, 2, 16, pooling="tokens"), task)
    check_tokens(Transformer((8,), 40, 16, 2, 16, pooling="tokens"), replace(task, kind="token_classification"))


def test_a_backbone_with_one_vector_per_text_is_refused(task):
    with pytest.raises(ValueError, match=r"answers each token, and the backbone Transformer returns \[1, 16\]"):
        check_tokens(Transformer((8,), 40, 16, 2, 16), task)


def test_a_backbone_that_reads_numbers_is_refused_and_so_is_a_stem(task):
    from msh.backbones.mlp import MLP

    with pytest.raises(ValueError, match=r"task 'a' is of kind lm.* MLP reads numbers"):
        check_inputs(MLP((4,), 8, 1), task)
    stem = {"_target_": "msh.tasks.stems.TokenStem"}
    with pytest.raises(ValueError, match=says(r"tasks.a.stem", value=stem)):
        check_inputs(MLP((4,), 8, 1), replace(task, stem=stem))


def recipe(task, **backbone):
    config = SimpleNamespace(backbone=backbone, trainer=SimpleNamespace(precision="32-true"))
    return backbone_recipe(config, {t.name: t for t in (task if isinstance(task, list) else [task])})


def test_the_backbone_is_told_to_pool_nothing(task):
    settings = {"_target_": "msh.backbones.Adapted", "library": "hf", "name": "gpt2", "args": {"vocab_size": 40}}
    for pool in ("mean", "none", "tokens", None):
        assert recipe(task, **settings, pool=pool)["pool"] == "tokens"
    with pytest.raises(ValueError, match=says("backbone.pool", value="last")):
        recipe(task, **settings, pool="last")
    own = {"_target_": "msh.backbones.transformer.Transformer", "pooling": "mean"}
    assert recipe(task, **own)["pooling"] == "tokens"
    with pytest.raises(ValueError, match=says("backbone.pooling", value="max")):
        recipe(task, **own | {"pooling": "max"})


def test_tasks_of_texts_and_of_tokens_cannot_share_a_backbone(task):
    other = replace(task, name="b", kind="classification")
    message = r"tasks 'b' \(classification\) and 'a' \(lm\) cannot share a backbone"
    with pytest.raises(ValueError, match=message):
        recipe([task, other], _target_="msh.backbones.transformer.Transformer", pooling="mean")
    check_kinds({"a": task}, {"c": {"outputs": {"kind": "lm"}}})
    check_kinds({"b": other}, {"c": {"outputs": {"kind": "regression"}}})
    with pytest.raises(ValueError, match=message):
        check_kinds({"b": other}, {"a": {"outputs": {"kind": "lm"}}})
    with pytest.raises(ValueError, match=message):
        check_kinds({"a": task}, {"b": {"outputs": {"kind": "classification"}}})


def test_a_network_has_a_head_per_token(task):
    network = MultiSubnetwork(adapted(Recurrent()))
    network.add_task("a", task.build_head(8))
    network.begin("a")
    assert network(task.splits["val"].inputs[:2], "a").shape == (2, 8, task.outputs)
