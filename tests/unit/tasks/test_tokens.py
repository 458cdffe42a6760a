"""Tokenizers of Hugging Face's library, Unicode, and counts of tokens that are cut or unknown."""

import json
import logging
import unicodedata

import pytest
import torch
from tokenizers import Tokenizer

from msh.backbones.transformer import Transformer
from msh.tasks import RawData, Split, build_task
from msh.tasks.preprocessing import prepare, steps_from_data, steps_to_data
from msh.tasks.stems import TokenStem
from msh.tasks.steps import Tokenize
from msh.tasks.tokens import Texts, count_tokens, read_tokenizer
from tokenizer_files import byte_pairs, saved, unigrams, word_pieces

TEXTS = ["the film is good", "a café", "bad", "naïve, bad and well made " * 4]
ROWS = torch.arange(4)


def tokens(texts, rows=ROWS):
    """Tokenize with the recipe, after it has passed through a file."""
    steps = json.loads(json.dumps(steps_to_data((Tokenize(texts.tokenizer(rows).to_str()),))))
    return prepare(steps_from_data(steps), texts.texts)


@pytest.mark.parametrize("make", [byte_pairs, word_pieces, unigrams])
def test_tokens_are_those_of_the_library(make, tmp_path):
    path = make(tmp_path)
    texts = Texts(TEXTS, None, 20, read_tokenizer(path))
    library = Tokenizer.from_file(path)
    if make is byte_pairs:
        library.model.dropout = None
    library.no_padding()
    library.no_truncation()
    read = tokens(texts)
    assert read.shape == (4, 20)
    assert texts.ids > read.max()
    for row, text in zip(read.tolist(), TEXTS[:3], strict=False):
        ids = library.encode(text).ids
        padding = [texts.padding] * (20 - len(ids))
        assert row == (padding + ids if make is word_pieces else ids + padding)


def test_padding_is_the_files_a_known_name_or_a_new_id(tmp_path):
    assert read_tokenizer(word_pieces(tmp_path)).padding == 3
    assert read_tokenizer(byte_pairs(tmp_path)).padding == 1
    assert read_tokenizer(unigrams(tmp_path)).padding == 0
    file = read_tokenizer(byte_pairs(tmp_path, padding=None))
    known = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).get_vocab_size()
    assert (file.padding, file.vocabulary) == (known, known + 1)
    assert tokens(Texts(["good"], None, 30, file), ROWS[:1])[0, -1] == known


def test_random_merges_are_switched_off(tmp_path):
    texts = Texts(TEXTS * 50, None, 40, read_tokenizer(byte_pairs(tmp_path)))
    read = tokens(texts)
    assert torch.equal(read, read[:4].repeat(50, 1))


def test_texts_that_are_too_long_keep_the_added_tokens(tmp_path):
    texts = Texts(TEXTS, None, 5, read_tokenizer(byte_pairs(tmp_path)))
    read = tokens(texts)
    library = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    start, end = library.token_to_id("<s>"), library.token_to_id("</s>")
    assert read[3, [0, -1]].tolist() == [start, end]


@pytest.mark.parametrize(("unicode", "form"), [("NFC", "NFC"), ("NFKC", "NFC"), ("NFD", "NFD"), ("none", "NFD")])
def test_unicode_is_normalized_before_the_tokenizers_own_steps(unicode, form, tmp_path):
    path = byte_pairs(tmp_path, dropout=None)
    decomposed = unicodedata.normalize("NFD", "\u00fc")
    read = tokens(Texts([decomposed], None, 9, read_tokenizer(path), unicode), ROWS[:1])[0]
    ids = Tokenizer.from_file(path).encode(unicodedata.normalize(form, decomposed)).ids
    assert read[: len(ids)].tolist() == ids
    assert len(ids) == (4 if form == "NFC" else 5)  # bytes in UTF-8, and both ends


def test_words_in_two_spellings_of_unicode_are_one_unless_you_say_otherwise():
    composed, decomposed = (unicodedata.normalize(form, "Café") for form in ("NFC", "NFD"))
    assert len(tokens(Texts([composed, decomposed], 9, 1), ROWS[:2]).unique()) == 1
    assert len(tokens(Texts([composed, decomposed], 9, 1, unicode="none"), ROWS[:2]).unique()) == 2
    assert len(tokens(Texts(["ﬁlm", "film"], 9, 1), ROWS[:2]).unique()) == 2
    assert len(tokens(Texts(["ﬁlm", "film"], 9, 1, unicode="NFKC"), ROWS[:2]).unique()) == 1


def test_settings_are_checked_together(tmp_path):
    file = read_tokenizer(byte_pairs(tmp_path))
    with pytest.raises(ValueError, match="3 problems") as caught:
        Texts(["a"], 500, 2, file, "nfc")
    message = str(caught.value)
    assert "source.vocabulary = 500 cannot be set beside source.tokenizer" in message
    assert "source.length must be >= 3, got 2" in message
    assert "source.unicode" in message


@pytest.mark.parametrize("content", [b"{}", b"\x00\xff", b'{"model": {"type": "BPE"}}', b"[[[["])
def test_a_file_without_a_tokenizer_is_refused(content, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"source.tokenizer: .*tokenizer\.json"):
        read_tokenizer(str(path))
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_tokenizer(str(tmp_path / "other.json"))


