"""Language models' data: windows, marks, plain text files; the loss and the perplexity, by hand."""

import json
import logging
import math

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from messages import says
from msh.tasks import build_task
from msh.tasks.outputs import IGNORED
from msh.tasks.own import with_own
from msh.tasks.preprocessing import steps_from_data, steps_to_data
from msh.tasks.text import texts
from msh.tasks.tokens import Texts
from msh.tasks.windows import NextTokens
from tokenizer_files import byte_pairs, saved

LINES = "".join(f"word{i} and then word{i % 3}\n" for i in range(20))


def words(tmp_path, *names):
    """A tokenizer of words without marks, as a file; padding is the id after the last."""
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token=names[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return saved(tokenizer, tmp_path)


def lm(path, **settings):
    return texts(path, kind="lm", **{"length": 4, "vocabulary": 100} | settings)


def step_of(*lines, length=4):
    tokenizer = Texts(list(lines), 100, length).tokenizer(torch.arange(len(lines)), "lm")
    return NextTokens(tokenizer.to_str(), length, 0)


# ---- windows


def test_each_token_but_the_first_is_asked_for_once():
    step = step_of("a b c d e", "a a a a a a b b b")  # 0 padding, 1 unknown, 2 begin, 3 end, 4 a, 5 b, ...
    found = step.windows(["a b c d e"])
    a, b, c, d, e = (step.built.token_to_id(word) for word in "abcde")
    assert found.tokens.tolist() == [[2, a, b, c], [d, e, 0, 0]]
    assert found.targets.tolist() == [[a, b, c, d], [e, 3, IGNORED, IGNORED]]
    assert (found.texts.tolist(), found.number) == ([0, 0], 1)


def test_a_window_belongs_to_one_text():
    step = step_of("a b c d e")
    found = step.windows(["a b c d", "e", "a b c d e"])
    assert found.texts.tolist() == [0, 0, 1, 2, 2]  # with its marks, "a b c d" asks for 5 tokens
    assert found.sums(torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])).tolist() == [3.0, 4.0, 24.0]
    assert torch.equal(step(["e"]), found.tokens[2:3])


def test_padding_written_in_a_text_is_no_target():
    step = step_of("a b")
    found = step.windows(["a [PAD] b"])
    a, b = (step.built.token_to_id(word) for word in "ab")
    assert found.targets.tolist() == [[a, IGNORED, b, 3]]


def test_a_tokenizers_own_marks_are_used_and_none_are_added(tmp_path):
    data = Texts(["the film"], None, 4, texts_file(byte_pairs(tmp_path)))
    step = NextTokens(data.tokenizer(torch.tensor([0]), "lm").to_str(), 4, data.padding)
    assert [step.built.id_to_token(mark[0]) for mark in step.marks] == ["<s>", "</s>"]
    bare = Texts(["a b"], None, 4, texts_file(words(tmp_path, "?", "a", "b")))
    step = NextTokens(bare.tokenizer(torch.tensor([0]), "lm").to_str(), 4, bare.padding)
    assert step.marks == ((), ())
    assert step.windows(["a b"]).targets.tolist() == [[2, IGNORED, IGNORED, IGNORED]]


def texts_file(path):
    from msh.tasks.tokens import read_tokenizer

    return read_tokenizer(path)


def test_a_text_without_a_token_to_ask_for_is_refused_alone_and_left_out_in_training(tmp_path, write, caplog):
    tokenizer = words(tmp_path, "?", "a", "b")
    data = Texts(["a b"], None, 4, texts_file(tokenizer))
    step = NextTokens(data.tokenizer(torch.tensor([0]), "lm").to_str(), 4, data.padding)
    with pytest.raises(ValueError, match=says("a text", step.least, "a")):
        step(["a b", "a"])
    with caplog.at_level(logging.WARNING):
        task = build_task("x", lm(write("a b\na\nb a\n" * 10, "t.txt"), tokenizer=tokenizer, vocabulary=None))
    assert sum(len(split) for split in task.splits.values()) == 20
    assert "left out 10 texts" in caplog.text
    with pytest.raises(ValueError, match="no text has at least 2 tokens"):
        build_task("x", lm(write("a\n" * 10, "t.txt"), tokenizer=tokenizer, vocabulary=None))


