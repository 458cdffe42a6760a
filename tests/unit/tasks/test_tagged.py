"""Texts with a class per word: files, windows, and the scores of real words alone."""

import json

import pytest
import torch

from messages import says
from msh.tasks import build_task
from msh.tasks.outputs import IGNORED
from msh.tasks.preprocessing import steps_from_data, steps_to_data
from msh.tasks.tagged import tagged_texts
from msh.tasks.tokens import Texts, read_tokenizer
from msh.tasks.windows import TaggedWords
from tokenizer_files import byte_pairs, word_pieces

COLUMNS = """-DOCSTART- -X- O

Ann NNP B
lives VBZ O
in IN O
Rome NNP B

Bob NNP B
left VBD O
"""
LINES = [
    {"tokens": ["Ann", "lives", "in", "Rome"], "tags": ["B", "O", "O", "B"]},
    {"tokens": ["Bob", "left"], "tags": ["B", "O"]},
]


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def words_of(data):
    return [data.texts.texts[row] for row in data.train.inputs.tolist()]


def step_of(path=None, length=5, *texts):
    texts = texts or (("a", "b"),)
    data = Texts(list(texts), None if path else 20, length, read_tokenizer(path) if path else None)
    tokenizer = data.tokenizer(torch.arange(len(texts)), "token_classification")
    return TaggedWords(tokenizer.to_str(), length, data.padding)


# ---- files


@pytest.mark.parametrize(("name", "content"), [("t.conll", COLUMNS), ("t.jsonl", jsonl(LINES))])
def test_words_and_their_classes_are_read(write, name, content):
    path = write(content, name)
    data = tagged_texts(path, test_path=path)
    assert words_of(data) == [("Ann", "lives", "in", "Rome"), ("Bob", "left")]
    assert (data.kind, data.classes, data.outputs) == ("token_classification", ("B", "O"), 2)
    assert data.train.targets.tolist() == [[0, 1, 1, 0], [0, 1, IGNORED, IGNORED]]


def test_classes_may_be_numbers_and_be_missing(write):
    rows = [{"words": ["a", "b", "c"], "pos": [2, None, 10]}] * 5
    data = tagged_texts(write(jsonl(rows), "t.jsonl"), tokens="words", tags="pos")
    assert data.classes == ("2", "10")
    assert data.train.targets[0].tolist() == [0, IGNORED, 1]


@pytest.mark.parametrize("name", ["t.conll", "t.jsonl"])
@pytest.mark.parametrize("none", ["O", "None", "NA", "-", "?", "null", "nan"])
def test_words_for_missing_cells_are_classes(write, name, none):
    rows = [{"tokens": ["Ann", "left", "Rome"], "tags": ["PER", none, "LOC"]}] * 5
    columns = "\n\n".join("\n".join(map(" ".join, zip(row["tokens"], row["tags"], strict=True))) for row in rows)
    path = write(jsonl(rows) if name.endswith("jsonl") else columns, name)
    data = tagged_texts(path, test_path=path)
    assert sorted(data.classes) == sorted(["PER", none, "LOC"])
    for split in (data.train, data.test):
        assert [data.classes[target] for target in split.targets[0]] == ["PER", none, "LOC"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.txt", "Ann B\nlives\n", r"line 2: must be a word and its class, got 'lives'"),
        ("t.txt", "\n\n", "has no texts"),
        ("t.jsonl", jsonl([{"tokens": ["a", "b"], "tags": ["O"]}]), r"line 1: 'tags' must be a list of 2 classes"),
        ("t.jsonl", jsonl([{"tokens": "a b", "tags": ["O"]}]), r"line 1: 'tokens' must be a list of words"),
        ("t.jsonl", jsonl([{"tokens": ["a", " "], "tags": ["O", "O"]}]), r"line 1: 'tokens' must be a list of words"),
        ("t.jsonl", jsonl([{"tokens": ["a"], "tags": [["O"]]}]), r"line 1: 'tags' must have names or numbers"),
        ("t.jsonl", jsonl([{"words": ["a"], "tags": ["O"]}]), says("source.tokens", value="tokens")),
    ],
)
def test_damaged_files_are_errors_that_name_the_line(write, name, content, message):
    with pytest.raises(ValueError, match=message):
        tagged_texts(write(content, name))


