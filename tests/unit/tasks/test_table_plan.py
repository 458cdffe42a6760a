"""The plan of a table's columns, the step that it makes, splits, and features for raw rows."""

import datetime
import decimal
import enum
import json
import logging
import pathlib
import re
import tempfile

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from messages import says
from msh.tasks import build_task
from msh.tasks.cells import NO_DATE, as_text, parse_dates
from msh.tasks.columns import Category, Dropped, Hashed, Number, Text
from msh.tasks.outputs import outputs_from_data
from msh.tasks.preprocessing import prepare, steps_from_data, steps_to_data
from msh.tasks.table_files import Table
from msh.tasks.table_plan import Wishes, plan_columns
from msh.tasks.table_step import ReadTable
from msh.tasks.tables import table

DAYS = pd.date_range("2024-01-01", periods=60).astype(str)
PEOPLE = pd.DataFrame(
    {
        "id": np.arange(60) + 500,
        "customer": [f"c{i:03}" for i in range(60)],
        "age": [20.5 + i if i % 5 else None for i in range(60)],
        "zip": [f"0{1000 + i % 4}" for i in range(60)],
        "member": ["yes", "no", "no", "yes"] * 15,
        "since": DAYS,
        "land": ["de", "fr", "NA"] * 20,
        "street": [f"street{i // 2}" for i in range(60)],
        "remark": [f"called {i} times" for i in range(60)],
        "unit": ["m"] * 60,
        "nothing": [None] * 60,
        "bought": ["a", "b"] * 30,
    }
)


@pytest.fixture
def people(tmp_path):
    def load(frame=PEOPLE, **settings):
        frame.to_csv(tmp_path / "people.csv", index=False)
        return table(str(tmp_path / "people.csv"), target="bought", **settings)

    return load


def roles(data):
    return {column.name: column.role for column in data.steps[0].columns}


def notes(data):
    return {column.name: column.note for column in data.steps[0].columns if column.role == "dropped"}


def through_json(steps):
    return steps_from_data(json.loads(json.dumps(steps_to_data(steps))))


def test_every_column_has_a_role(people, caplog):
    with caplog.at_level(logging.INFO):
        data = people()
    assert {name: role for name, role in roles(data).items() if role != "dropped"} == {
        "age": "number",
        "zip": "category",
        "member": "boolean",
        "since": "date",
        "land": "category",
        "street": "category",
    }
    assert notes(data) == {
        "id": "identifier: numbers the rows",
        "customer": "identifier: a value per row",
        "remark": "text: source.columns={remark: text} reads it",
        "unit": "constant: m",
        "nothing": "empty",
        "bought": "target",
    }
    plan = caplog.messages[-1].splitlines()[1:]
    assert len(plan) == 13
    assert all(len(line) <= 80 for line in plan)
    assert plan[1].startswith("age                      number          2  missing: ")


def test_roles_can_be_set(people):
    columns = {"id": "category", "customer": "drop", "remark": "text", "since": "category", "zip": "number"}
    data = people(columns=columns, exclude=["street"])
    found = roles(data)
    assert (found["id"], found["customer"], found["remark"]) == ("hashed", "dropped", "text")
    assert (found["since"], found["zip"], found["street"]) == ("hashed", "number", "dropped")


def test_codes_keep_their_zeros_and_many_values_are_hashed(write):
    rows = "".join(f"{i % 50:04},{i % 3},{i % 2}\n" for i in range(300))
    frame = table(write("code,other,y\n" + rows), target="y")
    code, other, _ = frame.steps[0].columns
    assert (code.role, code.features, other.role) == ("hashed", 64, "number")
    small = table(
        write("zip,y\n" + rows.replace(",0,", ",").replace(",1,", ",").replace(",2,", ",")),
        target="y",
        columns={"zip": "number"},
    )
    assert small.steps[0].columns[0].role == "number"


def test_features_keep_columns_by_name_and_order(people):
    data = people(features=["unit", "id", "age"])
    assert data.steps[0].inputs == ["unit", "id", "age"]
    assert data.train.inputs[:, 1].min() >= 500


def test_wrong_names_and_roles_are_reported_together(people):
    with pytest.raises(ValueError, match=says("source.columns", value="ages", meant="age")) as raised:
        people(columns={"ages": "number", "age": "numbr", "zip": "text"}, exclude=["zip", "lend"])
    raised.match(says("source.columns.age", value="numbr", meant="number"))
    raised.match("source.columns.zip = text, but source.exclude names it too")
    raised.match(says("source.exclude", value="lend", meant="land"))


