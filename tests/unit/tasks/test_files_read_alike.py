"""Numbers of other files mean what they mean in the training file, whatever else these files hold."""

import pandas as pd
import pytest
from openpyxl import Workbook
from PIL import Image

from msh.inference.inputs import read_inputs
from msh.tasks.images import image_folder
from msh.tasks.tables import table
from msh.tasks.text import texts

WEIGHTS = [3.548, 1.25, 2.5, 4.125]
PLAIN = "weight,y\n" + "".join(f"{weight:.3f},{'ab'[weight > 3]}\n" for weight in WEIGHTS * 5)
POINTS = [f"{weight:.3f}" for weight in WEIGHTS]
OTHERS = [None, "1,5", "1.234,5 €", "1.000"]


def beside(remark, weights=POINTS):
    """Return a table of weights, with a column that training did not have."""
    more = "" if remark is None else f',"{remark}"'
    rows = [f'"{weight}",a{more}\n' for weight in weights]
    return ("weight,y\n" if remark is None else "weight,y,remark\n") + "".join(rows)


@pytest.mark.parametrize("remark", OTHERS)
def test_additional_columns_do_not_change_how_plain_numbers_are_read(remark, write, tmp_path):
    new = write(beside(remark), "new.csv")
    data = table(write(PLAIN), "y", test_path=new, val_path=new)
    assert data.test.inputs.flatten().tolist() == WEIGHTS
    assert data.val.inputs.flatten().tolist() == WEIGHTS
    frame = pd.read_csv(new, dtype=str)
    frame.to_excel(tmp_path / "new.xlsx", index=False)
    for path in (new, str(tmp_path / "new.xlsx")):
        assert data.steps[0](read_inputs([data.steps], [path]).examples).flatten().tolist() == WEIGHTS


def test_a_decimal_mark_that_is_set_does_not_move_plain_points_of_other_files(write):
    """The training file's 1.25 shows that its points mark decimals; 3.500 alone could be 3500."""
    data = table(write(PLAIN.replace("1.250", "1.25")), "y", decimal=",", test_path=write(beside(None, ["3.500"]), "t"))
    assert data.test.inputs.tolist() == [[3.5]]


def test_a_plain_column_is_read_by_its_own_cells_or_refused(write):
    """3,5 is 3.5 only; 3,548 is 3548 where commas mark thousands, and 3.548 where they mark decimals."""
    data = table(write(PLAIN), "y", test_path=write(beside(None, ["3,5", "0,25"]), "new.csv"))
    assert data.test.inputs.flatten().tolist() == [3.5, 0.25]
    for remark in ("1,5", "1,234.5"):
        with pytest.raises(ValueError, match=r"new\.csv, line 2, column 'weight': '3,548' is not a finite number"):
            table(write(PLAIN), "y", test_path=write(beside(remark, ["3,548"]), "new.csv"))


# ---- targets of images and texts

GERMAN = ["1.210", "1.310,5", "2.430,5", "1.930", "80,5"] * 6
THOUSANDS = ["1.070", "1.320", "1.740"] * 4


def listing(prices, word, tmp_path):
    """Return a table of prices, with a text each and the images that it names."""
    for i in range(len(prices)):
        Image.new("L", (4, 4), 5 * i + (word == "new")).save(tmp_path / f"{word}{i}.png")
    return pd.DataFrame(
        {"file": [f"{word}{i}.png" for i in range(len(prices))], "text": [f"a {word} {i}" for i in range(len(prices))]}
    ).assign(price=prices)


def regression(source, train, test, tmp_path):
    if source == "images":
        return image_folder(str(tmp_path), labels=train, test_labels=test, target="price", kind="regression")
    if source == "texts":
        return texts(train, label="price", kind="regression", test_path=test, val_path=test)
    roles = {"file": "category", "text": "category"}
    return table(train, "price", kind="regression", test_path=test, val_path=test, columns=roles)


