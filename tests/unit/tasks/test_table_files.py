"""Files of tables: CSV as several programs write it, Parquet, Excel; damage named with line and cell."""

import dataclasses
import gzip
import json
import tempfile

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from messages import says
from msh.inference.inputs import read_inputs
from msh.tasks import table_files
from msh.tasks.cells import find_form
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
    assert [plainly(column) for column in data.steps[0].columns] == list(expected.steps[0].columns)


def plainly(column):
    """The column without its decimal mark."""
    return dataclasses.replace(column, decimal=".") if column.role == "number" else column


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


@pytest.mark.parametrize(
    ("index", "names"),
    [
        (pd.date_range("2024-01-01", periods=40, name="day"), ["day"]),
        (pd.RangeIndex(40, name="floor"), ["floor"]),
        (pd.MultiIndex.from_arrays([list("abcd") * 10, range(40)], names=["street", "house"]), ["street", "house"]),
        (pd.Index([f"house {i}" for i in range(40)]), ["Unnamed: 0"]),
        (pd.Index(range(40, 0, -1)), []),  # numbers of selected rows
        (pd.Index(FRAME["size"]), []),  # a copy of a column
    ],
)
def test_the_index_that_pandas_writes_into_parquet_is_read(index, names, tmp_path):
    FRAME.set_axis(index).to_parquet(tmp_path / "table.parquet")
    found = read_table(str(tmp_path / "table.parquet"))
    assert [*found.frame.columns] == [*names, *FRAME.columns]
    for level, name in enumerate(names):
        assert found.frame[name].tolist() == index.get_level_values(level).tolist()
    again = found.reread(torch.tensor([3]))
    assert [*again.columns] == [*names, *FRAME.columns]


def test_an_index_with_a_columns_name_and_other_cells_is_refused(tmp_path):
    FRAME.set_axis(pd.RangeIndex(40, name="size")).to_parquet(tmp_path / "table.parquet")
    with pytest.raises(ValueError, match="the header names 'size' more than once"):
        read_table(str(tmp_path / "table.parquet"))


@pytest.mark.parametrize("indices", [["day"], ["other", "day"], ["size", "day"]])
def test_rows_to_predict_may_have_columns_in_their_index(indices, tmp_path):
    frame = FRAME.assign(day=pd.date_range("2024-01-01", periods=len(FRAME)), other=range(len(FRAME)))
    frame.drop(columns="other").to_csv(tmp_path / "table.csv", index=False)
    step = read(tmp_path / "table.csv").steps[0]
    expected = step(frame)
    assert torch.equal(step(frame.set_index(indices)), expected)
    frame.set_index(indices).to_parquet(tmp_path / "new.parquet")
    assert torch.equal(step(read_inputs([(step,)], [str(tmp_path / "new.parquet")]).examples), expected)


@pytest.mark.parametrize(("suffix", "module"), [("xlsx", "openpyxl"), ("parquet", "pyarrow")])
def test_a_missing_library_and_a_damaged_file_are_named(suffix, module, tmp_path, monkeypatch):
    path = tmp_path / f"table.{suffix}"
    path.write_bytes(b"x,y\n1,2\n")
    with pytest.raises(ValueError, match=f"table.{suffix} cannot be read"):
        read_table(str(path))
    error = ImportError(f"no {module}")
    monkeypatch.setattr(pd, "ExcelFile" if suffix == "xlsx" else "read_parquet", lambda *a, **k: raising(error))
    with pytest.raises(ValueError, match=r"pip install 'msh\[tables\]'"):
        read_table(str(path))


def raising(error):
    raise error