def test_features_have_the_right_values(people):
    step = people(columns={"remark": "drop"}).steps[0]
    row = {"age": None, "zip": "01002", "member": "YES", "since": "2024-01-31", "land": "it", "street": "street1"}
    features = dict(zip(labels(step), step([row])[0].tolist(), strict=True))
    medians = next(column.fill for column in step.columns if column.name == "age")
    assert (features["age 0"], features["age 1"], features["member 0"]) == (medians, 1, 1)
    assert [features[f"zip {i}"] for i in range(4)] == [0, 0, 1, 0]
    assert [features[f"land {i}"] for i in range(3)] == [0, 0, 0]  # unknown; the third is for missing cells
    start = next(column.start for column in step.columns if column.name == "since")
    assert features["since 0"] == (pd.Timestamp("2024-01-31") - pd.Timestamp(start * 1000)).days
    assert features["since 1"] == pytest.approx(0)  # the first month's sine
    assert features["since 3"] == pytest.approx(np.sin(2 * np.pi * 2 / 7))  # a Wednesday
    hashed = Hashed("street", 64, missing=True).read(pd.Series(["street1", None]), str)
    assert sorted(np.abs(hashed[0])) == [0] * 64 + [1]
    assert hashed[1].tolist() == [0] * 64 + [1]


def labels(step):
    return [f"{column.name} {i}" for column in step.columns for i in range(column.features)]


def test_rare_values_share_a_feature_that_unknown_ones_get():
    frame = PEOPLE.assign(land=["de", "fr", "it", "es"] * 14 + ["xx", "yy", "zz", "de"])
    rare = plan_columns(Table(None, frame), Wishes({"bought": "target"}, ["land"])).columns[0]
    assert (rare.values, rare.other) == (("de", "es", "fr", "it"), True)
    assert rare.read(pd.Series(["xx", "never seen", "de"]), str).tolist() == [
        [0, 0, 0, 0, 1],
        [0, 0, 0, 0, 1],
        [1, 0, 0, 0, 0],
    ]


KINDS = [1.0, 2.0, 3.0, None]
SPELLINGS = {  # of the numbers 1, 2, 3 and of a missing cell
    "texts of pandas": pd.Series(["1.0", "2.0", "3.0", ""]),
    "texts": pd.Series(["1", "2", "3", ""]),
    "floats": pd.Series(KINDS),
    "integers": pd.Series([1, 2, 3, None], dtype="Int64"),
    "objects": pd.Series([1, 2, 3, None], dtype=object),
    "decimals": pd.Series([decimal.Decimal("1.00"), 2, 3, None], dtype=object),
}


@pytest.mark.parametrize("read", SPELLINGS)
@pytest.mark.parametrize("fitted", SPELLINGS)
@pytest.mark.parametrize("role", ["category", "hashed"])
def test_numbers_in_a_column_of_categories_are_read_however_they_are_written(role, fitted, read, caplog):
    """Trained on one kind of file, asked with another."""
    others = [f"v{i // 5}" for i in range(200 * (role == "hashed"))]  # so many values that they are hashed
    frame = pd.DataFrame({"kind": [*(SPELLINGS[fitted].tolist() * 10), *others]}, dtype=object)
    step = plan_columns(Table(None, frame), Wishes({}, None, {"kind": "category"}))
    assert step.columns[0].role == role
    [again] = through_json((step,))
    asked = pd.concat([SPELLINGS[read]] * 5, ignore_index=True)
    answers = again(pd.DataFrame({"kind": asked}))
    assert torch.equal(answers, step.read(frame[:20], str))
    assert len(answers.unique(dim=0)) == 4
    assert not caplog.records


TYPED = {  # texts of a training file to cells of the same values
    "true,false": [True, False],
    "TRUE,FALSE": [True, False],
    "True,False": np.array([True, False]),
    " true,false ": pd.Series([True, False], dtype="boolean"),
    "0.1,0.25": np.array([0.1, 0.25], np.float32),
    "0.1,.25": pd.Series([0.1, 0.25], dtype="Float32"),
    "2024-01-05,2024-01-06": pd.to_datetime(["2024-01-05", "2024-01-06"]),
    "2024-01-05 00:00:00,2024-01-06 00:00:00": [np.datetime64("2024-01-05"), np.datetime64("2024-01-06", "ns")],
    "2024-01-05 10:30,2024-01-06 00:00": pd.to_datetime(["2024-01-05 10:30", "2024-01-06 00:00"]),
    "2024-01-05T10:30:00,2024-01-06T00:00:00": pd.to_datetime(["2024-01-05 10:30", "2024-01-06 00:00"]).astype(
        "category"
    ),
    "2024-01-05 00:00:00,2024-01-06 00:00:00 ": [datetime.date(2024, 1, 5), datetime.date(2024, 1, 6)],
}


