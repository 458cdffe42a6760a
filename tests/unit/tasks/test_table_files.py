"""Files of tables: CSV as several programs write it, Parquet, Excel; damage named with line and cell."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from messages import says
from msh.tasks.preprocessing import steps_from_data, steps_to_data
from msh.tasks.table_files import read_table
from msh.tasks.tables import table

FRAME = pd.DataFrame(
    {
        "size": np.arange(40) * 0.1 + 1,
        "rooms": np.arange(40) % 5,
        "town": ["Ulm", "Bad, Ems", 'the "hill"', "two\nlines"] * 10,
        "price": np.arange(40) * 3.7 + 0.123456789012345,
    }
)


def read(path, **settings):
    return table(str(path), target="price", kind="regression", **settings)


@pytest.fixture
def expected(tmp_path):
    FRAME.to_csv(tmp_path / "plain.csv", index=False)
    return read(tmp_path / "plain.csv")


def same(data, expected):
    assert data.train.inputs.equal(expected.train.inputs)
    assert data.test.targets.equal(expected.test.targets)
    assert data.steps == expected.steps


@pytest.mark.parametrize(
    "settings",
    [
        {"sep": ";", "decimal": ","},
        {"sep": "\t", "decimal": ","},
        {"decimal": ",", "quoting": 1},
        {"encoding": "utf-8-sig"},
        {"encoding": "utf-16"},
        {"quoting": 2, "lineterminator": "\r\n"},
        {"sep": "|", "na_rep": "NA"},
    ],
    ids=str,
)
def test_a_csv_file_is_read_however_it_is_written(settings, tmp_path, expected):
    FRAME.to_csv(tmp_path / "table.csv", index=False, **settings)
    same(read(tmp_path / "table.csv"), expected)


def test_the_index_that_pandas_writes_and_rs_row_names_are_dropped(tmp_path, expected):
    FRAME.to_csv(tmp_path / "pandas.csv")
    content = (tmp_path / "pandas.csv").read_text()
    (tmp_path / "r.csv").write_text(content.removeprefix(","))  # R: the header is one cell short
    for name in ("pandas.csv", "r.csv"):
        data = read(tmp_path / name)
        assert data.train.inputs.equal(expected.train.inputs)
        index = next(column for column in data.steps[0].columns if column.name == "Unnamed: 0")
        assert (index.role, index.note) == ("dropped", "identifier: numbers the rows")


def test_parquet_and_excel_files_are_read(tmp_path, expected):
    FRAME.to_excel(tmp_path / "table.xlsx", index=False)
    FRAME.to_parquet(tmp_path / "table.parquet")
    for suffix in ("xlsx", "parquet"):
        data = read(tmp_path / f"table.{suffix}")
        digits = {"rtol": 1e-15 if suffix == "xlsx" else 0, "atol": 0}  # Excel keeps 16 digits
        torch.testing.assert_close(data.train.inputs, expected.train.inputs, **digits)
        torch.testing.assert_close(data.train.targets, expected.train.targets, **digits)


@pytest.mark.parametrize(("suffix", "module"), [("xlsx", "openpyxl"), ("parquet", "pyarrow")])
def test_a_missing_library_and_a_damaged_file_are_named(suffix, module, tmp_path, monkeypatch):
    path = tmp_path / f"table.{suffix}"
    path.write_bytes(b"x,y\n1,2\n")
    with pytest.raises(ValueError, match=f"table.{suffix} cannot be read"):
        read_table(str(path))
    error = ImportError(f"no {module}")
    monkeypatch.setattr(pd, "read_excel" if suffix == "xlsx" else "read_parquet", lambda *a, **k: raising(error))
    with pytest.raises(ValueError, match=r"pip install 'msh\[tables\]'"):
        read_table(str(path))


def raising(error):
    raise error


def test_excel_errors_name_the_line(tmp_path):
    frame = FRAME.astype({"size": object})
    frame.loc[3, "size"] = "big"
    frame.to_excel(tmp_path / "table.xlsx", index=False)
    with pytest.raises(ValueError, match=r"table.xlsx, line 5, column 'size': 'big' is not a finite number"):
        read(tmp_path / "table.xlsx")
    FRAME.rename(columns={"rooms": "size"}).to_excel(tmp_path / "table.xlsx", index=False)
    with pytest.raises(ValueError, match="the header names 'size' more than once"):
        read(tmp_path / "table.xlsx")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no rows"),
        ("x,y\n", "has no rows"),
        ("\n\n", "has no rows"),
        ("x,y\n1,2\n3\n", "line 3: 1 cells, but the header names 2 columns"),
        ('x,y\n"a\nb",2\n3,4,5\n', "line 4: 3 cells"),
        ("x,y\n1,2,\n3,4,\n", r"line 2: 3 cells, .*2 such lines"),
        ("x,y\n" + "1,2\n" * 300 + "1,2,3\n", "line 302: 3 cells"),
        ("x,y\n" + "1,2\n" * 300 + "1\n", "line 302: 1 cells"),
        ('x,y\n1,2\n1,"2\n', "line 3: not a CSV file"),
        ("x,y,x,z,z\n1,2,3,4,5\n", "names 'x', 'z' more than once"),
    ],
)
def test_damaged_files_are_refused_with_the_line(content, message, write):
    with pytest.raises(ValueError, match=message):
        read_table(write(content))


NUMBERS = "x;y\n" + "".join(f"1,{i:03};{i % 2}\n" for i in range(20))


def test_commas_that_may_mark_thousands_are_refused_unless_the_file_shows_their_meaning(write):
    with pytest.raises(ValueError, match=r"column 'x': '1,000' has a decimal comma or marks thousands.*source.decimal"):
        read_table(write(NUMBERS))
    for content, decimal in ((NUMBERS, ","), (NUMBERS.replace("1,000", "1,0"), None)):
        frame = read_table(write(content), decimal=decimal).frame
        assert frame["x"].tolist() == [1 + i / 1000 for i in range(20)]
    with pytest.raises(ValueError, match=says("source.decimal", "one of ., ,", ";")):
        read_table(write(NUMBERS), decimal=";")


@pytest.mark.parametrize("cell", ["1_000", "1'000", "1 000", '"1,234,567"', "1.234.567"])
def test_thousands_marks_are_refused_with_a_hint(cell, write):
    path = write("x,y\n" + "".join(f"{cell if i % 2 else i},{i % 2}\n" for i in range(20)))
    with pytest.raises(ValueError, match=r"line 3, column 'x': .*without thousands marks.*first of 8"):
        table(path, target="y")


def test_numbers_of_a_csv_file_are_exact(write):
    values = [0.1, 1 / 3, 2.5e-300, 123456789.123456789, 9007199254740993]
    frame = read_table(write("x\n" + "".join(f"{value!r}\n" for value in values))).frame
    assert frame["x"].tolist() == [float(value) for value in values]


def test_a_table_of_many_columns_is_read(write):
    width = 500
    rows = "".join(",".join(map(str, (np.arange(width) * k) % 97)) + f",{k % 2}\n" for k in range(10))
    data = table(write(",".join(f"c{i}" for i in range(width)) + ",y\n" + rows), target="y")
    assert data.train.inputs.shape[1] > 400


# ---- files of office programs


def columns_of(data):
    return {column.name: column for column in data.steps[0].columns}


@pytest.mark.parametrize(
    ("cells", "mark", "values"),
    [
        (["12%", "7.5 %", "-3%"], "%", [12, 7.5, -3]),
        (["$1200.50", "-$3", "$ 0.5"], "$", [1200.5, -3, 0.5]),
        (["4.5 €", "12 €", "€7"], "€", [4.5, 12, 7]),
        (["£9", "£1e3", "£-1"], "£", [9, 1000, -1]),
    ],
)
def test_percent_and_currency_signs_are_read(cells, mark, values, write):
    path = write("x,y\n" + "".join(f"{cells[i % 3]},{i % 2}\n" for i in range(30)))
    data = table(path, target="y", test_path=path)
    column = columns_of(data)["x"]
    assert (column.role, column.mark) == ("amount", mark)
    assert data.train.inputs.flatten()[:3].tolist() == values
    again = steps_from_data(json.loads(json.dumps(steps_to_data(data.steps))))
    assert again == data.steps
    assert again[0]([{"x": cells[0]}, {"x": values[1]}]).flatten().tolist() == values[:2]
    as_target = table(path, target="x", features=["y"], kind="auto", test_path=path)
    assert as_target.kind == "regression"
    assert as_target.train.targets.flatten()[:3].tolist() == values


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ('"$1,200.50"', "without thousands marks"),
        ('"12,5 %"', "with a decimal point"),
        ("5 % of 7", "is not a finite number"),
        ("£5", "is not a finite number"),
    ],
)
def test_signs_with_other_marks_are_one_clear_error(cell, message, write):
    sign = "%" if "%" in cell else "$"
    path = write("x,y\n" + "".join(f"{cell if i == 7 else f'{i}{sign}'},{i % 2}\n" for i in range(30)))
    with pytest.raises(ValueError, match=rf"line 9, column 'x': .*{message}"):
        table(path, target="y")


def test_excels_dates_numbers_and_booleans_keep_their_types(tmp_path):
    frame = pd.DataFrame(
        {
            "day": pd.date_range("2024-01-30", periods=40),
            "share": np.arange(40) / 100,  # shown as percent
            "paid": [True, False] * 20,
            "code": ["007", "7", None, "n/a"] * 10,
            "y": ["a", "b"] * 20,
        }
    )
    frame.to_excel(tmp_path / "table.xlsx", index=False)
    frame.to_csv(tmp_path / "table.csv", index=False)
    data, written = (table(str(tmp_path / f"table.{suffix}"), target="y") for suffix in ("xlsx", "csv"))
    roles = {name: column.role for name, column in columns_of(data).items()}
    assert roles == {"day": "date", "share": "number", "paid": "boolean", "code": "category", "y": "dropped"}
    assert columns_of(data)["code"].values == ("007", "7")
    assert data.train.inputs.equal(written.train.inputs)


@pytest.mark.parametrize("cells", [[31, 30], ["x", None]])
def test_an_excel_sheet_without_rows_or_header_is_refused(cells, tmp_path):
    pd.DataFrame(columns=cells).to_excel(tmp_path / "table.xlsx", index=False)
    with pytest.raises(ValueError, match=r"table.xlsx has no rows"):
        read_table(str(tmp_path / "table.xlsx"))


def test_a_file_of_one_column_has_nothing_to_predict_from(write):
    with pytest.raises(ValueError, match=says("source.features", "at least one column besides the target 'y'", [])):
        table(write("y\n" + "a\nb\n" * 9), target="y")


def test_rs_row_names_of_words_are_identifiers(write):
    path = write('"x","y"\n' + "".join(f'"Mazda {i}",{i % 7},"{"ab"[i % 2]}"\n' for i in range(40)))
    column = columns_of(table(path, target="y"))["Unnamed: 0"]
    assert (column.role, column.note) == ("dropped", "identifier: a value per row")


def test_a_large_file_is_read_in_chunks_with_the_same_result(tmp_path, monkeypatch):
    rows = 60_000
    frame = pd.DataFrame(
        {
            "number": np.arange(rows) / 7,
            "late word": [*["1"] * (rows - 1), "one"],
            "late code": [*["7"] * (rows - 1), "07"],
            "late decimal": [*["1"] * (rows - 1), "1.5"],
            "flag": ["True", "False"] * (rows // 2),
            "late flag": [*["0"] * (rows - 2), "TRUE", "false"],
            "sparse": [*[""] * (rows - 1), "found"],
            "y": np.arange(rows) % 2,
        }
    )
    frame.to_csv(tmp_path / "table.csv", index=False)
    whole = read_table(str(tmp_path / "table.csv")).frame
    monkeypatch.setattr("msh.tasks.table_files.LARGE", 0)
    pd.testing.assert_frame_equal(read_table(str(tmp_path / "table.csv")).frame, whole)


@pytest.mark.parametrize("quote", ["", '"'])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_missing_last_cells_are_no_short_rows(quote, end, write, monkeypatch):
    name = f"{quote}a,b{quote}" if quote else "ab"
    lines = [f"x,{quote}y{quote},z", *(f"{i},{name},{'' if i % 3 else i}" for i in range(50))]
    even, short = end.join([*lines, ""]), end.join([*lines, "50,a", ""])
    with pytest.raises(ValueError, match="line 52: 2 cells"):
        read_table(write(short))
    monkeypatch.setattr("msh.tasks.table_files._check_rows", lambda *a: pytest.fail("read row by row"))
    assert len(read_table(write(even)).frame) == 50
