"""Inputs of the command line: read as the task's training file was, in any encoding."""

import gzip
import io
from argparse import ArgumentParser
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from msh.cli import generate
from msh.inference.inputs import read_inputs
from msh.tasks.preprocessing import steps_from_data, steps_to_data
from msh.tasks.steps import ReadArrays, ReadNamed, Tokenize
from msh.tasks.tables import table
from msh.tasks.windows import NextTokens

ROWS = "größe;menge;preis;art\n" + "".join(f"1,{i:02};{1 + i}.000;{i}.234 kr;{i % 2}\n" for i in range(1, 40))


@pytest.fixture
def trained(tmp_path):
    """The data of a file in Latin-1, and its steps as a network file holds them."""
    path = tmp_path / "table.csv"
    path.write_bytes(ROWS.encode("latin-1"))
    data = table(str(path), "art", encoding="latin-1", test_path=str(path))
    return path, data.train.inputs, steps_from_data(steps_to_data(data.steps))


def test_a_training_file_is_read_again_bitwise(trained):
    path, expected, steps = trained
    assert torch.equal(steps[0](read_inputs([steps], [str(path)], encoding="latin-1").examples), expected)
    with pytest.raises(ValueError, match=r"table.csv is not in utf-8: byte 2 .*msh predict: --encoding"):
        read_inputs([steps], [str(path)])


def test_one_row_is_read_in_the_training_files_way(trained, tmp_path):
    """Alone, 2.000 would be 2, and 1.234 kr would be refused."""
    _, _, steps = trained
    (tmp_path / "one.csv").write_text("größe;menge;preis\n1,01;2.000;1.234 kr\n")
    line = '{"größe": 1.01, "menge": 2000, "preis": "1.234 kr", "rest": "a\u2028b"}\n'
    (tmp_path / "one.jsonl").write_bytes(gzip.compress(line.encode("utf-16")))
    for name in ("one.csv", "one.jsonl"):
        examples = read_inputs([steps], [str(tmp_path / name)]).examples
        assert steps[0](examples).tolist() == [[1.01, 2000, 1234]]


WORDS = (Tokenize("{}"),)


def test_a_blank_line_is_an_input_too_except_at_the_end(tmp_path):
    path = tmp_path / "in.txt"
    path.write_text("good\n\nbad\n  \n\n")
    found = read_inputs([WORDS], [str(path)])
    assert list(found.examples) == ["good", "", "bad"]
    assert found.names == [f"{path}:{line}" for line in (1, 2, 3)]
    path.write_text("\n \n")
    with pytest.raises(ValueError, match=r"in\.txt has no inputs"):
        read_inputs([WORDS], [str(path)])


