"""Texts: values read, errors, the vocabulary, and a fake of Hugging Face's library."""

import logging
import sys
from types import SimpleNamespace

import pytest
import torch

from messages import says
from msh.tasks import build_task
from msh.tasks.stems import TokenStem
from msh.tasks.steps import Tokenize
from msh.tasks.text import csv_text, hugging_face
from msh.tasks.tokens import PADDING, UNKNOWN, Texts

REVIEWS = "text,mood\n" + "".join(f"{'Good' if i % 2 else 'bad'} film number {i}!,{i % 2 - 0.5}\n" for i in range(20))
SETTINGS = {"text": "text", "label": "mood", "threshold": 0.0, "length": 6, "vocabulary": 12}


# ---- tokens


def test_tokens_are_sorted_by_falling_frequency_then_letter():
    texts = Texts(["b a, A", "a  c!", "zebra b"], vocabulary=6, length=4)
    tokenizer = texts.tokenizer(torch.tensor([0, 1]))
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    assert words == ["[PAD]", "[UNK]", "a", "!", ",", "b"]  # no room for "c"
    tokens = Tokenize(tokenizer.to_str())(texts.texts)
    assert tokens.tolist() == [[5, 2, 4, 2], [2, UNKNOWN, 3, PADDING], [UNKNOWN, 5, PADDING, PADDING]]
    assert tokens.dtype == torch.int64


def test_longer_texts_are_cut():
    texts = Texts(["a b c d e"], vocabulary=9, length=2)
    assert Tokenize(texts.tokenizer(torch.tensor([0])).to_str())(texts.texts).tolist() == [[2, 3]]


def test_the_vocabulary_comes_from_the_training_split_only(write):
    rows = "".join(f"word{i},{i % 2}\n" for i in range(40))
    task = build_task("a", csv_text(write("text,mood\n" + rows), "text", "mood", length=1, vocabulary=100))
    words = {name: split.inputs.flatten().tolist() for name, split in task.splits.items()}
    assert sorted(words["train"]) == list(range(2, 2 + len(task.splits["train"])))
    assert set(words["val"]) == set(words["test"]) == {UNKNOWN}


@pytest.mark.parametrize(("key", "value", "least"), [("vocabulary", 2, 3), ("length", 0, 1)])
def test_too_small_a_vocabulary_or_length_is_rejected(key, value, least):
    with pytest.raises(ValueError, match=says(f"source.{key}", f">= {least}", value)):
        Texts(["a"], **({"vocabulary": 9, "length": 9} | {key: value}))


# ---- CSV files


def test_texts_become_a_task_of_tokens(write):
    task = build_task("a", csv_text(write(REVIEWS), **SETTINGS), batch_size=4)
    assert (task.input_shape, task.vocabulary, task.outputs) == ((6,), 12, 2)
    assert [len(task.splits[name]) for name in ("train", "val", "test")] == [12, 4, 4]
    for split in task.splits.values():
        assert split.inputs.dtype == torch.int64
        good = split.inputs[:, 0][split.targets == 1]
        bad = split.inputs[:, 0][split.targets == 0]
        assert len(good.unique()) == len(bad.unique()) == 1
        assert good[0] != bad[0]


def test_texts_can_have_numeric_targets(write):
    data = csv_text(write(REVIEWS), "text", "mood", kind="regression")
    assert data.train.targets.shape == (16, 1)
    assert sorted(data.train.targets.unique().tolist()) == [-0.5, 0.5]


def test_a_test_file_is_the_test_split(write):
    tests = write("mood,text\n1,Bad?\n-1,good good\n", "tests.csv")
    data = csv_text(write(REVIEWS), **SETTINGS, test_path=tests)
    assert [data.texts.texts[row] for row in data.test.inputs.tolist()] == ["Bad?", "good good"]
    assert data.test.targets.tolist() == [1, 0]
    assert len(data.train) == 20


def test_another_encoding_is_rejected_with_byte_line_and_key(write):
    path = write("text,mood\nfine,1\ncaf\u00e9,-1\n", encoding="latin-1")
    with pytest.raises(ValueError, match=r"table.csv is not in utf-8: byte 20 \(line 3\) is 0xe9.*source.encoding"):
        csv_text(path, **SETTINGS)
    data = csv_text(path, **SETTINGS, encoding="latin-1", test_fraction=0.5)
    assert data.texts.texts == ["fine", "caf\u00e9"]


def test_texts_can_be_long(write):
    long = "a b " * 100_000
    data = csv_text(write(f"text,mood\n{long},1\nshort,0\n"), "text", "mood", test_fraction=0.5)
    assert sorted(map(len, data.texts.texts)) == [5, len(long)]


EMPTY = REVIEWS + " \t,0.5\n,-0.5\n"


