"""Numbers of other files mean what they mean in the training file, whatever else these files hold."""

import pandas as pd
import pytest

from msh.inference.inputs import read_inputs
from msh.tasks.tables import table

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
