"""Columns that give a table's target away are reported, others are not."""

import logging

import numpy as np
import pandas as pd
import pytest

from msh.tasks.tables import table

ROWS = 200
DRAW = np.random.default_rng(0)
SIZE = DRAW.uniform(20, 200, ROWS).round(1)
PRICE = (SIZE * 1000 + DRAW.normal(0, 5000, ROWS)).round(2)
HEAT = DRAW.choice(["gas", "oil", "coal"], ROWS)
HOUSES = pd.DataFrame({"size": SIZE, "rooms": DRAW.integers(1, 6, ROWS), "price": PRICE, "heat": HEAT})
FUELS = {"gas": "methane", "oil": "diesel", "coal": "carbon"}


@pytest.fixture
def reported(tmp_path, caplog):
    """Load the houses with one more column; return the columns that are reported."""

    def load(target, column, kind="auto", **settings):
        HOUSES.assign(more=column).to_csv(tmp_path / "houses.csv", index=False)
        with caplog.at_level(logging.WARNING):
            table(str(tmp_path / "houses.csv"), target, kind=kind, **settings)
        return [record.args[1] for record in caplog.records if "gives the target away" in record.getMessage()]

    return load


CLASSES = {
    "a copy": HEAT,
    "other words": [FUELS[heat] for heat in HEAT],
    "numbers": [len(heat) * 1.5 + (heat == "oil") for heat in HEAT],
}
NUMBERS = {
    "a copy": PRICE,
    "another unit": PRICE * 1.08 + 3,
    "rounded": PRICE.round(-3),
    "the logarithm": np.log(PRICE + 1e5),
    "falling": -PRICE,
    "an amount": [f"${price}" for price in PRICE],
    "missing in some rows": [None if row % 9 == 0 else price for row, price in enumerate(PRICE)],
}


@pytest.mark.parametrize("column", CLASSES.values(), ids=CLASSES)
def test_columns_that_stand_for_the_class_are_reported(reported, column):
    assert reported("heat", column) == ["more"]


@pytest.mark.parametrize("column", NUMBERS.values(), ids=NUMBERS)
def test_columns_that_the_target_can_be_computed_from_are_reported(reported, column):
    assert reported("price", column, kind="regression") == ["more"]


def test_the_message_names_file_column_and_remedy(reported, caplog):
    reported("heat", HEAT)
    (text,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "houses.csv: column 'more' gives the target away: each of its values stands for one class" in text
    assert text.endswith("source.exclude=[more]")


OTHERS = {
    "chance": DRAW.choice(["a", "b", "c"], ROWS),
    "a copy in most rows": np.where(np.arange(ROWS) % 20 == 0, np.roll(HEAT, 1), HEAT),
    "a class in two values": [f"{heat}{row % 2}" for row, heat in enumerate(HEAT)],
    "a value of two classes": np.where(HEAT == "oil", "gas", HEAT),
    "nearly the price": PRICE + DRAW.normal(0, 100, ROWS),
    "a number per row": np.arange(ROWS) * 7 % 211,
}


@pytest.mark.parametrize("target", ["heat", "price"])
@pytest.mark.parametrize("column", OTHERS.values(), ids=OTHERS)
def test_other_columns_are_not_reported(reported, target, column):
    assert reported(target, column) == []


def test_few_rows_or_numbers_are_no_evidence(tmp_path, caplog):
    HOUSES[:20].assign(more=HEAT[:20]).to_csv(tmp_path / "few.csv", index=False)  # 13 training rows
    table(str(tmp_path / "few.csv"), "heat")
    steps = np.median(PRICE) < PRICE
    HOUSES.assign(more=steps.astype(int)).to_csv(tmp_path / "steps.csv", index=False)
    table(str(tmp_path / "steps.csv"), "price", kind="regression")
    assert "gives the target away" not in caplog.text


def test_a_column_that_is_dropped_is_not_reported(reported):
    assert reported("heat", HEAT, exclude=["more"]) == []