@pytest.mark.parametrize("texts", TYPED)
@pytest.mark.parametrize("role", ["category", "hashed"])
def test_typed_cells_are_read_as_the_training_file_writes_their_values(role, texts):
    others = [f"v{i // 5}" for i in range(200 * (role == "hashed"))]
    first, second = texts.split(",")
    frame = pd.DataFrame({"kind": [first, second, "unknown"] * 10 + others}, dtype=object)
    step = plan_columns(Table(None, frame), Wishes({}, None, {"kind": "category"}))
    assert step.columns[0].role == role
    [again] = through_json((step,))
    expected = step.read(frame[:2], str)
    assert len(step.read(frame[:3], str).unique(dim=0)) == 3
    asked = pd.DataFrame({"kind": TYPED[texts]})
    assert torch.equal(again(asked), expected)
    assert torch.equal(again(asked[::-1]), expected.flip(0))
    for cells in (list(TYPED[texts]), [*TYPED[texts], "unknown"]):
        assert torch.equal(again([{"kind": cell} for cell in cells])[:2], expected)
        assert torch.equal(again(pd.DataFrame({"kind": pd.Series(cells, dtype=object)}))[:2], expected)


def test_typed_cells_equal_themselves():
    """Training on a file with types, in which they have the texts of earlier releases."""
    for role, others in (("category", []), ("hashed", [f"v{i // 5}" for i in range(200)])):
        for cells in TYPED.values():
            frame = pd.DataFrame({"kind": pd.Series([*pd.Series(cells).astype(object), "unknown"] * 10 + others)})
            step = plan_columns(Table(None, frame), Wishes({}, None, {"kind": "category"}))
            assert step.columns[0].role == role
            assert torch.equal(step(pd.DataFrame({"kind": cells})), step.read(frame[:2], str))
            assert len(step.read(frame[:3], str).unique(dim=0)) == 3


def test_texts_are_compared_as_they_are_written():
    step = ReadTable((Category("a", ("true", "2024-01-05")),))
    texts = ["true", "TRUE", "2024-01-05", "2024-01-05T00:00:00", "2024-01-05 00:00"]
    assert step([{"a": text} for text in texts]).sum(1).tolist() == [1, 0, 1, 0, 0]
    earlier = Hashed("a", 8)
    typed = pd.Series([True, pd.Timestamp("2024-01-05"), np.float32(0.1)], dtype=object)
    assert (earlier.read(typed, str) == earlier.read(typed.map(as_text), str)).all()


@pytest.mark.parametrize(
    "cells", [["1.0", "0.0", ""], ["1", "0", ""], [1, 0, None], [1.0, 0.0, None], [True, False, None]]
)
def test_booleans_may_be_numbers(cells):
    frame = pd.DataFrame({"is_new": cells * 10}, dtype=object)
    step = plan_columns(Table(None, frame), Wishes({}, None, {"is_new": "boolean"}))
    assert step(frame[:3]).tolist() == [[1, 0], [0, 0], [0.5, 1]]


@pytest.mark.parametrize(
    ("texts", "values", "by_value"),
    [
        (["01", "1", "2.0", "2"], ("01", "1", "2"), True),
        (["2.50", "3.00", ".5"], ("0.5", "2.5", "3"), True),
        (["9007199254740993.0", "9007199254740992"], ("9007199254740992", "9007199254740993"), True),
        (["1.1", "1.10", "1.2"], ("1.1", "1.10", "1.2"), False),  # versions
        (["+49", "49", "1.0"], ("+49", "1.0", "49"), False),
        (["007", "08"], ("007", "08"), False),
        (["1e999", "-0", "a"], ("0", "1e999", "a"), True),
        (["a", "b"], ("a", "b"), False),
    ],
)
def test_codes_versions_and_words_are_told_from_numbers(texts, values, by_value):
    frame = pd.DataFrame({"kind": texts * 10})
    [column] = plan_columns(Table(None, frame), Wishes({}, None, {"kind": "category"})).columns
    assert (column.values, column.by_value) == (values, by_value)