@pytest.mark.parametrize("source", ["images", "texts", "tables"])
def test_targets_of_other_files_are_read_as_the_training_files(source, tmp_path):
    """Alone, 1.070 would be 1.07; a number of an Excel file is one, however texts are written."""
    listing(GERMAN, "old", tmp_path).to_csv(tmp_path / "train.csv", sep=";", index=False)
    listing(THOUSANDS, "new", tmp_path).to_csv(tmp_path / "test.csv", sep=";", index=False)
    listing([1.07, 1.234, 7] * 4, "new", tmp_path).to_excel(tmp_path / "test.xlsx", index=False)
    for name, expected in (("test.csv", [1070, 1320, 1740]), ("test.xlsx", [1.07, 1.234, 7])):
        data = regression(source, str(tmp_path / "train.csv"), str(tmp_path / name), tmp_path)
        assert data.train.targets.flatten()[:5].tolist() == [1210, 1310.5, 2430.5, 1930, 80.5]
        for split in filter(None, (data.test, data.val)):
            assert split.targets.flatten()[:3].tolist() == expected


@pytest.mark.parametrize("source", ["images", "texts"])
def test_plain_targets_stay_plain_beside_thousands_in_another_file(source, tmp_path):
    listing([1.07, 1.25, 2.5] * 4, "old", tmp_path).to_csv(tmp_path / "train.csv", index=False)
    new = listing(["1.070", "1.320"], "new", tmp_path).assign(remark="1,5")
    new.to_csv(tmp_path / "test.csv", index=False)
    data = regression(source, str(tmp_path / "train.csv"), str(tmp_path / "test.csv"), tmp_path)
    assert data.test.targets.flatten().tolist() == [1.07, 1.32]


# ---- Excel's percent


SHARES = [0.07, 0.855, 1.2, 0.08123, 0.5]
FORMATS = ["0%", "0.00%", '0.0%" of all"', "0%;[Red]-0%", "#,##0.0 %"]


def sheet(path, shares, formats):
    """Write a table of shares in these formats, and classes."""
    book = Workbook()
    page = book.active
    page.append(["share", "y"])
    for number, share in enumerate(shares):
        row = number + 2
        page.cell(row, 1, share).number_format = formats[number % len(formats)]
        page.cell(row, 2, "ab"[number % 2])
    book.save(path)


@pytest.mark.parametrize("decimal", [".", ","])
def test_numbers_that_excel_shows_in_percent_are_read_as_shown_where_training_had_the_sign(decimal, write, tmp_path):
    """8.123 is no thousand beside decimal commas, and 85 to which a format only adds the sign stays 85."""
    texts = [f"{100 * share:.5g}%".replace(".", decimal) for share in SHARES * 8]
    path = write("share;y\n" + "".join(f"{text};{'ab'[number % 2]}\n" for number, text in enumerate(texts)))
    new = str(tmp_path / "new.xlsx")
    sheet(new, SHARES, FORMATS)
    data = table(path, "y", test_path=new, val_path=new)
    for features in (data.test.inputs, data.val.inputs, data.steps[0](read_inputs([data.steps], [new]).examples)):
        assert features.flatten().tolist()[: len(SHARES)] == [7, 85.5, 120, 8.123, 50]
    sheet(new, [85, 85, "85%", 0.85, 0.85], ['0"%"', r"0\%", "@", "0.00", "0%"])
    assert data.steps[0](read_inputs([data.steps], [new]).examples).flatten().tolist() == [85, 85, 85, 0.85, 85]


def test_numbers_of_an_excel_file_stay_as_they_are_where_training_read_them_so(tmp_path):
    """A DataFrame that pandas reads from the file has the same numbers."""
    path = str(tmp_path / "table.xlsx")
    sheet(path, SHARES * 8, FORMATS)
    data = table(path, "y", test_path=path)
    assert data.train.inputs.equal(data.test.inputs)
    assert data.steps[0](pd.read_excel(path)).equal(data.train.inputs)
    assert data.train.inputs.max() == 1.2


@pytest.mark.parametrize("source", ["images", "texts"])
def test_targets_that_excel_shows_in_percent_are_percent(source, tmp_path):
    listing(["7%", "85,5%", "120%"] * 4, "old", tmp_path).to_csv(tmp_path / "train.csv", sep=";", index=False)
    with pd.ExcelWriter(tmp_path / "test.xlsx") as writer:
        listing([0.07, 0.855], "new", tmp_path).to_excel(writer, index=False)
        for row in (2, 3):
            writer.book.active.cell(row, 3).number_format = "0%"
    data = regression(source, str(tmp_path / "train.csv"), str(tmp_path / "test.xlsx"), tmp_path)
    assert data.test.targets.flatten().tolist() == [7, 85.5]
