"""Tables in CSV files: values read, and errors with file, line, column and cell."""

import numpy as np
import pandas as pd
import pytest
import torch

from messages import says
from msh.tasks import build_task
from msh.tasks.cells import coded
from msh.tasks.tables import csv_table

HOUSES = "rooms,age,price\n" + "".join(f"{i},{i * i},{100 + 10 * i}\n" for i in range(10))
FLOWERS = "kind,length,width\n" + "".join(f"{'rose' if i % 2 else 'aster'},{i},{i / 2}\n" for i in range(20))


def examples(data):
    """Return both splits' input rows with their targets, sorted."""
    splits = (data.train, data.test)
    rows = [(*x, *y.view(-1).tolist()) for s in splits for x, y in zip(s.inputs.tolist(), s.targets, strict=True)]
    return sorted(rows)


def test_features_are_all_other_columns_by_default(write):
    data = csv_table(write(HOUSES), target="price", kind="regression")
    assert (data.kind, data.outputs) == ("regression", 1)
    assert (len(data.train), len(data.test)) == (8, 2)
    assert examples(data) == [(i, i * i, 100 + 10 * i) for i in range(10)]


def test_features_can_be_named_in_any_order(write):
    data = csv_table(write(HOUSES), target="rooms", features=["price", "age"], kind="regression", test_fraction=0.5)
    assert len(data.test) == 5
    assert examples(data) == [(100 + 10 * i, i * i, i) for i in range(10)]


def test_class_names_are_numbered_in_alphabetical_order(write):
    data = csv_table(write(FLOWERS), target="kind")
    assert (data.kind, data.outputs, data.train.targets.dtype) == ("classification", 2, torch.int64)
    assert examples(data) == [(i, i / 2, i % 2) for i in range(20)]


def test_numeric_classes_are_sorted_by_number(write):
    rows = "".join(f"{i},{(2, 10, 9)[i % 3]}\n" for i in range(12))
    data = csv_table(write("x,y\n" + rows), target="y")
    assert data.classes == ("2", "9", "10")
    assert examples(data) == [(i, (0, 2, 1)[i % 3]) for i in range(12)]


def test_a_threshold_makes_two_classes(write):
    data = csv_table(write(HOUSES), target="price", threshold=150)
    assert data.outputs == 2
    assert examples(data) == [(i, i * i, int(i > 5)) for i in range(10)]


def test_a_test_file_is_the_test_split(write):
    tests = write("width,kind,length\n1,rose,2\n3,aster,4\n", "tests.csv")
    data = csv_table(write(FLOWERS), target="kind", test_path=tests)
    assert len(data.train) == 20
    assert data.test.inputs.tolist() == [[2, 1], [4, 3]]
    assert data.test.targets.tolist() == [1, 0]


def test_the_split_is_the_same_for_every_seed(write):
    path = write(HOUSES)
    splits = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        splits.append(csv_table(path, target="price", kind="regression").test.inputs)
    assert torch.equal(*splits)


def test_quotes_line_ends_blank_lines_and_a_byte_order_mark_are_read(write):
    content = '\ufeff"y","x"\r\n"a, ""b""",1\r\n\r\nc,2\r\na multi\nline,3\r\nc,4\r\n'
    content = content.replace("a multi\nline", '"a multi\nline"')
    data = csv_table(write(content), target="y", test_fraction=0.5)
    assert data.outputs == 3
    assert examples(data) == [(1.0, 1), (2.0, 2), (3.0, 0), (4.0, 2)]


def test_another_encoding_is_read_when_named(write):
    path = write("x,größe\n1,2\n2,4\n3,6\n", encoding="latin-1")
    assert csv_table(path, target="größe", kind="regression", encoding="latin-1").outputs == 1


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_other_delimiters_are_found_or_named(delimiter, write):
    path = write("x;y;kind\n1;2;a,b\n3;4;c\n5;6;c\n".replace(";", delimiter))
    for given in (delimiter, None):
        data = csv_table(path, target="kind", delimiter=given, test_path=path)
        assert data.train.inputs.tolist() == [[1, 2], [3, 4], [5, 6]]
        assert data.classes == ("a,b", "c")
    with pytest.raises(ValueError, match=r"source.delimiter = ',' .*try source.delimiter="):
        csv_table(path, target="kind", delimiter=",")
    for bad in ("", ";;", "\n", '"'):
        with pytest.raises(ValueError, match=says("source.delimiter", value=bad)):
            csv_table(path, target="kind", delimiter=bad)