def test_other_inputs_than_texts_are_refused():
    with pytest.raises(ValueError, match=says("inputs", "texts", 3)):
        step_of("a")([3])


def test_a_file_of_unknown_origin_cannot_bring_windows_of_no_length():
    data = steps_to_data([step_of("a")])
    assert steps_from_data(json.loads(json.dumps(data)))[0].windows(["a"]).tokens.shape == (1, 4)
    for wrong in ({"length": 0}, {"padding": -1}, {"length": "x"}):
        with pytest.raises(ValueError, match="preprocessing is invalid"):
            steps_from_data([data[0] | wrong])


# ---- sources


def test_a_task_of_texts_has_the_next_tokens_as_targets(write):
    task = build_task("a", lm(write(LINES, "t.txt")), batch_size=7)
    assert (task.kind, task.metric, task.direction, task.input_shape) == ("lm", "perplexity", "min", (4,))
    assert task.outputs == len(task.steps[0].built.get_vocab()) <= task.vocabulary == 100
    train = task.splits["train"]
    assert len(train.raw[torch.arange(len(train))]) == len(train)
    first = train.raw[torch.tensor([0])]
    assert torch.equal(task.steps[0].windows(first).targets, train.targets[:2])  # 6 tokens with marks: 2 windows
    assert torch.equal(train.inputs[:1, 1:], train.targets[:1, :-1])
    assert task.head_recipe(16) == {"_target_": "torch.nn.Linear", "in_features": 16, "out_features": task.outputs}
    texts_of = {part: {*split.raw[torch.arange(len(split))]} for part, split in task.splits.items()}
    assert not texts_of["train"] & texts_of["test"]  # a text's windows stay in one split
    assert {name for name, _ in task.tokens.facts} == {"windows", "padding", "unknown"}


@pytest.mark.parametrize(
    ("unit", "content", "expected"),
    [
        (None, "a b\nc\n\n\nd\n", ["a b\nc", "d\n"]),
        (None, "a b\nc\n", ["a b", "c"]),
        ("line", "a b\nc\n\nd\n", ["a b", "c", "d"]),
        ("file", "a b\nc\n\nd\n", ["a b\nc\n\nd\n"]),
    ],
)
def test_a_plain_file_is_parted_into_texts(write, unit, content, expected):
    other = write("x y\n", "other.txt")
    data = lm(write(content, "t.txt"), unit=unit, test_path=other)
    assert [data.texts.texts[row] for row in data.train.inputs.tolist()] == expected


def test_a_folder_of_files_needs_no_folders_of_classes(tmp_path):
    for name in ("b/2", "a"):
        path = tmp_path / "novels" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text {name}\n\nmore")
    data = lm(str(tmp_path / "novels"), test_path=str(tmp_path / "novels"), unit="paragraph")
    assert [data.texts.texts[row] for row in data.train.inputs.tolist()] == ["text a", "more", "text b/2", "more"]
    assert len(lm(str(tmp_path / "novels"), test_path=str(tmp_path / "novels")).train) == 2


def test_tables_and_json_lines_need_no_labels(write):
    rows = "".join(json.dumps({"text": f"line {i}"}) + "\n" for i in range(10))
    assert len(lm(write(rows, "t.jsonl")).train) == 8
    table = "note,part\n" + "".join(f"line {i},{'test' if i > 6 else 'train'}\n" for i in range(10))
    data = lm(write(table), text="note", split={"column": "part"})
    assert (len(data.train), len(data.test), data.kind) == (7, 3, "lm")