def test_a_tokenizer_without_tokens_is_refused(tmp_path):
    from tokenizers import models

    with pytest.raises(ValueError, match="has no tokens"):
        read_tokenizer(saved(Tokenizer(models.BPE()), tmp_path))


# ---- counts


def test_tokens_that_are_cut_or_unknown_are_counted(tmp_path):
    texts = Texts(["a b c d e", "a z", "a b c"], 5, 3)  # room for a, b, c
    counts = count_tokens(texts.tokenizer(ROWS[2:3]).to_str(), texts.texts)
    assert (counts.texts, counts.longer, counts.tokens, counts.cut, counts.unknown) == (3, 1, 10, 2, 3)
    assert dict(counts.facts) == {
        "longer than source.length": "1 of 3 texts",
        "cut off": "20.0% of all tokens",
        "unknown": "30.0% of all tokens",
    }
    file = read_tokenizer(byte_pairs(tmp_path))
    long = Texts([TEXTS[3]], None, 7, file)
    counts = count_tokens(long.tokenizer(ROWS[:1]).to_str(), long.texts)
    assert counts.cut == counts.tokens - 5  # <s> and </s> take two of seven


def test_unknown_pieces_are_counted(tmp_path):
    for make in (word_pieces, unigrams):
        texts = Texts(["漢"], None, 7, read_tokenizer(make(tmp_path)))
        assert count_tokens(texts.tokenizer(ROWS[:1]).to_str(), texts.texts).unknown >= 1


def task_of(texts, name="a", **settings):
    targets = torch.arange(len(texts.texts)) % 2
    whole = Split(torch.arange(len(texts.texts)), targets)
    return build_task(name, RawData("classification", whole, whole, 2, texts), **settings)


def test_what_is_cut_is_logged_before_training(caplog):
    with caplog.at_level(logging.INFO):
        task = task_of(Texts(["a b c d", "a b"] * 10, 9, 3))
    assert task.tokens.cut == task.tokens.longer
    assert "task 'a': longer than source.length: " in caplog.text


def test_texts_whose_words_are_not_parted_are_warned_of(caplog):
    sentences = [f"昨日の映画は{i}とても良かった" for i in range(20)]
    with caplog.at_level(logging.WARNING):
        task_of(Texts(sentences, 5, 3))
    assert "most tokens are unknown" in caplog.text


# ---- padding


@pytest.mark.parametrize("pooling", ["mean", "none"])
def test_a_stem_and_a_transformer_ignore_the_files_padding(pooling, tmp_path):
    texts = Texts(["good film", "bad"] * 10, None, 12, read_tokenizer(byte_pairs(tmp_path)))
    task = task_of(texts, stem={"_target_": "msh.tasks.stems.TokenStem", "width": 3, "pooling": pooling})
    assert task.stem_recipe((4,))["padding"] == task.padding == 1
    stem = task.build_stem((4,))
    assert isinstance(stem, TokenStem)
    rows = task.splits["train"].inputs
    vectors = stem.embedding(rows)
    assert (vectors[rows == 1] == 0).all()
    if pooling == "mean":
        mean = vectors.sum(1) / (rows != 1).sum(1, keepdim=True)
        torch.testing.assert_close(stem(rows), stem.linear(mean))


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_transformer_ignores_padding_on_either_side(side):
    torch.manual_seed(0)
    backbone = Transformer((6,), vocabulary=20, width=8, heads=2, hidden=8, padding=7).eval()
    backbone.places.weight.data.zero_()
    text, padding = [3, 4, 5], [7, 7, 7]
    padded = backbone(torch.tensor([padding + text if side == "left" else text + padding]))
    torch.testing.assert_close(padded, backbone(torch.tensor([text])))
    assert backbone(torch.full((1, 6), 7)).isfinite().all()


def test_a_backbone_with_another_padding_is_refused(tmp_path):
    from msh.training.build import check_inputs

    task = task_of(Texts(["good film", "bad"] * 10, None, 6, read_tokenizer(byte_pairs(tmp_path))))
    settings = {"vocabulary": 400, "width": 8, "heads": 2, "hidden": 8}
    with pytest.raises(ValueError, match=r"set backbone.padding=1"):
        check_inputs(Transformer((6,), **settings), task)
    check_inputs(Transformer((6,), **settings, padding=1), task)


def test_a_network_file_holds_the_tokenizer(tmp_path, monkeypatch):
    texts = Texts(TEXTS * 5, None, 8, read_tokenizer(byte_pairs(tmp_path)))
    task = task_of(texts)
    (tmp_path / "tokenizer.json").unlink()
    data = json.loads(json.dumps(task.data_recipe()))
    whole = torch.cat([split.inputs for split in (task.splits["train"], task.splits["val"])])
    read = prepare(steps_from_data(data["preprocessing"]), TEXTS * 5)
    assert {tuple(row) for row in read.tolist()} == {tuple(row) for row in whole.tolist()}
    assert torch.equal(task.splits["test"].inputs, read)