def test_a_class_that_training_lacks_is_an_error(write):
    other = write("Ann C\n", "other.txt")
    with pytest.raises(ValueError, match=r"other\.txt, tags must be classes of the training file.*'C'"):
        tagged_texts(write(COLUMNS, "t.txt"), test_path=other)


# ---- windows


def test_the_first_token_of_each_word_has_its_class(tmp_path):
    step = step_of(word_pieces(tmp_path), 8)  # no marks; padding is token 3
    found = step.windows([["the", "goods", "is"], "bad film"])
    names = [step.names(row) for row in found.tokens]
    assert names[1] == ["bad", "film"]
    assert len(names[0]) > 3  # "goods" has several pieces
    assert found.targets[0, : len(names[0])].tolist() == [0, 1, *[IGNORED] * (len(names[0]) - 3), 2]
    assert found.texts.tolist() == [0, 1]


def test_windows_hold_whole_words_between_marks(tmp_path):
    step = step_of(byte_pairs(tmp_path), 4)
    begin, end = (mark[0] for mark in step.marks)
    found = step.windows([["a", "b", "c"]])
    a, b, c = (step.built.token_to_id(word) for word in "abc")
    assert found.tokens.tolist() == [[begin, a, b, end], [begin, c, end, step.padding]]
    assert found.targets.tolist() == [[IGNORED, 0, 1, IGNORED], [IGNORED, 2, IGNORED, IGNORED]]
    long = step.windows([["a", "qqqqzzzzxxxx", "b"]])  # longer than a window: its first tokens
    assert sorted(long.targets[long.targets != IGNORED].tolist()) == [0, 1, 2]


def test_each_word_has_a_token_even_if_it_is_invisible():
    step = step_of(None, 4, ("a", "b"))
    found = step.windows([["a", "\u200b\u0301", "zzz"]])
    assert found.targets[found.targets != IGNORED].tolist() == [0, 1, 2]


def test_other_inputs_than_words_are_refused():
    step = step_of()
    for wrong in (3, ["a", 3], ["a", ""], {"tokens": ["a"]}):
        with pytest.raises(ValueError, match=says("inputs", "texts, or lists of words")):
            step([wrong])
    for empty in ("", []):
        with pytest.raises(ValueError, match=says("a text", "at least one word", empty)):
            step([empty])
    assert steps_from_data(steps_to_data([step]))[0] == step


# ---- tasks


def test_a_task_counts_real_words_alone(write):
    rows = [{"tokens": ["x", "y", "x"], "tags": ["A", "B", None]}] * 10
    task = build_task("a", tagged_texts(write(jsonl(rows), "t.jsonl"), length=5), metric="f1")
    assert (task.kind, task.names, task.outputs, task.input_shape) == ("token_classification", ("A", "B"), 2, (5,))
    split = task.splits["test"]
    assert split.targets[0].tolist() == [0, 1, IGNORED, IGNORED, IGNORED]
    outputs = torch.zeros(1, 5, 2)
    outputs[0, :, 0] = 4.0  # always A
    right = torch.nn.functional.cross_entropy(outputs[0, :2], torch.tensor([0, 1]))
    assert task.loss(outputs, split.targets[:1]) == pytest.approx(right.item())
    for name, score in (("accuracy", 0.5), ("f1", (2 / 3 + 0) / 2)):
        scored = build_task("a", tagged_texts(write(jsonl(rows), "t.jsonl"), length=5), metric=name)
        metric = scored.build_metric()
        scored.update(metric, outputs, split.targets[:1])
        assert metric.compute().item() == pytest.approx(score)
    assert task.constant_score("test") == pytest.approx(1 / 3)


def test_texts_without_any_class_are_refused_and_windows_without_one_left_out(write):
    nothing = [{"tokens": ["x", "y"], "tags": ["A", "B"]}, {"tokens": ["x", "x"], "tags": [None, None]}]
    path = write(jsonl(nothing * 10), "t.jsonl")
    task = build_task("a", tagged_texts(path, length=5))
    assert sum(len(split) for split in task.splits.values()) == 10
    with pytest.raises(ValueError, match="test split: no word has a class"):
        build_task("a", tagged_texts(path, test_path=write(jsonl(nothing[1:]), "u.jsonl")))