def test_categories_of_earlier_releases_are_read_as_they_were():
    [step] = steps_from_data(
        [{"step": "table", "columns": [{"name": "a", "values": ["1.0", "2"], "role": "category"}]}]
    )
    assert step.columns == (Category("a", ("1.0", "2")),)
    assert step([{"a": "1.0"}, {"a": "1"}, {"a": 2}, {"a": "2.0"}]).tolist() == [[1, 0], [0, 0], [0, 1], [0, 0]]


@pytest.mark.parametrize("other", [False, True])
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([1001] * 6 + ["01002"] * 5, "6 of 11 cells are none of the values .* \\('01001', '01002'\\): '1001'$"),
        ([1001, None] * 6 + ["01002"] * 5, "6 of 11 cells"),
        ([1001] * 6 + ["01002"] * 6, ""),
        ([1001] * 9 + [None] * 9, ""),
    ],
)
def test_a_column_of_mostly_unknown_values_is_warned_of(cells, message, other, missing, caplog):
    step = ReadTable((Category("zip", ("01001", "01002"), other, missing),))
    step(pd.DataFrame({"zip": cells}, dtype=object))
    assert len(caplog.messages) == bool(message)
    assert re.search(message, caplog.text.rstrip())
    step.read(pd.DataFrame({"zip": cells}, dtype=object), str)  # in training, values may be rare
    assert len(caplog.messages) == bool(message)


class Colour(enum.Enum):
    RED = "red"


NESTED = {
    "list": ["red"],
    "tuple": ("red",),
    "set": {"red"},
    "frozenset": frozenset(["red"]),
    "dict": {"red": 1},
    "bytes": b"red",
    "bytearray": bytearray(b"red"),
    "array": np.array(["red"]),
    "array of one": np.array(1.0),
    "tensor": torch.tensor(1.0),
    "enumeration": Colour.RED,
    "masked": np.ma.masked,
}


@pytest.mark.parametrize("cell", NESTED.values(), ids=NESTED)
@pytest.mark.parametrize("column", [Category("a", ("red", "1")), Hashed("a", 8), Text("a", 8)], ids=lambda c: c.role)
def test_cells_that_training_refuses_are_refused(column, cell):
    step = ReadTable((column,))
    message = r"row {}, column 'a': .* is no text, number or date"
    for place, cells in ((1, ["red", cell]), (80, ["red"] * 80 + [cell, cell])):
        objects = np.fromiter(cells, dtype=object, count=len(cells))
        for rows in ([{"a": one} for one in cells], pd.DataFrame({"a": pd.Series(objects, dtype=object)})):
            with pytest.raises(ValueError, match=message.format(place)):
                step(rows)
            if isinstance(rows, list):
                assert len(step([{**row, "a": "red", "more": row["a"]} for row in rows])) == len(cells)
    if isinstance(cell, tuple | frozenset | bytes | Colour):  # pandas holds them as categories
        with pytest.raises(ValueError, match=message.format(1)):
            step(pd.DataFrame({"a": pd.Categorical(pd.Series(["red", cell, None], dtype=object))}))


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64, object])
def test_masked_cells_are_missing(dtype):
    step = ReadTable((Number("n", 5.0, missing=True), Category("c", ("1", "2"), missing=True)))
    cells = np.ma.masked_array([[3, 1], [4, 2], [9, 9]], [[False, False], [True, True], [False, True]], dtype)
    assert step(cells).tolist() == [[3, 0, 1, 0, 0], [5, 1, 0, 0, 1], [9, 0, 0, 0, 1]]
    assert step(cells[:1]).tolist() == step(cells.data[:1]).tolist()


