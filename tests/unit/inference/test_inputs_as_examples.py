"""Inputs of a caller, one or several, in any container: as many examples as inputs, or an error."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import msh
from frozen import frozen
from messages import says
from msh.files.state_file import save_network
from msh.inference.examples import as_examples
from msh.tasks import RawData, Split, build_task
from msh.tasks.image_step import ReadImages
from msh.tasks.steps import NamedInput, ReadArrays, ReadNamed, Tokenize
from msh.tasks.table_step import ReadTable
from msh.tasks.tables import table
from msh.tasks.tokens import Texts
from msh.tasks.windows import NextTokens, TaggedWords

STEPS = {
    "images": ReadImages("RGB", (8, 8)),
    "arrays": ReadArrays((4,)),
    "named": ReadNamed({"a": NamedInput((2,)), "b": NamedInput((2,))}),
    "tokenize": Tokenize("{}"),
    "next_tokens": NextTokens("{}", 4, 0),
    "tagged_words": TaggedWords("{}", 4, 0),
    "table": ReadTable(()),
}
TEXTS = ["tokenize", "next_tokens", "tagged_words"]
WORDS = ["word1", "word2 word1", "word3"]
FRAME = pd.DataFrame({"id": [1, 2, 3], "text": WORDS}, index=[7, 8, 9])


def frame_of(rows):
    return pd.DataFrame(np.ones((rows, 4)), columns=list("abcd"))


class Frame:
    """A table of another library: iterating over it gives columns."""

    columns = ("id", "text")

    def to_pandas(self):
        return FRAME

    def __iter__(self):
        return iter(self.columns)


@pytest.mark.parametrize("kind", [*TEXTS, "images"])
@pytest.mark.parametrize(
    "inputs",
    [
        pytest.param(FRAME["text"], id="column"),
        pytest.param(FRAME["text"].astype("string"), id="column of strings"),
        pytest.param(FRAME["text"].astype("category"), id="column of categories"),
        pytest.param(FRAME["text"].to_numpy(dtype=object), id="array of objects"),
        pytest.param(np.array(WORDS), id="array of strings"),
        pytest.param(pd.Index(WORDS), id="index"),
        pytest.param(tuple(WORDS), id="tuple"),
        pytest.param(dict.fromkeys(WORDS).keys(), id="keys"),
    ],
)
def test_each_text_or_path_of_a_container_is_an_example(kind, inputs):
    assert as_examples((STEPS[kind],), inputs) == WORDS
    assert as_examples((STEPS[kind],), (word for word in inputs)) == WORDS


@pytest.mark.parametrize("kind", [*TEXTS, "images"])
@pytest.mark.parametrize("inputs", ["word1", np.array("word1"), np.array(["word1"])[0], ["word1"]])
def test_one_text_or_path_is_one_example(kind, inputs):
    assert as_examples((STEPS[kind],), inputs) == ["word1"]


def test_a_column_of_numbers_is_an_example_of_an_array_and_one_of_arrays_several():
    assert as_examples((STEPS["arrays"],), pd.Series([1.0, 2, 3, 4])).tolist() == [[1, 2, 3, 4]]
    several = as_examples((STEPS["arrays"],), pd.Series([np.ones(4), np.zeros(4)]))
    assert STEPS["arrays"](several).tolist() == [[1] * 4, [0] * 4]


def test_a_table_reads_a_frame_and_a_row_of_it():
    assert as_examples((STEPS["table"],), FRAME) is FRAME
    row = as_examples((STEPS["table"],), FRAME.iloc[1])
    assert row.to_dict("records") == [{"id": 2, "text": "word2 word1"}]


@pytest.mark.parametrize("frame", [FRAME, FRAME[["text"]], FRAME[:1], Frame()], ids=["frame", "one", "row", "other"])
@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        *(
            (kind, r"inputs must be texts, got a (Data)?Frame with .*'text': pass .* df\['(id|text)'\]")
            for kind in TEXTS
        ),
        ("images", r"inputs must be paths, .* got a (Data)?Frame with .* df\['(id|text)'\]"),
        ("arrays", r"inputs must be arrays of numbers, got a (Data)?Frame with .*df\.to_numpy\(\)"),
        ("named", r"inputs must be arrays by name, got a (Data)?Frame with .*a dictionary of arrays"),
    ],
)
def test_a_frame_is_no_input_of_other_tasks(kind, advice, frame):
    with pytest.raises(ValueError, match=advice):
        as_examples((STEPS[kind],), frame)


def test_a_frame_of_another_library_is_no_table():
    with pytest.raises(ValueError, match=r"a DataFrame of pandas, .* got a Frame .*convert it with its to_pandas\(\)"):
        as_examples((STEPS["table"],), Frame())


@pytest.mark.parametrize("kind", STEPS)
def test_inputs_without_an_order_or_a_number_are_refused(kind):
    for inputs in ({"a"}, frozenset(["a"])):
        with pytest.raises(ValueError, match=says("inputs", "a list, as a set has no order", type(inputs).__name__)):
            as_examples((STEPS[kind],), inputs)
    with pytest.raises(ValueError, match=r"inputs must be .*, got 5"):
        as_examples((STEPS[kind],), 5)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize(
    ("shape", "count"),
    [
        ((8, 8), 1),
        *(((20, 24, channels), 1) for channels in (1, 3, 4)),  # as NumPy's images
        *(((8, 8, channels), 1) for channels in (1, 3, 4)),
        ((1, 8, 8), 1),
        *(((5, 8, 8), 5), ((5, 20, 24), 5), ((24, 24, 24), 24)),  # grey ones
        *(((2, 1, 8, 8), 2), ((2, 8, 8, 3), 2), ((2, 20, 24, 4), 2), ((0, 8, 8), 0)),
    ],
)
def test_one_image_is_told_from_several(mode, shape, count):
    step = ReadImages(mode=mode, size=(8, 8))
    examples = as_examples((step,), np.zeros(shape, "uint8"))
    assert len(examples) == count
    assert step(examples).shape == (count, *step.shape)


@pytest.mark.parametrize(
    ("mode", "size", "shape", "count"),
    [
        ("RGB", (8, 8), (3, 8, 8), 1),  # as torch's images
        ("RGB", (8, 8), (3, 20, 24), 1),
        ("L", (8, 8), (3, 8, 8), 3),  # of the task's size
        ("L", (8, 8), (4, 8, 8), 4),
        ("L", (4, 4), (6, 4, 4), 6),
        ("RGB", (4, 4), (6, 4, 4), 6),
        ("L", (8, 8), (3, 20, 24), None),
        ("RGB", (8, 8), (4, 8, 8), None),
        ("RGB", (8, 8), (4, 20, 24), None),
        ("L", (4, 4), (4, 4, 4), None),
        ("RGB", (4, 4), (3, 4, 4), None),
    ],
)
def test_an_array_that_may_be_one_image_or_several_is_refused(mode, size, shape, count):
    inputs = np.zeros(shape, "uint8")
    if count is not None:
        assert len(as_examples((ReadImages(mode, size),), inputs)) == count
        return
    with pytest.raises(ValueError, match=r"shape \(.*\) may be . grey images, or one .*: pass a list of images, or"):
        as_examples((ReadImages(mode, size),), inputs)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    """Classifiers of texts, of rows of numbers, and of a table's rows."""
    rows = torch.arange(60)
    texts = Texts([f"word{i % 9} word{i % 4}" for i in range(60)], vocabulary=20, length=4)
    split = Split(rows, rows % 2)
    stem = {"_target_": "msh.tasks.stems.TokenStem", "width": 4, "pooling": "mean"}
    mails = build_task("mails", RawData("classification", split, split, 2, texts, ("ham", "spam")), stem=stem)
    split = Split(torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), rows % 2)
    numbers = build_task("numbers", RawData("classification", split, split, 2, None, ("no", "yes")))
    backbone = {"_target_": "msh.backbones.mlp.MLP", "input_shape": [4], "width": 16, "depth": 2}
    path = tmp_path_factory.mktemp("examples") / "network.safetensors"
    frame = pd.DataFrame(split.inputs.numpy(), columns=list("abcd")).assign(y=["no", "yes"] * 30)
    frame.to_csv(path.with_suffix(".csv"), index=False)
    houses = build_task("houses", table(str(path.with_suffix(".csv")), "y"))
    save_network(path, frozen(backbone, [mails, numbers, houses]))
    return msh.load(path)