def test_errors_of_parquet_count_rows_from_1(tmp_path):
    frame = FRAME.astype({"size": str})
    frame.loc[3, "size"] = "big"
    frame.to_parquet(tmp_path / "table.parquet", index=False)
    with pytest.raises(ValueError, match=r"table.parquet, row 4, column 'size': 'big' is not a finite number"):
        read(tmp_path / "table.parquet")


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
    with pytest.raises(ValueError, match=r"line 3, column 'x': '1,001' has a decimal comma or marks .*source.decimal"):
        table(write(NUMBERS), target="y")
    for content, decimal in ((NUMBERS, ","), (NUMBERS.replace("1,000", "1,0"), None)):
        frame = read_table(write(content), decimal=decimal).frame
        assert frame["x"].tolist() == [1 + i / 1000 for i in range(20)]
    with pytest.raises(ValueError, match=says("source.decimal", "one of ., ,", ";")):
        read_table(write(NUMBERS), decimal=";")


@pytest.mark.parametrize("cell", ["1_000", '"1.000,5.0"', "12'34", '"1,23,4"', "--1", "(5", "5--", "(-5)"])
def test_what_no_convention_writes_is_refused_as_a_number(cell, write):
    path = write("x,y\n" + "".join(f"{cell if i == 7 else i},{i % 2}\n" for i in range(20)))
    with pytest.raises(ValueError, match=r"line 9, column 'x': .* is not a finite number, as most cells"):
        table(path, target="y")


CONVENTIONS = {  # decimal mark and mark between thousands, as locales have them
    "en": (".", ","),
    "de": (",", "."),
    "fr": (",", "\u202f"),
    "sv": (",", "\u00a0"),
    "ch": (".", "\u2019"),
    "li": (".", "'"),
    "si": (".", "\u2009"),
    "in": (".", ","),
    "plain": (".", ""),
    "comma": (",", ""),
}
SIGNED = {
    "none": "{}",
    "dollar": "${}",
    "US": "US$ {}",
    "euro": "{}\u00a0€",
    "EUR": "{} EUR",
    "krona": "{} kr",
    "franc": "CHF {}",
    "percent": "{}%",
}
NEGATIVE = {"minus": "-{}", "sign": "\u2212{}", "brackets": "({})", "behind": "{}-"}


def written(number, places, convention, sign, negative):
    """Write a number as people do in a convention."""
    decimal, thousands = CONVENTIONS[convention]
    digits = f"{abs(number):.{places}f}" if convention in ("plain", "comma") else f"{abs(number):,.{places}f}"
    whole, _, rest = digits.partition(".")
    if convention == "in" and len(whole) > 4:
        head, tail = whole.replace(",", "")[:-3], whole[-3:]
        pairs = [head[max(0, i - 2) : i] for i in range(len(head), 0, -2)][::-1]
        whole = ",".join([*pairs, tail])
    text = whole.replace(",", thousands) + (decimal + rest if rest else "")
    text = SIGNED[sign].format(text)
    return NEGATIVE[negative].format(text) if number < 0 else text