def test_values_of_other_types_are_read_by_their_text():
    class Size(enum.StrEnum):
        SMALL = "s"

    step = ReadTable((Category("a", ("s", "1.50", "(0, 1]")),))
    cells = [Size.SMALL, decimal.Decimal("1.50"), pd.Interval(0, 1), pathlib.PurePosixPath("s")]
    assert step([{"a": cell} for cell in cells]).argmax(1).tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"age": 1}], r"row 0: inputs: the columns 'zip', 'member'.* are missing"),
        (pd.DataFrame({"agee": [1]}), r"the columns 'age', 'zip'.* are missing; there are 'agee'; did you mean 'agee'"),
        ({"age": "old"}, r"row 1, column 'age': 'old' is not a finite number"),
        ({"age": "1,5"}, r"column 'age': '1,5' .*write a decimal point"),
        ({"member": "perhaps"}, r"row 1, column 'member': 'perhaps' is neither true"),
        ({"since": "yesterday"}, r"row 1, column 'since': 'yesterday' is not a date"),
        ({"since": "today"}, r"row 1, column 'since': 'today' is not a date"),
        ({"since": "now"}, r"row 1, column 'since': 'now' is not a date"),
        (torch.zeros(2, 3), says("inputs: the shape", "(rows, 6)", (2, 3))),
        ("text", says("inputs", value="str")),
    ],
)
def test_wrong_inputs_are_refused_by_column_and_value(rows, message, people):
    step = people().steps[0]
    if isinstance(rows, dict):
        rows = pd.DataFrame([PEOPLE.iloc[0].to_dict(), PEOPLE.iloc[1].to_dict() | rows])
    with pytest.raises(ValueError, match=message):
        step(rows)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "b", "a"], "inputs: the columns 'a' are there more than once: name each column once"),
        (["a", "b", " a "], "the columns 'a' are there more than once"),
        (["b", "a", "b", "a", "x"], "the columns 'a', 'b' are there more than once"),
        (["a", "b", "x", "x"], ""),
    ],
)
def test_repeated_columns_are_refused_if_they_are_needed(names, message):
    step = ReadTable((Number("a", 0), Number("b", 0), Dropped("x", "constant")))
    frame = pd.DataFrame([range(len(names))], columns=names)
    if not message:
        assert step(frame).tolist() == [[0, 1]]
        return
    with pytest.raises(ValueError, match=message):
        step(frame)
    if len(set(names)) == len(names):
        with pytest.raises(ValueError, match=f"row 0: .*{message}"):
            step([dict(zip(names, range(len(names)), strict=True))])


def test_the_test_split_changes_nothing_that_is_fitted(people):
    first = people(split={"column": "part"}, frame=PEOPLE.assign(part=["train"] * 50 + ["test"] * 10))
    changed = PEOPLE.assign(part=["train"] * 50 + ["test"] * 10, age=[*PEOPLE["age"][:50], *[9e9] * 10])
    changed.loc[50:, ["land", "zip"]] = ["other", "99999"]
    second = people(split={"column": "part"}, frame=changed)
    assert steps_to_data(first.steps) == steps_to_data(second.steps)
    assert first.train.inputs.equal(second.train.inputs)


@pytest.mark.parametrize(
    ("format", "days"),
    [
        ("%d.%m.%Y", range(1, 29)),
        ("%m/%d/%Y", range(1, 29)),
        ("%Y/%m/%d", range(1, 29)),
        ("%Y-%m-%dT%H:%M:%S", range(1, 29)),
    ],
)
def test_dates_are_recognized_in_any_format(format, days, write):
    dates = [pd.Timestamp(2024, 3, day, 6).strftime(format) for day in days]
    data = table(write("when,y\n" + "".join(f"{d},{i % 2}\n" for i, d in enumerate(dates))), target="y")
    [column, _] = data.steps[0].columns
    assert (column.role, column.times) == ("date", "H" in format)
    assert len(data.train.inputs[:, 0].unique()) == len(data.train)


def test_dates_of_two_meanings_need_a_format(write):
    rows = "".join(f"{1 + i % 12:02}/{1 + i // 12:02}/2024,{i % 2}\n" for i in range(48))
    with pytest.raises(ValueError, match=r"'when': '.*' may have several meanings: set .*{when: date %d/%m/%Y} or"):
        table(write("when,y\n" + rows), target="y")
    data = table(write("when,y\n" + rows), target="y", columns={"when": "date %m/%d/%Y"})
    assert data.steps[0].columns[0].format == "%m/%d/%Y"


SHORT = ["%d.%m.%y", "%d-%b-%y", "%d.%m.%y %H:%M"]