def test_inputs_and_target_can_be_scaled_to_0_to_1_by_the_training_split(write):
    data = csv_table(write(HOUSES), target="price", kind="regression")
    task = build_task("a", data, normalize="minmax", normalize_target="minmax", metric="mse")
    train = task.splits["train"]
    for values in (train.inputs, train.targets):
        assert values.amin(0).tolist() == [0.0] * values.shape[1]
        assert values.amax(0).tolist() == [1.0] * values.shape[1]
    everything = torch.cat([task.splits[name].targets for name in ("train", "val", "test")]).flatten().sort().values
    steps = everything.diff()
    torch.testing.assert_close(steps, steps[:1].expand(9))  # prices rise by 10 each
    metric = task.build_metric()
    metric.update(task.predictions((train.targets - task.target_mean) / task.target_std), train.targets + 0.1)
    assert metric.compute().item() == pytest.approx(0.01, rel=1e-4)


def test_a_classification_has_no_target_to_scale(write):
    data = csv_table(write(FLOWERS), target="kind")
    with pytest.raises(ValueError, match=r"tasks.a.normalize_target = minmax .*classification"):
        build_task("a", data, normalize_target="minmax")


MANY = "".join(f"{i},{i}\n" for i in range(6))
REFUSED = [
    ("x,y\n1,2\n2,red\n3,4\n4,red\n", {}, r"table.csv, line 3, column 'y': 'red' is not a finite number .*2 such rows"),
    ("x,y\n1,2\n2,\n3,4\n", {"missing_labels": "error"}, r"table.csv, line 3, column 'y': .* is no target"),
    ("x,y\n1,\n2,NA\n3,-\n", {}, r"table.csv, line 2, column 'y': .* is no target \(first of 3"),
    ("x,y\n1,2\n2,3\n", {"missing_labels": "skip"}, says("source.missing_labels", "one of drop, error", "skip")),
    ("x,y\n1,2\n2,inf\n3,4\n", {}, r"line 3, column 'y': 'inf'"),
    ("x,y\n1,2\n2,1e300\n3,4\n", {}, r"line 3, column 'y': '1e\+300' .*beyond 3.4e\+38"),
    ('x,y\n1,"2\n"\n2,3\n3,four\n', {}, r"line 5, column 'y': 'four'"),
    ("x,y\n" + MANY + "red,3\n", {}, r"line 8, column 'x': 'red' is not a finite number"),
    ("x,y\n1,2\n2\n3,4\n", {}, r"line 3: 1 cells, but the header names 2 columns"),
    ("x,y\n1,2\n2,3,4\n", {}, r"line 3: 3 cells, but the header names 2 columns$"),
    ("x,y\n1,2\n2,3,4\n5\n", {}, r"line 3: 3 cells, .*2 such lines"),
    ("x,y,x\n1,2,3\n", {}, r"the header names 'x' more than once"),
    ("x,y\n", {}, r"table.csv has no rows"),
    ("", {}, r"table.csv has no rows"),
    ('x,y\n1,"2\n', {}, r"line 2: not a CSV file"),
    ("x,prise\n1,2\n", {"target": "price"}, says("source.target", value="price", meant="prise")),
    ("x,y\n1,2\n", {"features": ["z"]}, says("source.features", value="z")),
    ("x,y\n1,2\n", {"features": ["x", "y"]}, says("source.features", value=["x", "y"])),
    ("y\n1\n2\n", {}, says("source.features", value=[])),
    ("x,y\n1,2\n2,3\n", {"kind": "regresion"}, says("source.kind", value="regresion", meant="regression")),
    ("x,y\n1,2\n2,3\n", {"threshold": 1}, r"source.threshold = 1 .*kind=classification"),
    ("x,y\n1,2\n2,3\n", {"test_fraction": 1.5}, says("source.test_fraction", "in (0, 1)", 1.5)),
    ("x,y\n1,2\n2,3\n", {"encoding": "uft-8"}, says("source.encoding", value="uft-8")),
    ("x,y\n1,a\n2,a\n", {"kind": "classification"}, r"column 'y': every row has 'a'; needs at least two classes$"),
    (
        "x,y\n1,None\n2,NA\n3,Mild\n4,NA\n",
        {"kind": "classification"},
        r"column 'y': every row with a label has 'Mild'; needs at least two classes; 3 of 4 rows have none, but "
        r"'NA', 'None', for missing labels; if these are classes, give them other names, such as 'none'$",
    ),
    ("x,y\n1,\n2,a\n", {"kind": "classification"}, r"'a'; .*; 1 of 2 rows have none, but '', for missing labels$"),
]