@pytest.mark.parametrize("convention", CONVENTIONS)
@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.integers(-(10**11), 10**11), min_size=8, max_size=16, unique=True),
    st.sampled_from([1, 2, 4]),
    st.sampled_from(sorted(NEGATIVE)),
    st.sampled_from(sorted(SIGNED)),
)
def test_numbers_are_read_back_from_every_convention(convention, hundredths, places, negative, sign):
    numbers = [round(number / 100, places) for number in [*hundredths, 123456750, -50]]
    texts = [written(number, places, convention, sign, negative) for number in numbers]
    form = find_form(pd.Series(texts), str, "x")
    assert [form.number(text) for text in texts] == numbers
    with tempfile.TemporaryDirectory() as folder:
        frame = pd.DataFrame({"x": texts, "y": ["a", "b"] * (len(texts) // 2) + ["a"] * (len(texts) % 2)})
        frame.to_csv(f"{folder}/table.csv", index=False)
        data = table(f"{folder}/table.csv", "y", test_path=f"{folder}/table.csv", features=["x"])
    assert data.train.inputs.flatten().tolist() == numbers == data.test.inputs.flatten().tolist()
    [step] = steps_from_data(json.loads(json.dumps(steps_to_data(data.steps))))
    assert step([{"x": text} for text in texts]).flatten().tolist() == numbers
    assert step([{"x": number} for number in numbers]).flatten().tolist() == numbers


@pytest.mark.parametrize("cell", ["1'000", "1 000", '"1,234,567"', "1.234.567", "1\u202f000"])
def test_numbers_with_and_without_thousands_marks_are_read(cell, write):
    path = write("x,y\n" + "".join(f"{cell if i % 2 else i},{i % 2}\n" for i in range(20)))
    data = table(path, target="y", test_path=path)
    assert data.train.inputs[1].item() in (1000, 1234567)


def test_the_whole_file_decides_between_decimals_and_thousands(write):
    """Points beside decimal commas mark thousands, commas beside decimal points too; also in columns without both."""
    german = "a;b;c;y\n" + "".join(f"1,{i:02};{1 + i}.000;{i}.234 €;{i % 2}\n" for i in range(1, 40))
    data = table(write(german), target="y", test_path=write(german))
    assert data.train.inputs[0].tolist() == [1.01, 2000, 1234]
    assert [c.note for c in data.steps[0].columns][:3] == [
        "written as 1234,5",
        "written as 1.234,5",
        "in €; written as 1.234,5",
    ]
    assert data.steps[0]([{"a": 1.5, "b": 1.234, "c": "1.234,5 €"}]).tolist() == [[1.5, 1.234, 1234.5]]
    with pytest.raises(ValueError, match=r"column 'a': '1.234' is not a finite number: write it as .* 1234,5"):
        data.steps[0]([{"a": "1.234", "b": 1, "c": 1}])
    english = "a,b,y\n" + "".join(f'"{i},250,000","{1 + i},000",{i % 2}\n' for i in range(1, 40))
    data = table(write(english), target="y", test_path=write(english))
    assert data.train.inputs[0].tolist() == [1250000, 2000]
    points = "a,b,y\n" + "".join(f'{i / 8},"{1 + i},000",{i % 2}\n' for i in range(1, 40))
    data = table(write(points), target="y", test_path=write(points))
    assert data.train.inputs[0].tolist() == [0.125, 2000]


def test_amounts_that_may_be_decimals_or_thousands_are_refused(write):
    path = write("a,b,c,y\n" + "".join(f'$1.{i:03},"2,{i:03} %",1.{i:03}%,{i % 2}\n' for i in range(20)))
    with pytest.raises(
        ValueError, match=r"2 problems:\n- .*line 3, column 'a': '\$1.001' has a decimal point or marks"
    ) as e:
        table(path, target="y")
    assert "column 'b': '2,001 %' has a decimal comma or marks thousands" in str(e.value)
    assert table(path, target="y", decimal=",", test_path=path).train.inputs[1].tolist() == [1001, 2.001, 1001]
    assert table(path, target="y", decimal=".", test_path=path).train.inputs[1].tolist() == [1.001, 2001, 1.001]


def test_a_target_in_any_convention_is_a_regressions(write):
    path = write("x;y\n" + "".join(f"{i % 7};1.{i:03},50 EUR\n" for i in range(40)))
    data = table(path, target="y", kind="auto", test_path=path)
    assert data.kind == "regression"
    assert data.test.targets.flatten()[:2].tolist() == [1000.5, 1001.5]


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
        ('"$1,23,4"', r"is not a finite number of the form \$1234.5"),
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


ROWS = "".join(f"{i},{i % 2}\n" for i in range(40))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"sep=,\nx,y\n" + ROWS.encode(), "line 1: 'sep=,' names the delimiter for Excel: delete this line"),
        (b"# by me\nx,y\n" + ROWS.encode(), "got 'y'; .*line 2 has it: delete what stands above the header"),
        (b"Sales,\n,\nx,y\n" + ROWS.encode(), "got 'y'; .*line 3 has it: delete what stands above the header"),
        (
            ("x,y\n" + ROWS).encode("utf-16-le"),
            r"is not a text in utf-8: it has bytes of 0; if it is one, set source.encoding .* to utf-16-le",
        ),
        (
            ("x,y\n" + ROWS).encode("utf-16-be"),
            r"is not a text in utf-8: it has bytes of 0; if it is one, set source.encoding .* to utf-16-be",
        ),
        (b"PK\x03\x04" + bytes(99), "is no text, but a zip archive or an Excel file: unpack it, or name it .xlsx"),
        (b"PAR1" + bytes(99), "is no text, but a Parquet file: name it .parquet"),
        (b"%PDF-1.7\n", "is no text, but a PDF file"),
        (b"x,y\n1,0\ninf,1\n" + ROWS.encode(), "line 3, column 'x': 'inf' .*leave unknown cells empty"),
        (b"y,x\n" + ROWS.encode(), "'y' has another value in each of 40 rows, such as '0'|40 different numbers"),
    ],
    ids=range(10),
)
def test_files_of_other_programs_are_refused_with_what_to_do(content, message, tmp_path):
    (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        table(str(tmp_path / "table.csv"), target="y")


def test_packed_files_and_wide_encodings_are_read(tmp_path, monkeypatch):
    text = "x,y\n" + ROWS + '"a,b",\n'
    for content in (gzip.compress(text.encode()), text.encode("utf-32"), gzip.compress(text.encode("utf-16"))):
        (tmp_path / "table.csv").write_bytes(content)
        read = read_table(str(tmp_path / "table.csv"), texts=None)
        assert read.frame["x"].tolist() == [*map(str, range(40)), "a,b"]
        assert read.row(40).endswith("line 42")
    with pytest.raises(FileNotFoundError, match="must be a file, and is a folder"):
        read_table(str(tmp_path))


def test_classes_of_one_row_each_are_no_target(write):
    path = write("x,day,name\n" + "".join(f"{i % 7},2024-01-{1 + i},name {i}\n" for i in range(30)))
    with pytest.raises(ValueError, match="column 'name' has another value in each of 30 rows, such as 'name 0'"):
        table(path, target="name", kind="auto")
    with pytest.raises(ValueError, match="'2024-01-1' is not a finite number: a date, of which numbers can be made"):
        table(path, target="day", kind="regression")


@pytest.mark.parametrize(
    "format",
    [
        "%d %b %Y",
        "%B %d, %Y",
        "%d-%b-%y",
        "%m/%d/%Y %I:%M %p",
        "%Y-%m",
        "%Y.%m.%d",
        "%d. %m. %Y",
        "%d/%m/%Y %H:%M:%S.%f",
    ],
)
def test_dates_with_names_of_months_and_other_times_are_dates(format, tmp_path):
    days = pd.date_range("2023-12-25", periods=40, freq="37h").strftime(format)
    pd.DataFrame({"x": days, "n": np.arange(40) % 5, "y": ["a", "b"] * 20}).to_csv(tmp_path / "t.csv", index=False)
    column = columns_of(table(str(tmp_path / "t.csv"), target="y"))["x"]
    assert (column.role, column.format) == ("date", "" if format in ("%Y-%m", "%Y.%m.%d") else format)


def test_cells_that_are_lists_bytes_or_durations_are_dropped_and_refused_where_chosen(tmp_path):
    frame = pd.DataFrame({"list": [[1, 2]] * 40, "bytes": [b"a"] * 40, "n": np.arange(40), "y": ["a", "b"] * 20})
    frame.assign(late=pd.to_timedelta(np.arange(40), unit="h")).to_parquet(tmp_path / "t.parquet")
    columns = columns_of(table(str(tmp_path / "t.parquet"), target="y"))
    reasons = {name: column.note for name, column in columns.items() if column.role == "dropped"}
    assert "lists or bytes" in reasons["list"]
    assert "lists or bytes" in reasons["bytes"]
    assert "durations" in reasons["late"]
    with pytest.raises(ValueError, match=r"(?s)2 problems.*'list' has lists or bytes.*'late' has durations"):
        table(str(tmp_path / "t.parquet"), target="y", features=["list", "late"])


def test_sheets_that_are_not_read_are_named(tmp_path, caplog):
    frame = pd.DataFrame({"x": np.arange(40), "y": ["a", "b"] * 20})
    for first, second in (("data", "notes"), ("notes", "data")):
        with pd.ExcelWriter(tmp_path / f"{first}.xlsx") as book:
            for name in (first, second):
                (frame if name == "data" else frame[:0]).to_excel(book, sheet_name=name, index=False)
    assert len(read_table(str(tmp_path / "data.xlsx")).frame) == 40
    assert "only the first sheet is read, not 'notes'" in caplog.text
    with pytest.raises(ValueError, match=r"has no rows: .*; only its first sheet is read, not 'data'"):
        read_table(str(tmp_path / "notes.xlsx"))


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


@pytest.mark.parametrize("cell", ["01001", " 01001 ", '"01001"', "007"])
@pytest.mark.parametrize("row", [0, 250, 299])
@pytest.mark.parametrize(
    "layout", ["last", "first", "gaps", "quotes", "gzip", "utf-16", "no line end", "carriage returns"]
)
def test_one_code_anywhere_keeps_a_column_of_numbers_as_written(cell, row, layout, write, tmp_path):
    codes = [cell if i == row else f"{1000 + i % 5}" for i in range(300)]
    expected = [code.strip(' "') for code in codes]
    if layout == "gaps":
        codes[150], expected[150] = "", ""
    rows = [f'"5 01, 02","01.02.2024",{i / 8},{code}' for i, code in enumerate(codes)]
    if layout == "first":
        rows = [f"{code},{i / 8}" for i, code in enumerate(codes)]
    header = {"first": "code,x"}.get(layout, "text,day,x,code")
    if layout == "quotes":
        rows[3] = rows[3].replace('"5', '"5"" pipe\n0123,')
    content = "\n".join([header, *rows]) + "\n" * (layout != "no line end")
    if layout == "old line ends":
        content = content.replace("\n", "\r")
    path = write(content, encoding="utf-16" if layout == "utf-16" else "utf-8")
    if layout == "gzip":
        (tmp_path / "table.csv").write_bytes(gzip.compress(content.encode()))
    frame = read_table(path).frame
    assert frame["code"].str.strip().tolist() == expected
    assert frame["x"].tolist() == [i / 8 for i in range(300)]


@pytest.mark.parametrize("cell", ["0", "0.5", "00.5", "-01", "1001"])
def test_other_numbers_stay_numbers(cell, write):
    rows = "".join(f'"call 01, or 02",01.02.2024,{cell if i == 250 else 1000 + i}\n' for i in range(300))
    assert pd.api.types.is_numeric_dtype(read_table(write("text,day,x\n" + rows)).frame["x"].dtype)


def test_codes_are_found_across_the_blocks_of_a_file(write, monkeypatch):
    for size in range(1, 40):
        monkeypatch.setattr(table_files, "BLOCK", size)
        assert read_table(write("x,y\n" + "1,2.5\n" * 3 + "0123,2.5\n")).frame["x"].tolist() == ["1"] * 3 + ["0123"]


def test_the_order_of_codes_does_not_change_their_role(write):
    codes = [f"{10000 + i % 5}" for i in range(250)] + [f"0{1000 + i % 5}" for i in range(50)]
    for ordered in (codes, codes[::-1]):
        path = write("zip,x,y\n" + "".join(f"{code},{i / 8},{i % 2}\n" for i, code in enumerate(ordered)))
        assert columns_of(table(path, target="y"))["zip"].role == "category"
