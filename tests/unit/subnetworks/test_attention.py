"""Attention computed from its parts is torch's."""

import copy

import pytest
import torch
from torch import nn

from msh.subnetworks import Blocks, Budget, MultiSubnetwork, prune
from msh.subnetworks.attention import FewHeads, TrainedAttention


def few_heads(kept, **how):
    """Make an attention, and its copy with some of the heads, whose others have no weights."""
    torch.manual_seed(0)
    whole = nn.MultiheadAttention(12, 4, **how).double()
    rows = torch.zeros(3, 4, 3, dtype=torch.bool)
    rows[:, kept] = True
    with torch.no_grad():
        whole.in_proj_weight[~rows.flatten()] = 0.0
        whole.out_proj.weight[:, ~rows[0].flatten()] = 0.0
    small = copy.deepcopy(whole)
    small.__class__ = FewHeads
    vars(small)["heads"] = torch.tensor(kept)
    small.in_proj_weight = nn.Parameter(whole.in_proj_weight[rows.flatten()])
    if whole.in_proj_bias is not None:
        small.in_proj_bias = nn.Parameter(whole.in_proj_bias[rows.flatten()])
    small.out_proj.weight = nn.Parameter(whole.out_proj.weight[:, rows[0].flatten()])
    return whole.eval(), small.eval()


@pytest.mark.parametrize("how", [{}, {"batch_first": True}, {"bias": False}])
def test_attention_with_some_heads_is_the_whole_one_whose_others_read_nothing(how):
    whole, small = few_heads([1, 3], **how)
    queries, keys = torch.randn(5, 2, 12).double(), torch.randn(7, 2, 12).double()
    if "batch_first" in how:
        queries, keys = queries.transpose(0, 1), keys.transpose(0, 1)
    generator = torch.Generator().manual_seed(1)
    among = torch.rand(5, 7, generator=generator) < 0.3
    among[:, 0] = False
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[1, 4:] = True
    for settings in (
        {},
        {"attn_mask": among},
        {"attn_mask": torch.randn(5, 7).double()},
        {"attn_mask": torch.randn(8, 5, 7).double()},
        {"key_padding_mask": padding},
        {"key_padding_mask": padding, "attn_mask": among},
    ):
        expected = whole(queries, keys, keys, need_weights=False, **settings)
        answer = small(queries, keys, keys, need_weights=False, **settings)
        torch.testing.assert_close(answer, expected)
    one = queries[0] if "batch_first" in how else queries[:, 0]
    causal = {"attn_mask": nn.Transformer.generate_square_subsequent_mask(5).double(), "is_causal": True}
    for settings in ({}, causal):
        expected = whole(one, one, one, need_weights=False, **settings)
        torch.testing.assert_close(small(one, one, one, need_weights=False, **settings), expected)
    with pytest.raises(ValueError, match="need_weights=False"):
        small(one, one, one)


class Attends(nn.Module):
    """Self-attention, and attention to other tokens, large enough for products with blocks."""

    input_shape, features = (9, 256), 256

    def __init__(self, **how):
        super().__init__()
        self.own, self.other = (nn.MultiheadAttention(256, 4, **how) for _ in range(2))
        self.settings = {"need_weights": False}

    def forward(self, tokens):
        turned = tokens if self.own.batch_first else tokens.transpose(0, 1)
        hidden, *_ = self.own(turned, turned, turned, **self.settings)
        hidden, *_ = self.other(turned, hidden, hidden, need_weights=False)
        return hidden.mean(1 if self.own.batch_first else 0)


def network_of_blocks(**how):
    """Make a network with a compact task of blocks, in float64."""
    torch.manual_seed(0)
    network = MultiSubnetwork(Attends(**how).double())
    kind = Blocks.of(network)
    network.add_task("a", nn.Linear(256, 3).double(), granularity="block", blocks=kind.sizes)
    network.begin("a")
    prune(network, "a", Budget(density=0.1).counts(kind.counts(network.sizes()), {}), granularity=kind)
    network.compact("a")
    return network.train()


def outputs_and_gradients(network, settings):
    """Compute a batch and return the outputs, and the gradients of the input and of all parameters."""
    network.module("a").backbone.settings = {"need_weights": False} | settings
    tokens = torch.randn(8, 9, 256, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
    outputs = network(tokens, "a")
    outputs.square().sum().backward()
    parameters = dict(network.named_parameters())
    grads = {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}
    network.zero_grad()
    return outputs.detach(), tokens.grad, grads


def causal():
    return {"attn_mask": nn.Transformer.generate_square_subsequent_mask(9).double(), "is_causal": True}


@pytest.mark.parametrize("how", [{}, {"batch_first": True}, {"bias": False}])
@pytest.mark.parametrize("settings", [{}, causal(), {"key_padding_mask": torch.arange(9).expand(8, 9) > 6}])
def test_attention_trains_with_a_projection_in_blocks(monkeypatch, how, settings):
    network, counted = network_of_blocks(**how), []
    module = network.module("a").backbone
    assert type(module.own) is type(module.other) is TrainedAttention
    for cls in (nn.MultiheadAttention, TrainedAttention):
        forward = cls.forward

        def seen(self, *args, cls=cls, forward=forward, **kwargs):
            counted.append((cls.__name__, self is module.own))
            return forward(self, *args, **kwargs)

        monkeypatch.setattr(cls, "forward", seen)
    ours = outputs_and_gradients(network, settings)
    assert ("MultiheadAttention", True) not in counted  # in blocks
    assert ("MultiheadAttention", False) in counted  # attention to other tokens stays torch's
    monkeypatch.setattr("msh.subnetworks.attention.costs_less", lambda *_: False)
    whole = outputs_and_gradients(network, settings)
    assert ("MultiheadAttention", True) in counted
    torch.testing.assert_close(ours, whole)


@pytest.mark.parametrize(
    ("how", "settings"), [({"add_bias_kv": True}, {}), ({"add_zero_attn": True}, {}), ({}, {"need_weights": True})]
)
def test_attention_with_more_keys_or_with_its_weights_is_torchs(how, settings):
    network = network_of_blocks(batch_first=True, **how)
    network.module("a").backbone.settings |= settings
    tokens = torch.randn(8, 9, 256).double()
    trained = network.module("a")(tokens)
    network.freeze("a")
    torch.testing.assert_close(network(tokens, "a"), trained)


def test_a_compiled_module_computes_the_same():
    network = network_of_blocks(batch_first=True)
    tokens = torch.randn(8, 9, 256).double()
    eager = network.module("a")(tokens)
    torch.testing.assert_close(torch.compile(network.module("a"), backend="aot_eager")(tokens), eager)