@pytest.mark.parametrize(("content", "settings", "message"), REFUSED)
def test_bad_cells_columns_and_settings_are_rejected(content, settings, message, write):
    with pytest.raises(ValueError, match=message):
        csv_table(write(content), **({"target": "y", "kind": "regression"} | settings))


def test_a_class_only_in_the_test_file_is_rejected(write):
    tests = write("kind,length,width\nrose,1,2\ntulip,3,4\n", "tests.csv")
    with pytest.raises(ValueError, match=r"tests.csv, line 3, column 'kind': 'tulip' is no class.*\(aster, rose\)"):
        csv_table(write(FLOWERS), target="kind", test_path=tests)


def test_a_test_file_and_a_share_together_are_rejected(write):
    path = write(FLOWERS)
    with pytest.raises(ValueError, match=r"source.test_fraction = 0.5 .*source.test_path"):
        csv_table(path, target="kind", test_path=path, test_fraction=0.5)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nowhere.csv$"):
        csv_table(str(tmp_path / "nowhere.csv"), target="y")


def test_another_encoding_is_rejected_with_byte_and_line(write):
    path = write("x,größe\n1,2\n", encoding="latin-1")
    with pytest.raises(ValueError, match=r"table.csv is not in utf-8: byte 4 \(line 1\) is 0xf6.*source.encoding"):
        csv_table(path, target="größe", kind="regression")


def test_a_seed_draws_the_test_split_as_keras_does(write):
    path = write("x,y\n" + "".join(f"{i},{i}\n" for i in range(10)))
    data = csv_table(path, target="y", kind="regression", test_fraction=0.3, test_seed=113)
    order = list(range(10))
    np.random.RandomState(113).shuffle(order)
    assert data.train.inputs.flatten().tolist() == order[:7]
    assert data.test.inputs.flatten().tolist() == order[7:]


def test_an_unusable_seed_is_rejected(write):
    path = write("x,y\n1,2\n2,3\n")
    with pytest.raises(ValueError, match=says("source.test_seed", "in [0, 2**32)", -1)):
        csv_table(path, target="y", kind="regression", test_seed=-1)
    with pytest.raises(ValueError, match=r"source.test_seed = 1 .*source.test_path"):
        csv_table(path, target="y", kind="regression", test_seed=1, test_path=path)


def test_bad_columns_are_reported_together(write):
    rows = "".join(f"{i},{i},{i}\n" for i in range(6))
    path = write("x,y,z\nred,1,blue\n2,two,3\n" + rows)
    with pytest.raises(ValueError, match="column 'x': 'red'") as caught:
        csv_table(path, target="y", kind="regression", features=["x", "zz", "z"])
    caught.match(says("source.features", value="zz", meant="z"))
    caught.match("column 'z': 'blue'")
    caught.match("column 'y': 'two'")


def test_categories_are_numbered_as_their_texts():
    texts = [*["b ", "a", None, "NA", "b", "é", "e\u0301"] * 12, "last"]
    for dtype in ("object", "string", "category"):
        codes, names = coded(pd.Series(texts, dtype=dtype))
        assert names == ["b", "a", "é", "last"], dtype
        assert codes[:7].tolist() == [0, 1, -1, -1, 0, 2, 2]
        assert codes[-1] == 3
    unused = pd.Series(pd.Categorical(["x", "z", None], categories=["z", "y", "x"]))
    assert (coded(unused)[0].tolist(), coded(unused)[1]) == ([0, 1, -1], ["x", "z"])