@pytest.mark.parametrize(
    ("settings", "key", "value"),
    [
        ({"threshold": 0.5}, "source.threshold", 0.5),
        ({"unit": "page"}, "source.unit", "page"),
        ({"vocabulary": 4}, "source.vocabulary", 4),
        ({"kind": "lmm"}, "source.kind", "lmm"),
        ({"kind": "classification", "unit": "line"}, "source.unit", "line"),
        ({"length": 0}, "source.length", 0),
    ],
)
def test_settings_that_do_not_fit_are_refused(write, settings, key, value):
    with pytest.raises(ValueError, match=says(key, value=value)):
        texts(write(LINES, "t.txt"), **{"kind": "lm", "length": 4} | settings)
    with pytest.raises(ValueError, match=says("source.unit", value="line")):
        texts(write("text\na\nb\n"), kind="lm", unit="line")


# ---- loss and metric


@pytest.fixture
def task(write):
    return build_task("a", lm(write("a b\nb a\n" * 10, "t.txt")))


def test_the_loss_is_the_mean_over_tokens_that_have_a_target(task):
    outputs = torch.zeros(2, 2, 6)
    outputs[0, 0, 4] = math.log(3)  # p(4) = 3 / 8; elsewhere 1 / 6
    outputs[1, 1] = 99.0  # ignored
    targets = torch.tensor([[4, 5], [3, IGNORED]])
    expected = (math.log(8 / 3) + 2 * math.log(6)) / 3
    assert task.loss(outputs, targets).item() == pytest.approx(expected)
    assert task.count(targets) == 3
    smooth = with_own(task, None, {"_target_": "torch.nn.CrossEntropyLoss", "reduction": "sum"})
    assert smooth.loss(outputs, targets).item() == pytest.approx(3 * expected)


def test_perplexity_is_of_the_whole_split_and_not_a_mean_over_batches(task):
    metric = task.build_metric()
    sure = torch.zeros(1, 4, 6)
    sure[0, :, 4] = math.log(5)  # p = 1 / 2 for 4, 1 / 10 for others
    task.update(metric, sure, torch.tensor([[4, 4, 4, IGNORED]]))
    task.update(metric, sure, torch.tensor([[5, IGNORED, IGNORED, IGNORED]]))
    assert metric.compute().item() == pytest.approx(math.exp((3 * math.log(2) + math.log(10)) / 4))


def test_padding_changes_neither_loss_nor_perplexity(write):
    short, long = (build_task("a", lm(write("a b c\n" * 10, "t.txt"), length=length)) for length in (4, 9))
    generator = torch.Generator().manual_seed(0)
    few = torch.randn(len(short.splits["test"]), 4, short.outputs, generator=generator)
    many = torch.full((len(few), 9, short.outputs), 1e3)
    many[:, :4] = few
    targets = [task.splits["test"].targets for task in (short, long)]
    assert short.loss(few, targets[0]) == pytest.approx(long.loss(many, targets[1]))
    scores = []
    for task, outputs, wanted in ((short, few, targets[0]), (long, many, targets[1])):
        metric = task.build_metric()
        task.update(metric, outputs, wanted)
        scores.append(metric.compute().item())
    assert scores[0] == pytest.approx(scores[1])


def test_the_constant_answer_is_how_often_training_has_each_token(write):
    task = build_task("a", lm(write("a b a a\n" * 10, "t.txt"), length=5, val_path=write("a b a a\n", "v.txt")))
    known = task.splits["train"].targets
    counts = known.flatten().bincount(minlength=task.outputs) + 1.0
    logs = (counts / counts.sum()).log()
    a, b = (task.steps[0].built.token_to_id(word) for word in "ab")
    expected = math.exp(-(3 * logs[a] + logs[b] + logs[3]).item() / 5)
    assert task.constant_score("val") == pytest.approx(expected)


def test_a_users_metric_gets_the_tokens_that_have_a_target(task):
    block = {"_target_": "torchmetrics.text.Perplexity", "name": "own"}
    own = with_own(task, block, None)
    assert (own.metric, own.direction) == ("own", "min")
    metric = own.build_metric()
    own.update(metric, torch.zeros(1, 2, 6), torch.tensor([[4, IGNORED]]))
    assert metric.compute().item() == pytest.approx(6.0)