def test_empty_texts_are_rejected_with_line_and_count(write):
    with pytest.raises(ValueError, match=r"line 22, column 'text': ' \\t' .*source.empty=drop.*2 such rows"):
        csv_text(write(EMPTY), **SETTINGS)


def test_empty_texts_can_be_dropped_and_are_counted(write, caplog):
    with caplog.at_level(logging.WARNING):
        data = csv_text(write(EMPTY), **SETTINGS, empty="drop")
    assert len(data.train) + len(data.test) == len(data.texts.texts) == 20
    assert "dropped 2 rows, their text is empty" in caplog.text


def test_a_file_with_only_empty_texts_is_rejected(write):
    with pytest.raises(ValueError, match="is an empty text"):
        csv_text(write("text,mood\n ,1\n ,2\n"), **SETTINGS, empty="drop")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text": "txt"}, says("source.text", value="txt", meant="text")),
        ({"label": "moods"}, says("source.label", value="moods", meant="mood")),
        ({"label": "text"}, r"column 'text': 'bad film number 0!' is not a finite number"),
        ({"empty": "dropp"}, says("source.empty", value="dropp", meant="drop")),
    ],
)
def test_bad_columns_and_settings_are_rejected(settings, message, write):
    with pytest.raises(ValueError, match=message):
        csv_text(write(REVIEWS), **(SETTINGS | settings))


def test_tokens_are_not_scaled(write):
    with pytest.raises(ValueError, match=says("tasks.a.normalize", "one of none", "all")):
        build_task("a", csv_text(write(REVIEWS), **SETTINGS), normalize="all")


# ---- stem


def test_a_token_stem_flattens_vectors_and_maps_to_the_backbones_shape():
    stem = TokenStem((5,), (1, 2, 3), vocabulary=10, width=4)
    assert stem.embedding.weight.shape == (10, 4)
    assert stem.embedding.weight.abs().max() <= 0.05
    assert stem.linear[1].in_features == 20
    assert stem(torch.zeros(7, 5, dtype=torch.int64)).shape == (7, 1, 2, 3)


def test_a_token_stem_can_average_without_padding():
    stem = TokenStem((4,), (3,), vocabulary=10, width=3, pooling="mean")
    tokens = torch.tensor([[5, 7, PADDING, PADDING], [PADDING] * 4])
    expected = stem.linear(torch.stack([stem.embedding.weight[[5, 7]].mean(0), torch.zeros(3)]))
    torch.testing.assert_close(stem(tokens), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"width": 0}, says("stem.width", ">= 1", 0)), ({"pooling": "men"}, says("stem.pooling", meant="mean"))],
)
def test_a_token_stem_rejects_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        TokenStem((4,), (3,), vocabulary=10, **settings)


# ---- Hugging Face


class Part(dict):
    """A split as the library gives it: columns by name."""

    column_names = property(list)


@pytest.fixture
def hub(monkeypatch):
    """Fake the library; return its splits by name, and the calls to it."""
    splits = {
        "train": Part(text=["good", "bad", "so good", "so bad"], label=[1, 0, 1, 0]),
        "test": Part(text=["bad bad", "good good"], label=[0, 1]),
    }
    calls = []

    def load_dataset(name, config, split, cache_dir, revision):
        calls.append((name, config, split, cache_dir, revision))
        if name == "some/other":
            raise ConnectionError("the hub is out of reach")
        return splits[split]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return splits, calls


def test_texts_from_the_hub_are_read(hub):
    data = hugging_face("some/reviews", "folder", length=2, config="films")
    assert hub[1] == [("some/reviews", "films", part, "folder", None) for part in ("train", "test")]
    assert data.train.targets.tolist() == [1, 0, 1, 0]
    assert data.classes == ("0", "1")
    assert [data.texts.texts[row] for row in data.test.inputs.tolist()] == ["bad bad", "good good"]
    assert build_task("a", data, val_fraction=0.5).input_shape == (2,)


def test_without_the_library_the_error_names_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'msh\[text\]'"):
        hugging_face("some/reviews", "folder")


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("train", {"text": ["a", " ", "b", ""]}, r"split train, row 1: .*empty .*2 rows"),
        ("test", {"label": [0, 2]}, r"split test are not in train: '2'"),
    ],
)
def test_bad_texts_and_classes_from_the_hub_are_rejected(part, change, message, hub):
    hub[0][part].update(change)
    with pytest.raises(ValueError, match=message):
        hugging_face("some/reviews", "folder")


def test_a_data_set_that_cannot_be_loaded_is_named(hub):
    with pytest.raises(ValueError, match=r"some/other, split train, cannot be loaded into folder: the hub is out of"):
        hugging_face("some/other", "folder")


def test_a_missing_field_is_rejected_with_the_nearest(hub):
    with pytest.raises(ValueError, match=says("source.label", value="labels", meant="label")):
        hugging_face("some/reviews", "folder", label="labels")
