"""Read and write texts: a text's loss, the choice of the next token, continuations; by a model made by hand."""

import math
from collections import Counter

import pytest
import torch
from torch import nn

from messages import says
from msh.inference.language import Sampling, continued, text_losses
from msh.tasks.tokens import Texts
from msh.tasks.windows import NextTokens

CPU = torch.device("cpu")
WORDS = ["a b c", "b c a", "c a b"]
"""Token ids: 0 padding, 1 unknown, 2 begin, 3 end, 4 a, 5 b, 6 c."""


def step_of(length=4):
    tokenizer = Texts(WORDS, 20, length).tokenizer(torch.arange(3), "lm")
    return NextTokens(tokenizer.to_str(), length, 0)


class Table(nn.Module):
    """The next token depends on the last one alone: log-probabilities (token, next token)."""

    def __init__(self, **following):
        super().__init__()
        self.logits = torch.full((7, 7), -20.0)
        ids = {"begin": 2, "end": 3, "a": 4, "b": 5, "c": 6, "padding": 0, "unknown": 1}
        for name, chances in following.items():
            for other, chance in chances.items():
                self.logits[ids[name], ids[other]] = math.log(chance)

    def forward(self, tokens):
        return self.logits[tokens]


def test_the_loss_of_a_text_is_the_mean_over_its_tokens_in_all_its_windows():
    model = Table(begin={"a": 0.5, "b": 0.5}, a={"b": 0.25, "c": 0.75}, b={"a": 1.0}, c={"end": 1.0})
    windows = step_of().windows(["a b a b a c", "a c"])
    losses = text_losses(model, windows, 1, CPU)
    assert losses.dtype == torch.float64
    expected = [(math.log(2) + 2 * math.log(4) + math.log(4 / 3)) / 7, (math.log(2) + math.log(4 / 3)) / 3]
    assert losses.tolist() == pytest.approx(expected, abs=1e-6)
    assert torch.equal(text_losses(model, windows, 9, CPU), losses)


def test_the_most_probable_token_is_chosen_until_the_end():
    model = Table(begin={"a": 0.6, "b": 0.4}, a={"b": 0.6, "c": 0.4}, b={"c": 1.0}, c={"end": 0.7, "a": 0.3})
    greedy = Sampling(9, temperature=0)
    assert continued(model, step_of(), ["", "c a", "b"], greedy, CPU) == ["a b c", "c a b c", "b c"]
    assert continued(model, step_of(), [""], Sampling(2, temperature=0), CPU) == ["a b"]


def test_texts_longer_than_a_window_are_continued():
    model = Table(begin={"a": 1.0}, a={"b": 1.0}, b={"a": 1.0})
    assert continued(model, step_of(2), ["a b a b a b"], Sampling(5, 0), CPU) == ["a b a b a b a b a b a"]


def test_padding_unknown_words_and_beginnings_are_never_written():
    most = {"padding": 0.3, "unknown": 0.3, "begin": 0.3, "a": 0.1}
    model = Table(begin=most, a=most)
    assert continued(model, step_of(), [""], Sampling(3, 0), CPU) == ["a a a"]
    assert continued(model, step_of(), [""], Sampling(3, 1.0), CPU) == ["a a a"]


def test_draws_follow_from_the_seed_and_from_the_prompts_place():
    even = {"a": 0.5, "b": 0.5}
    model = Table(begin=even, a=even, b=even)
    texts = continued(model, step_of(), ["", "", "a"], Sampling(20, seed=1), CPU)
    assert texts == continued(model, step_of(), ["", "", "a"], Sampling(20, seed=1), CPU)
    assert texts[:1] == continued(model, step_of(), [""], Sampling(20, seed=1), CPU)  # whatever the others are
    assert texts[0] != texts[1]
    assert texts != continued(model, step_of(), ["", "", "a"], Sampling(20, seed=2), CPU)


def test_tokens_are_drawn_by_their_probability():
    model = Table(begin={"a": 0.8, "b": 0.15, "c": 0.05})

    def shares(**settings):
        found = Counter(continued(model, step_of(), [""] * 2000, Sampling(1, **settings), CPU))
        return [found[word] / 2000 for word in "abc"]

    assert shares() == pytest.approx([0.8, 0.15, 0.05], abs=0.03)
    squared = [0.64, 0.0225, 0.0025]
    assert shares(temperature=0.5) == pytest.approx([p / sum(squared) for p in squared], abs=0.03)
    assert shares(top_k=2) == pytest.approx([0.8 / 0.95, 0.15 / 0.95, 0], abs=0.03)
    assert shares(top_k=1) == [1, 0, 0]


@pytest.mark.parametrize(
    ("settings", "bound"),
    [
        ({"max_new_tokens": 0}, ">= 1"),
        ({"temperature": -0.1}, ">= 0"),
        ({"temperature": math.nan}, ">= 0"),
        ({"top_k": 0}, ">= 1"),
        ({"seed": -1}, ">= 0"),
    ],
)
def test_settings_out_of_bounds_are_refused(settings, bound):
    [(key, value)] = settings.items()
    with pytest.raises(ValueError, match=says(key, bound, value)):
        Sampling(**settings)


def test_without_a_mark_of_the_beginning_a_prompt_needs_a_token(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    step = NextTokens(tokenizer.to_str(), 4, 3)

    def model(tokens):
        return torch.tensor([0.0, 1.0, 2.0, 9.0]).expand(*tokens.shape, 4)

    assert continued(model, step, ["a"], Sampling(2, 0), CPU) == ["a b b"]
    with pytest.raises(ValueError, match=says("prompt", value="")):
        continued(model, step, ["a", ""], Sampling(2, 0), CPU)
    with pytest.raises(ValueError, match=says("inputs", "texts", 7)):
        continued(model, step, [7], Sampling(2, 0), CPU)