def test_inputs_are_named_by_their_lines(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('"good"\n\n"bad"\n')
    found = read_inputs([WORDS], [str(path)])
    assert (list(found.examples), found.names) == (["good", "bad"], [f"{path}:1", f"{path}:3"])
    path.write_text("[1.0, 2.0]\n\n[3.0, 4.0]\n")
    found = read_inputs([(ReadArrays((2,)),)], [str(path)])
    assert (found.examples.tolist(), found.names) == ([[1, 2], [3, 4]], [f"{path}:1", f"{path}:3"])


def test_texts_of_a_language_model_are_named_by_their_lines(tmp_path):
    path = tmp_path / "in.txt"
    path.write_text("\nthe cat\n\nran\n")
    found = read_inputs([(NextTokens("{}", 4, 0),)], [str(path)])
    assert (list(found.examples), found.names) == (["the cat", "ran"], [f"{path}:2", f"{path}:4"])


@pytest.fixture
def numbers(tmp_path):
    """The steps of a table with the columns a and b."""
    path = tmp_path / "numbers.csv"
    path.write_text("a,b,y\n" + "".join(f"{i / 7},{i / 3},{i % 2}\n" for i in range(1, 40)))
    return table(str(path), "y", test_path=str(path)).steps


@pytest.mark.parametrize(
    ("files", "values", "bad"),
    [
        ({"one.csv": "a,b\n1,2\n", "two.csv": "b,a,c\n4,3,x\n"}, [[1, 2], [3, 4]], []),
        ({"one.csv": "a,b\n1,2\n", "two.csv": "a,B\n3,4\n"}, [[1, 2]], [1]),
        ({"one.csv": "a,b\n1,2\n", "two.jsonl": '{"a": 3, "b": 4}\n{"a": 5}\n'}, [[1, 2], [3, 4]], [2]),
        ({"one.jsonl": '{"a": 1, "b": 2}\n{"a": 3, "B": 4}\n'}, [[1, 2]], [1]),
        ({"one.json": '[{"a": 1, "b": 2}, {"b": 4}]'}, [[1, 2]], [1]),
        ({"one.jsonl": '{"a": 1, "b": 2}\n', "two.jsonl": '{"a": 3, "B": 4}\n'}, [[1, 2]], [1]),
        ({"one.jsonl": '{"a": 1, "b": 2}\n{"b": 4, "a": null}\n'}, [[1, 2], [20 / 7, 4]], []),  # null: the median
    ],
    ids=["same", "files", "mixed", "lines", "list", "files of lines", "null"],
)
def test_a_missing_column_is_never_filled(numbers, tmp_path, files, values, bad):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    examples = read_inputs([numbers], [str(tmp_path / name) for name in files]).examples
    rows = [
        examples.iloc[i : i + 1] if hasattr(examples, "iloc") else examples[i : i + 1] for i in range(len(examples))
    ]
    good = [row for place, row in enumerate(rows) if place not in bad]
    assert [numbers[0](row)[0].tolist() for row in good] == [pytest.approx(row) for row in values]
    for place in bad:
        with pytest.raises(ValueError, match=r"the columns '[ab]' are missing; there are "):
            numbers[0](rows[place])


def test_a_text_that_lacks_its_column_is_no_text(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "good"}\n{"txt": "bad"}\n')
    assert list(read_inputs([WORDS], [str(tmp_path / "in.jsonl")], column="text").examples) == ["good", None]


def save(folder, name, suffix, content):
    """Write a file, packed if its name says so."""
    path = folder / name.format(suffix.upper() if name.isupper() else suffix)
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if path.suffix.lower() == ".gz" else content)
    return str(path)


@pytest.mark.parametrize("name", ["new{}", "NEW{}", "new{}.gz", "NEW{}.GZ"])
def test_names_in_capitals_and_of_packed_files_are_read_alike(tmp_path, numbers, name):
    lines, table = '{"text": "good"}\n{"text": "bad"}\n', "text,n\ngood,1\nbad,2\n"
    for suffix, content in ((".csv", table), (".tsv", table.replace(",", "\t")), (".jsonl", lines), (".json", lines)):
        path = save(tmp_path, name, suffix, content)
        assert list(read_inputs([WORDS], [path], column="text").examples) == ["good", "bad"]
        if suffix in (".csv", ".tsv"):
            with pytest.raises(ValueError, match=r"--column must be a column of"):
                read_inputs([WORDS], [path])
    path = save(tmp_path, name, ".jsonl", '"good"\n"bad"\n')
    for steps in ([WORDS], [(Tokenize("{}", files=True),)], [(NextTokens("{}", 4, 0),)]):
        found = read_inputs(steps, [path])
        assert (list(found.examples), found.names) == (["good", "bad"], [f"{path}:1", f"{path}:2"])
    for suffix, content in ((".csv", "a,b\n1,2\n"), (".jsonl", '{"a": 1, "b": 2}\n')):
        path = save(tmp_path, name, suffix, content)
        assert numbers[0](read_inputs([numbers], [path]).examples).tolist() == [[1, 2]]
    path = save(tmp_path, name, ".csv", "a,b\n1,2\n")
    assert read_inputs([numbers, WORDS], [path]).kind == "table"
    path = save(tmp_path, name, ".jsonl", "[1, 2]\n")
    assert read_inputs([(ReadArrays((2,)),)], [path]).examples.tolist() == [[1, 2]]