@pytest.mark.parametrize("format", SHORT)
@pytest.mark.parametrize("births", [1940, 1990])
def test_years_of_two_digits_in_the_future_are_warned_of(births, format, write, caplog):
    born = pd.date_range(f"{births}-01-15", periods=200, freq="50D").strftime(format)
    path = write("born,x,y\n" + "".join(f"{day},{i / 8},{i % 2}\n" for i, day in enumerate(born)))
    with caplog.at_level(logging.INFO):
        step = table(path, target="y").steps[0]
    assert step.columns[0].format == format
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    if births == 1990:
        assert not warnings
        assert re.search(r"'born': years have two digits, and are read as from 1990-\d\d-\d\d to 2017", caplog.text)
        return
    assert len(warnings) == 1
    example = (
        r"column 'born': '\d\d.*67.*' is read as 2067-\d\d-\d\d, which is in the future: .*source.columns={born: drop}"
    )
    assert re.match(example, warnings[0])
    caplog.clear()
    asked = pd.DataFrame({"born": ["", *born[:2]], "x": 0.0})
    step(asked[:1])
    assert not caplog.messages
    step(asked)
    assert re.match(rf"column 'born': '{born[1]}' is read as 2040-03-05", caplog.messages[0])


def test_a_split_by_years_of_two_digits_is_warned_of(people, caplog):
    born = pd.date_range("1960-01-15", periods=60, freq="90D").strftime("%d.%m.%y")
    people(PEOPLE.assign(born=born), split={"time": "born"}, columns={"born": "drop"})
    assert caplog.text.count("column 'born': '28.11.68' is read as 2068-11-28, which is in the future") == 1


# ---- splits


def test_a_column_names_the_splits(people):
    parts = ["train"] * 30 + ["Validation"] * 10 + ["TEST"] * 20
    data = people(PEOPLE.assign(part=parts), split={"column": "part"})
    assert [len(split) for split in (data.train, data.val, data.test)] == [30, 10, 20]
    task = build_task("a", data)
    assert [len(task.splits[name]) for name in ("train", "val", "test")] == [30, 10, 20]
    assert notes(data)["part"] == "split (column)"
    with pytest.raises(ValueError, match=r"line 3, column 'part': 'other' is no split"):
        people(PEOPLE.assign(part=["train", "other"] * 30), split={"column": "part"})
    with pytest.raises(ValueError, match="no row is of the test split"):
        people(PEOPLE.assign(part=["train"] * 60), split={"column": "part"})


def test_a_group_stays_in_one_split(people):
    data = people(PEOPLE.assign(patient=np.arange(60) // 4), split={"group": "patient"}, features=["patient", "age"])
    groups = [set(split.inputs[:, 0].tolist()) for split in (data.train, data.val, data.test)]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 15
    assert len(groups[2]) == 3


@pytest.mark.parametrize("spelling", ["{}.0", "{}.00", "0{}", " {} ", "{}e0"])
def test_a_group_that_is_written_in_two_ways_stays_in_one_split(spelling, people):
    numbers = np.random.default_rng(0).integers(1, 16, len(PEOPLE))
    written = [spelling.format(number) if row % 2 else str(number) for row, number in enumerate(numbers)]
    data = people(PEOPLE.assign(patient=written), split={"group": "patient"})
    groups = [set(numbers[split.raw.rows.numpy()].tolist()) for split in (data.train, data.val, data.test)]
    assert sum(map(len, groups)) == len(set.union(*groups)) == len(set(numbers))


def test_groups_of_names_are_told_apart(people):
    names = [f"{place}-{name}" for place in "ab" for name in range(30)]
    data = people(PEOPLE.assign(patient=names), split={"group": "patient"})
    assert [len(split) for split in (data.train, data.val, data.test)] == [38, 10, 12]


@pytest.mark.parametrize("column", ["since", "id"])
def test_the_latest_rows_are_the_test_split(column, people):
    shuffled = PEOPLE.sample(frac=1, random_state=0)
    data = people(shuffled, split={"time": column}, features=[column, "age"])
    latest = [split.inputs[:, 0] for split in (data.train, data.val, data.test)]
    assert [len(part) for part in latest] == [38, 10, 12]
    assert latest[0].max() < latest[1].min()
    assert latest[1].max() < latest[2].min()


@pytest.mark.parametrize(
    ("format", "role"),
    [
        ("%d%m%Y", "date %d%m%Y"),  # numbers, too, but those do not grow with time
        ("%m.%Y", "date %m.%Y"),
        ("%d/%m/%Y", "date %d/%m/%Y"),  # without the role, month and day could be exchanged
        ("%Y%m%d", "date"),
        ("%d.%m.%Y", "drop"),
    ],
)
def test_rows_are_split_by_time_in_the_format_that_is_set(format, role, people):
    days = pd.date_range("2021-11-01", periods=60, freq="MS")
    frame = PEOPLE.assign(sold=days.strftime(format)).sample(frac=1, random_state=0)
    data = people(frame, split={"time": "sold"}, columns={"sold": role})
    order = frame.index.to_numpy()  # by time
    splits = [sorted(order[split.raw.rows].tolist()) for split in (data.train, data.val, data.test)]
    assert splits == [list(range(38)), list(range(38, 48)), list(range(48, 60))]


def test_a_validation_file_is_the_validation_split(people, tmp_path):
    PEOPLE[:7].to_csv(tmp_path / "val.csv", index=False)
    data = people(val_path=str(tmp_path / "val.csv"))
    assert [len(split) for split in (data.train, data.val, data.test)] == [48, 7, 12]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": {"groups": "id"}}, says("source.split", value="groups", meant="group")),
        ({"split": {"group": "ids"}}, says("source.split.group", value="ids", meant="id")),
        ({"split": "id"}, says("source.split", value="id")),
        ({"split": {"group": "id"}, "test_seed": 3}, "source.split = .* cannot be set beside source.test_seed"),
        ({"split": {"time": "member"}}, "column 'member': .* is not a date"),
        ({"split": {"group": "unit"}}, "needs at least three groups"),
        ({"split": {"group": "nothing"}}, "column 'nothing': .* is no group"),
        ({"split": {"time": "age"}}, "column 'age': .* is no time"),
    ],
)
def test_wrong_splits_are_refused(settings, message, people):
    with pytest.raises(ValueError, match=message):
        people(**settings)