def test_a_frame_gets_no_answers_and_its_column_one_per_text(predictor):
    expected = predictor.predict("mails", WORDS)
    assert torch.equal(predictor.predict("mails", FRAME["text"]).raw, expected.raw)
    assert torch.equal(predictor.predict("mails", np.array(WORDS)).raw, expected.raw)
    for method in (predictor.predict, predictor.prepare):
        with pytest.raises(ValueError, match=r"inputs must be texts, got a DataFrame with the columns 'text': .*"):
            method("mails", FRAME[["text"]])


@pytest.mark.parametrize("inputs", [WORDS, FRAME["text"], iter(WORDS), np.array(WORDS)], ids=lambda i: type(i).__name__)
def test_texts_without_a_task_are_all_answered(predictor, inputs):
    found = predictor.predict(inputs)
    assert found.tasks == ("mails",) * 3
    assert found.labels == predictor.predict("mails", WORDS).labels


@pytest.mark.parametrize(
    ("task", "inputs", "problem"),
    [
        ("mails", {"text": "word1"}, "task 'mails', input 0: inputs must be texts, got {'text'"),
        ("mails", b"word1", "inputs must be texts, got b'word1'"),
        ("mails", Path("a.txt"), "inputs must be texts, got PosixPath"),
        ("mails", [["word1"], "word2"], r"input 0: inputs must be texts, got \['word1'\]"),
        ("numbers", {"a": 1.0}, "input 0: inputs must be numbers of the shape"),
        ("numbers", "word1", "input 0: inputs must be numbers of the shape"),
        (
            "houses",
            frame_of(2).to_dict("list"),
            "a dictionary is one row, but column 'a' has a list: pass a dictionary",
        ),
        (
            "houses",
            frame_of(2).to_dict(),
            "a dictionary is one row, but column 'a' has a dict: pass a dictionary per row",
        ),
        ("houses", dict(frame_of(2)), "a dictionary is one row, but column 'a' has a Series"),
        ("houses", {"a": 1, "b": 2, "c": 3, "d": np.array([4])}, "column 'd' has a ndarray"),
        ("mails", None, "inputs must not be None: the text 'mails' is the name of a task; pass it in a list"),
    ],
)
def test_inputs_of_another_kind_are_refused(predictor, task, inputs, problem):
    with pytest.raises(ValueError, match=problem):
        predictor.predict(task, inputs)


def test_a_step_that_reads_another_number_of_examples_is_refused(predictor, monkeypatch):
    monkeypatch.setattr(ReadArrays, "__call__", lambda self, inputs: torch.zeros(3, 4))
    with pytest.raises(ValueError, match=says("inputs: the number of examples that were read from them", "2", 3)):
        predictor.predict("numbers", np.zeros((2, 4)))


def test_each_problem_of_a_row_is_listed_without_the_rows_number(predictor):
    reasons = predictor.predict("houses", [{"a": "x", "b": 1, "c": "1,5", "d": 2}], skip_bad=True).errors
    problems = (
        "- column 'a': 'x' is not a finite number\n- column 'c': '1,5' is not a finite number: write a decimal point"
    )
    assert reasons == {0: f"2 problems:\n{problems}"}


def test_a_row_of_a_table_without_a_task_is_a_row(predictor):
    frame = frame_of(1)
    found = predictor.predict(frame.iloc[0])
    assert found.tasks == ("houses",)
    assert found.labels == predictor.predict("houses", frame).labels
    row = frame.iloc[0].to_dict() | {"e": [1, 2]}
    assert predictor.predict("houses", row).labels == found.labels  # additional columns are ignored