@pytest.mark.parametrize("name", ["new{}", "NEW{}"])
def test_arrays_are_read_whatever_the_case_of_their_names(tmp_path, name):
    array, named = io.BytesIO(), io.BytesIO()
    np.save(array, np.ones((3, 2)))
    np.savez(named, a=np.ones((3, 2)), b=np.ones((3, 1)))
    path = save(tmp_path, name, ".npy", array.getvalue())
    assert read_inputs([(ReadArrays((2,)),)], [path]).examples.shape == (3, 2)
    step = ReadNamed.of({"a": np.ones((3, 2)), "b": np.ones((3, 1))})
    assert len(read_inputs([(step,)], [save(tmp_path, name, ".npz", named.getvalue())]).names) == 3


def test_json_in_a_file_of_another_name_is_a_table(tmp_path):
    (tmp_path / "new.txt").write_text('{"message": "bad car"}\n{"message": "good car"}\n')
    read = partial(read_inputs, [WORDS], [str(tmp_path / "new.txt")])
    assert list(read(column="message").examples) == ["bad car", "good car"]
    with pytest.raises(ValueError, match=r"^--column must be one of message, got 'text'"):
        read(column="text")


def test_arrays_of_several_shapes_stay_apart(tmp_path):
    (tmp_path / "one.jsonl").write_text("[1, 2]\n")
    (tmp_path / "two.jsonl").write_text("[3, 4, 5]\n")
    found = read_inputs([(ReadArrays((2,)),)], [str(tmp_path / name) for name in ("one.jsonl", "two.jsonl")])
    assert [example.tolist() for example in found.examples] == [[1, 2], [3, 4, 5]]


@pytest.fixture
def type_in(monkeypatch):
    """Pass bytes on standard input."""
    return lambda content: monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="ascii"))


@pytest.mark.parametrize(
    ("written", "given"),
    [
        ("latin-1", "latin-1"),
        ("utf-8", "utf-8"),
        ("utf-8-sig", "utf-8"),
        ("utf-16", "utf-8"),
        ("utf-16-le", "utf-16-le"),
    ],
)
def test_standard_input_is_decoded_as_files_are(type_in, numbers, written, given):
    type_in("größe\r\nzwei\n".encode(written))
    found = read_inputs([WORDS], ["-"], encoding=given)
    assert (list(found.examples), found.names) == (["größe", "zwei"], ["-:1", "-:2"])
    for content in ("a,b,größe\n1,2,3\n", '{"a": 1, "b": 2, "größe": 3}\n', '[{"a": 1, "b": 2, "größe": 3}]'):
        type_in(content.encode(written))
        assert numbers[0](read_inputs([numbers], ["-"], encoding=given).examples).tolist() == [[1, 2]]
    type_in("[1, 2]\n".encode(written))
    assert read_inputs([(ReadArrays((2,)),)], ["-"], encoding=given).examples.tolist() == [[1, 2]]


@pytest.mark.parametrize("written", ["utf-8", "utf-8-sig", "utf-16"])
def test_prompts_from_standard_input_are_decoded_as_files_are(type_in, monkeypatch, capsys, written):
    predictor = SimpleNamespace(generate=lambda task, prompts, **settings: [f"<{prompt}>" for prompt in prompts])
    monkeypatch.setattr("msh.inference.predictor.load", lambda *args, **settings: predictor)
    parser = ArgumentParser()
    generate.arguments(parser)
    type_in("größe\r\n\nzwei\n".encode(written))
    generate.generate(parser.parse_args(["run", "-"]))
    assert capsys.readouterr().out == "<größe>\n<>\n<zwei>\n"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a,b\n", "^standard input has no rows"),
        (b"", "^standard input is empty|^standard input has no"),
        (b"a,b\n1,2\n1,2,3\n", "^standard input, line 3"),
        (b"a,b\n\xff,2\n", "^standard input is not in utf-8"),
        (b'{"a": 1', "^-, line 1: not JSON"),
    ],
)
def test_errors_name_standard_input(type_in, numbers, content, problem):
    type_in(content)
    with pytest.raises(ValueError, match=problem):
        read_inputs([numbers], ["-"])
