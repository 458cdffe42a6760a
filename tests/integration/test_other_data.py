"""Tasks that a network has learned are refused with other data, whose numbers would mean something else to it."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from running import SMALL, here

from golden.recording import told_to_end_after
from msh.cli import evaluate, train
from msh.files.state_file import read_state

TABLE = ["tasks.table.source.path=data.csv", "tasks.table.source.target=y", "logger=csv"]
SMALLER = [*SMALL, "trainer.max_epochs=2", "pruning.density=0.2", "tasks.table.batch_size=32"]


def data(rows=120, scale=1.0, names=("a", "b"), classes=("no", "yes"), seed=0):
    draw = np.random.default_rng(seed)
    inputs = draw.normal(size=(rows, len(names))).round(3)
    labels = [classes[int(total > 0)] for total in inputs.sum(1)]
    return pd.DataFrame(inputs * scale, columns=list(names)).assign(y=labels)


OTHERS = {
    "other statistics": (data(scale=10), r"preprocessing\[0\]\.columns\[0\]\.fill was"),
    "other columns": (data(names=("a", "c")), r"preprocessing\[0\]\.columns\[1\]\.name was \"b\", and is \"c\""),
    "more columns": (data(names=("a", "b", "c")), r"preprocessing\[0\]\.columns was a list of 3, and is a list of 4"),
    "other classes": (data(classes=("apple", "zebra")), r"outputs\.names\[0\] was \"no\", and is \"apple\""),
}


@pytest.fixture
def learned(tmp_path):
    """The folder of a run that has learned a table."""
    data().to_csv(tmp_path / "data.csv", index=False)
    here(train.main, "tasks=[table]", *TABLE, *SMALLER, "hydra.run.dir=first", cwd=tmp_path)
    return tmp_path


@pytest.mark.parametrize(("frame", "named"), OTHERS.values(), ids=OTHERS)
def test_a_known_task_with_other_data_is_refused(frame, named, learned, capsys):
    frame.to_csv(learned / "data.csv", index=False)
    more = ["tasks=[table,wine]", "network=first", "hydra.run.dir=second"]
    for main, *arguments in ((train.main, *TABLE, *SMALLER, *more), (evaluate.main, "run=first")):
        capsys.readouterr()
        with pytest.raises(SystemExit):
            here(main, *arguments, cwd=learned)
        printed = " ".join(capsys.readouterr().err.split())
        assert "task 'table' was trained on other data than this run reads: " in printed
        assert re.search(named, printed), printed


def test_a_known_task_with_the_same_data_is_evaluated(learned, caplog):
    here(train.main, *TABLE, *SMALLER, "tasks=[table,wine]", "network=first", "hydra.run.dir=second", cwd=learned)
    first, second = (json.loads((learned / run / "results.json").read_text()) for run in ("first", "second"))
    assert second["tasks"]["table"]["test"] == first["tasks"]["table"]["test"]
    log = (learned / "second" / "train.log").read_text()
    assert "evaluated table: " in log
    assert "learned wine: " in log


def test_a_task_with_other_data_may_be_trained_again(learned):
    data(scale=10).to_csv(learned / "data.csv", index=False)
    more = ["tasks=[table]", "network=first", "retrain=[table]", "hydra.run.dir=second"]
    here(train.main, *TABLE, *SMALLER, *more, cwd=learned)
    before, now = (read_state(learned / run / "network.safetensors").state.task("table") for run in ("first", "second"))
    assert before.recipe["preprocessing"] != now.recipe["preprocessing"]


def test_a_run_resumes_with_the_data_it_began_with_alone(learned, capsys):
    (learned / "first" / "results.json").write_text(
        (learned / "first" / "results.json").read_text().replace('"finished"', '"running"')
    )
    data(scale=10).to_csv(learned / "data.csv", index=False)
    with pytest.raises(SystemExit):
        here(train.main, "resume=first", cwd=learned)
    assert "resume with the data that the run began with" in " ".join(capsys.readouterr().err.split())


BEGUN = {
    "other statistics": data(scale=10),
    "more rows": pd.concat([data(), data()[:1]]),
    "other targets": data().assign(y=data(seed=1).y),
}


@pytest.mark.parametrize("frame", BEGUN.values(), ids=BEGUN)
def test_a_run_that_stopped_in_its_first_fit_resumes_with_its_data_alone(frame, tmp_path, capsys):
    data().to_csv(tmp_path / "data.csv", index=False)
    with told_to_end_after(2), pytest.raises(SystemExit):
        here(train.main, "tasks=[table]", *TABLE, *SMALLER, "hydra.run.dir=first", cwd=tmp_path)
    assert not list((tmp_path / "first" / "checkpoints").glob("after-*"))
    frame.to_csv(tmp_path / "data.csv", index=False)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        here(train.main, "resume=first", cwd=tmp_path)
    printed = " ".join(capsys.readouterr().err.split())
    assert "task 'table' was trained on other data than this run reads: " in printed
    assert "resume with the data that the run began with" in printed
    data().to_csv(tmp_path / "data.csv", index=False)
    here(train.main, "resume=first", cwd=tmp_path)
    assert json.loads((tmp_path / "first" / "results.json").read_text())["status"] == "finished"


def test_a_damaged_record_of_the_data_is_named(learned, capsys):
    record = learned / "first" / "checkpoints" / "data.json"
    record.write_text(record.read_text()[:-5])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        here(evaluate.main, "run=first", cwd=learned)
    assert "data.json" in " ".join(capsys.readouterr().err.split())
