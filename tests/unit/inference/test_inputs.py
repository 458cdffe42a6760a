"""Inputs of the command line: read as the task's training file was, in any encoding."""

import gzip

import pytest
import torch

from msh.inference.inputs import read_inputs
from msh.tasks.preprocessing import steps_from_data, steps_to_data
from msh.tasks.steps import ReadArrays, Tokenize
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