def test_rows_in_two_splits_are_reported(people, caplog):
    frame = pd.concat([PEOPLE, PEOPLE[:10]], ignore_index=True)
    parts = ["train"] * 60 + ["test"] * 10
    people(frame.assign(part=parts), split={"column": "part"})
    assert "10 of 10 rows of the test split are also training rows: " in caplog.text
    assert "people.csv, line 62 is line 2" in caplog.text


# ---- the same in training and prediction

CELLS = {
    "number": st.one_of(st.none(), st.integers(-(10**17), 10**17), st.floats(-1e30, 1e30, allow_subnormal=False)),
    "category": st.one_of(st.none(), st.sampled_from(["a", "b", " a", "c\u00e9", "07", 1, 2.0, "1.0"])),
    "boolean": st.sampled_from(["yes", "no", "", "No "]),
    "date": st.one_of(st.just(""), st.dates().map(str), st.datetimes().map(str)),
    "text": st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=20),
    "amount": st.floats(-1e6, 1e6, allow_subnormal=False).map("{} %".format),
}
ROLES = {name: name for name in CELLS} | {"many values": "category", "amount": "number", "constant": "drop"}
FIRST = {"number": 1, "category": "a", "boolean": "yes", "date": "2024-01-01", "text": "some words", "amount": "3 %"}
TARGETS = {
    "classification": st.sampled_from(["a", " a", "b", "01", "1.0", "1"]),
    "regression": st.one_of(st.none(), st.integers(-(10**15), 10**15), st.floats(-1e9, 1e9, allow_subnormal=False)),
}


def as_value(label):
    return label if label in ("a", "b") else float(label)


def with_fixed_columns(rows):
    """Add columns with a value per row, which is hashed, and with one value."""
    numbered = {"many values": [None if i % 7 == 3 else f"v{i}" for i in range(len(rows))]}
    return pd.DataFrame(rows).assign(constant="m", **numbered)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.fixed_dictionaries(CELLS), min_size=8, max_size=15), st.data())
