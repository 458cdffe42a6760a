"""Inputs of the command line: read as the task's training file was, in any encoding."""

import gzip

import pytest
import torch

from msh.inference.inputs import read_inputs
from msh.tasks.preprocessing import steps_from_data, steps_to_data
from msh.tasks.tables import table

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
