"""One class per value, however it is spelled; missing labels; suspicious names."""

import logging

import numpy as np
import pandas as pd
import pytest

from msh.tasks.labels import find_classes, read_labels
from msh.tasks.tables import table


def classes_of(*cells):
    return find_classes("file, column 'y'", read_labels(cells))


@pytest.mark.parametrize(
    ("cells", "names", "counts"),
    [
        (["yes", "yes ", " no", "no"], ("no", "yes"), (2, 2)),
        (["1", "1.0", "01", "0", "0.0"], ("0", "1"), (2, 3)),
        (["1e1", "10", "9"], ("9", "10"), (1, 2)),
        (["class10", "class9", "class9"], ("class9", "class10"), (2, 1)),
        (["007", "008", "007"], ("007", "008"), (2, 1)),
        (["yes", "no", "nan", "NA", "NULL", "None", "", "?", "-", None, float("nan"), pd.NA], ("no", "yes"), (1, 1)),
        (["none", "mild", "none"], ("mild", "none"), (1, 2)),
        (["+", "-", "-", "?"], ("+", "-"), (1, 2)),
        ([2.0, 1.0, 2], ("1", "2"), (1, 2)),
        ([True, False, True], ("False", "True"), (1, 2)),
        (["caf\u00e9", "cafe\u0301", "tea"], ("caf\u00e9", "tea"), (2, 1)),
        (["1e999999999999999999999", "b"], ("1e999999999999999999999", "b"), (1, 1)),
        ([10**17 + 1, 10**17, 10**17], (str(10**17), str(10**17 + 1)), (2, 1)),
    ],
)
def test_a_value_is_one_class_and_missing_words_are_none(cells, names, counts):
    classes = classes_of(*cells)
    assert (classes.names, classes.counts) == (names, counts)
    assert sorted(set(classes.number(read_labels(cells)).tolist()) - {-1}) == list(range(len(names)))


def test_another_files_spellings_find_their_class():
    classes = classes_of("0", "1", "-1")
    later = read_labels(["1.0", "00", "2", None, "-"], classes)
    assert classes.names == ("-1", "0", "1")
    assert classes.number(later).tolist() == [2, 1, -1, -1, -1]
    assert later.missing.tolist() == [False, False, False, True, True]
    signs = classes_of("+", "-")
    assert signs.number(read_labels(["-", "-"], signs)).tolist() == [1, 1]


def test_counts_suspicious_names_and_single_rows_are_logged(caplog):
    with caplog.at_level(logging.INFO):
        classes_of("Yes", "yes", "yes", "NO", "NO", "no-one", "1", "10")
    assert "file, column 'y': 6 classes: 1 (1), 10 (1), NO (2), Yes (1), no-one (1), yes (2)" in caplog.text
    assert "are these one class? 'Yes' and 'yes'" in caplog.text
    assert "only one row has the class '1', '10', 'Yes', 'no-one'" in caplog.text


def test_rows_without_a_label_are_dropped_counted_and_found_again_in_errors(write, caplog):
    rows = "".join(f"{i},{('a', 'b', 'NA')[i % 3]}\n" for i in range(30))
    data = table(write("x,y\n" + rows), target="y")
    assert len(data.train) + len(data.test) == 20
    assert "dropped 10 rows without a target: 'y' is 'NA'" in caplog.text
    with pytest.raises(ValueError, match=r"line 4, column 'y': 'NA' is no target.*first of 10"):
        table(write("x,y\n" + rows), target="y", missing_labels="error")
    tests = write("x,y\n1,a\n2,NA\nhot,b\n", "tests.csv")
    with pytest.raises(ValueError, match=r"tests.csv, line 4, column 'x': 'hot'"):
        table(write("x,y\n" + rows), target="y", test_path=tests)


def test_a_test_files_unknown_classes_are_all_named(write):
    path = write("x,y\n" + "".join(f"{i},{'ab'[i % 2]}\n" for i in range(20)))
    tests = write("x,y\n1,a\n2,d\n3,c\n", "tests.csv")
    with pytest.raises(ValueError, match=r"tests.csv, line 3, column 'y': 'd' is no class .*\(a, b\).*others: d"):
        table(path, target="y", test_path=tests)


def test_regression_targets_keep_all_digits(write):
    values = 1_000_000_000 + np.arange(40) % 21
    data = table(
        write("x,y\n" + "".join(f"{i % 7},{y}\n" for i, y in enumerate(values))), target="y", kind="regression"
    )
    assert len({*data.train.targets.flatten().tolist(), *data.test.targets.flatten().tolist()}) == 21


def test_many_numbers_are_no_classes(write):
    path = write("x,y\n" + "".join(f"{i % 7},{i * 0.1:.1f}\n" for i in range(40)))
    with pytest.raises(ValueError, match=r"40 different numbers in 40 rows: source.kind=regression"):
        table(path, target="y")


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["yes", "no"], "classification"),
        ([1, 2, 3], "classification"),
        (["1", "2", ""], "classification"),
        (list(range(20)), "classification"),
        (list(range(21)), "regression"),
        ([0.5, 1, 2], "regression"),
        (["1,5", "2,5", "3"], "regression"),
        ([*range(50), "many"], "classification"),
    ],
)
def test_auto_finds_the_kind_from_the_target(values, kind, write, caplog):
    caplog.set_level("INFO")
    path = write("x;y\n" + "".join(f"{i % 7};{values[i % len(values)]}\n" for i in range(200)))
    data = table(path, target="y", kind="auto")
    explicit = table(path, target="y", kind=kind)
    assert data.kind == kind
    assert data.classes == explicit.classes
    assert data.train.targets.equal(explicit.train.targets)
    assert ("a regression, because" in caplog.text) == (kind == "regression")