def test_rows_are_read_as_in_training_whatever_stands_beside_them(rows, draw):
    frame = with_fixed_columns([*rows, FIRST, FIRST])
    step = plan_columns(Table(None, frame), Wishes({}, None, ROLES))
    trained = step.read(frame, str)
    [again] = through_json((step,))
    assert torch.equal(again(frame), trained)
    some = draw.draw(st.lists(st.sampled_from(range(len(frame))), min_size=1))
    dicts = [frame.iloc[row].to_dict() | {"more": 1} for row in some]
    assert torch.equal(again(dicts), trained[some])
    assert trained.isfinite().all()


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(["classification", "regression"]),
    st.sampled_from(["feature", "robust", "quantile", "minmax", "none"]),
    st.lists(st.fixed_dictionaries(CELLS), min_size=12, max_size=20),
    st.data(),
)
def test_a_files_recipe_gives_training_inputs_and_targets_bitwise(kind, normalize, rows, draw):
    """Rows of the file, as dicts, with columns of every role; and the targets from the recipe's names and scales."""
    first = {"classification": ["a", "b", "a", "b"], "regression": [1.5, -2, 3, 4]}[kind]
    targets = [*first, *draw.draw(st.lists(TARGETS[kind], min_size=len(rows), max_size=len(rows)))]
    frame = with_fixed_columns([FIRST] * 4 + rows).assign(target=pd.Series(targets, dtype=object))
    frame["part"] = ["train", "train", "val", "test", *(["train", "val", "test"] * len(rows))[: len(rows)]]
    part = {"split": {"column": "part"}, "delimiter": ",", "decimal": "."}
    with tempfile.TemporaryDirectory() as folder:
        frame.to_csv(f"{folder}/table.csv")
        data = table(f"{folder}/table.csv", "target", kind=kind, columns=ROLES, **part)
    made = {column.role for column in data.steps[0].columns}
    assert made == {"dropped", "number", "amount", "boolean", "category", "hashed", "date", "text"}
    task = build_task("a", data, normalize=normalize)
    outputs = outputs_from_data(json.loads(json.dumps(task.data_recipe()["outputs"])))
    for part, split in task.splits.items():
        raw = frame[(frame["part"] == part) & frame["target"].notna()]
        prepared = prepare(through_json(task.steps), raw.drop(columns=["target", "part"]).to_dict("records"))
        assert torch.equal(prepared, split.inputs)
        if kind == "regression":
            expected = torch.tensor([float(cell) for cell in raw["target"]], dtype=torch.float64)
            assert torch.equal(split.targets, expected[:, None])
            assert torch.equal(outputs.mean, task.target_mean)
            assert torch.equal(outputs.std, task.target_std)
        else:
            named = [outputs.names[number] for number in split.targets]
            assert [as_value(name) for name in named] == [as_value(cell.strip()) for cell in raw["target"]]


@pytest.mark.parametrize("normalize", ["feature", "robust", "quantile", "minmax"])
def test_a_task_prepares_rows_of_its_file_bitwise_as_in_training(normalize, people, tmp_path):
    data = people(split={"column": "part"}, frame=PEOPLE.assign(part=["train"] * 40 + ["test"] * 20))
    task = build_task("a", data, normalize=normalize)
    rows = pd.read_csv(tmp_path / "people.csv", dtype={"zip": str})[40:]
    prepared = prepare(through_json(task.steps), rows)
    assert prepared.dtype == torch.float32
    assert torch.equal(prepared, task.splits["test"].inputs)
    assert prepared.isfinite().all()


def test_robust_and_quantile_scaling_resist_outliers(write):
    values = [*range(99), 10**9]
    path = write("x,y\n" + "".join(f"{v},{i % 2}\n" for i, v in enumerate(values)))
    data = table(path, target="y", test_path=path)
    for normalize, largest in (("robust", 2), ("quantile", 3)):
        inputs = build_task("a", data, normalize=normalize).splits["train"].inputs.flatten().sort().values
        assert inputs[1:-1].abs().max() < largest
        assert inputs.median().abs() < 0.1


def test_large_numbers_stay_distinct(write):
    times = 1_700_000_000 + np.arange(200)
    path = write("time,ident,const,y\n" + "".join(f"{t},{t * 1000 % 4999 + 10**11},17,{t % 2}\n" for t in times))
    task = build_task("a", table(path, target="y", features=["time", "ident", "const"]))
    inputs = task.splits["train"].inputs
    assert [len(column.unique()) for column in inputs.T] == [len(inputs), len(inputs), 1]
    assert (inputs[:, 2] == 0).all()
    torch.testing.assert_close(inputs[:, 0].mean(), torch.tensor(0.0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("word", ["today", "now", "tomorrow"])
@pytest.mark.parametrize("format", ["", "%d.%m.%Y"])
def test_words_are_no_dates(word, format, people):
    assert parse_dates([word, "2024-01-31"], format).tolist() == [NO_DATE, 1706659200000000]
    days = ["31.01.2024" if format else "2024-01-31", *PEOPLE["since"][1:]]
    until = PEOPLE.assign(since=[word if row % 7 == 3 else day for row, day in enumerate(days)])
    role = f"date {format}".strip()
    with pytest.raises(ValueError, match=f"column 'since': '{word}' is not a date"):
        people(until, columns={"since": role})
    with pytest.raises(ValueError, match=f"column 'since': '{word}' is not a date"):
        people(until, split={"time": "since"}, columns={"since": role})
    assert roles(people(until))["since"] == "category"
