"""metrics.csv continues where a killed run stopped."""

import pytest

from msh.runs.metrics import read_rows, write_rows
from msh.tracking.loggers import RunCSVLogger


def log(folder, *rows):
    """Log (step, {name: value}) rows, as one process does."""
    logger = RunCSVLogger(str(folder))
    for step, metrics in rows:
        logger.log_metrics(metrics, step=step)
        logger.save()
    return logger


def rows(folder):
    """[{column: value}] of metrics.csv, without empty cells."""
    return [{name: cell for name, cell in row.items() if cell} for row in read_rows(folder / "metrics.csv")[1]]


def test_loggers_that_can_forget_have_the_protocol(tmp_path):
    from msh.tracking.protocols import RunLogger
    from msh.tracking.trackers import RunMLFlowLogger, RunTensorBoardLogger
    from msh.tracking.wandb_run import RunWandbLogger

    assert isinstance(RunCSVLogger(str(tmp_path)), RunLogger)
    assert hasattr(RunTensorBoardLogger, "rewind_to")
    assert not any(hasattr(logger, "rewind_to") for logger in (RunMLFlowLogger, RunWandbLogger))


# ---- metrics.csv


def test_rows_are_written_as_soon_as_they_are_logged(tmp_path):
    logger = RunCSVLogger(str(tmp_path))
    logger.log_metrics({"loss": 0.5}, step=0)
    logger.save()
    assert rows(tmp_path) == [{"step": "0", "loss": "0.5"}]


def test_a_logger_that_is_opened_again_appends(tmp_path):
    log(tmp_path, (0, {"loss": 0.5}), (1, {"loss": 0.4}))
    log(tmp_path, (2, {"loss": 0.3}))
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [("0", "0.5"), ("1", "0.4"), ("2", "0.3")]


def test_new_columns_keep_the_rows_before(tmp_path):
    log(tmp_path, (0, {"a/loss": 0.5}))
    log(tmp_path, (1, {"b/loss": 0.4}), (2, {"a/loss": 0.1, "c/loss": 0.2}))
    assert rows(tmp_path) == [
        {"step": "0", "a/loss": "0.5"},
        {"step": "1", "b/loss": "0.4"},
        {"step": "2", "a/loss": "0.1", "c/loss": "0.2"},
    ]


def test_rows_after_a_step_are_forgotten(tmp_path):
    log(tmp_path, *((step, {"loss": step / 4}) for step in range(5)))
    resumed = RunCSVLogger(str(tmp_path))
    resumed.rewind_to(2)
    resumed.log_metrics({"loss": 9.0}, step=3)
    resumed.save()
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [
        *(("0", "0.0"), ("1", "0.25"), ("2", "0.5"), ("3", "9.0"))
    ]


def test_the_next_batch_is_forgotten_and_the_evaluation_before_it_is_not(tmp_path):
    log(tmp_path, (1, {"a/train/loss": 0.5}), (2, {"a/sparsity": 0.9}), (2, {"a/test/loss": 0.4}))
    before = rows(tmp_path)
    log(tmp_path, (2, {"a/train/loss": 0.3}), (3, {"a/train/loss": 0.2}))
    RunCSVLogger(str(tmp_path)).rewind_to(2)
    assert rows(tmp_path) == before


def test_an_evaluation_that_is_repeated_is_forgotten_and_the_batch_before_it_is_not(tmp_path):
    log(tmp_path, (1, {"a/train/loss": 0.5}), (1, {"a/val/loss": 0.4}))
    before = rows(tmp_path)
    log(tmp_path, (2, {"a/test/loss": 0.3}), (2, {"capacity/free": 0.9}))
    RunCSVLogger(str(tmp_path)).rewind_to(2, evaluations=False)
    assert rows(tmp_path) == before


def test_without_later_rows_nothing_is_forgotten(tmp_path):
    log(tmp_path, (0, {"loss": 0.5}))
    before = (tmp_path / "metrics.csv").read_bytes()
    RunCSVLogger(str(tmp_path)).rewind_to(0)
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_rewinding_in_an_empty_folder_does_nothing(tmp_path):
    RunCSVLogger(str(tmp_path)).rewind_to(3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("torn", ["0", "0.3", "0.3,", "0.3,2"])
def test_an_incomplete_last_line_is_dropped(torn, tmp_path):
    (tmp_path / "metrics.csv").write_text(f"loss,step\n0.5,0\n0.4,1\n{torn}")
    assert rows(tmp_path) == [{"step": "0", "loss": "0.5"}, {"step": "1", "loss": "0.4"}]
    RunCSVLogger(str(tmp_path)).rewind_to(1)
    log(tmp_path, (2, {"loss": 0.25}))
    assert rows(tmp_path)[1:] == [{"step": "1", "loss": "0.4"}, {"step": "2", "loss": "0.25"}]


def test_an_incomplete_header_is_dropped(tmp_path):
    (tmp_path / "metrics.csv").write_text("los")
    log(tmp_path, (0, {"loss": 0.25}))
    assert rows(tmp_path) == [{"step": "0", "loss": "0.25"}]


def test_a_logger_opened_on_an_incomplete_line_appends_complete_rows(tmp_path):
    (tmp_path / "metrics.csv").write_text("loss,step\n0.5,0\n0.2")
    log(tmp_path, (1, {"loss": 0.25}))
    assert rows(tmp_path) == [{"step": "0", "loss": "0.5"}, {"step": "1", "loss": "0.25"}]


def test_a_missing_file_is_empty(tmp_path):
    assert read_rows(tmp_path / "metrics.csv") == ([], [])


def test_cells_with_commas_and_quotes_come_back(tmp_path):
    written = [{"step": "0", "note": 'a, "b"'}, {"step": "1", "note": ""}]
    write_rows(tmp_path / "metrics.csv", ["step", "note"], written)
    assert read_rows(tmp_path / "metrics.csv") == (["step", "note"], written)


def test_hyperparameters_leave_no_file(tmp_path):
    RunCSVLogger(str(tmp_path)).log_hyperparams({"lr": 0.1})
    assert list(tmp_path.iterdir()) == []
