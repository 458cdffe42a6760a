"""Tables of sweeps, from the run folders alone."""

import csv
import io

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from fakes import write_run
from msh.report.sweeps import print_sweep, read_sweep, short, write_csv
from msh.runs.results import ENDED, UNFINISHED

COMMON = ["experiment=sequential", "logger=csv"]


@pytest.fixture
def sweep(tmp_path):
    """Jobs 0 and 10 are finished, 2 has failed, 3 was killed."""
    scores = {"0": (0.6, 0.9), "10": (0.7, 0.5)}
    for name, density in (("0", "0.1"), ("2", "2"), ("3", "0.2"), ("10", "0.3")):
        val, test = scores.get(name, (None, None))
        tasks = {"a": {"val": val, "test": test, "density": float(density)}}
        overrides = [*COMMON, f"pruning.density={density}", f"+paths.data_dir={name}"]
        write_run(tmp_path / name, tasks, overrides=overrides, status="finished" if name in scores else "running")
    (tmp_path / "2" / "results.json").unlink()
    (tmp_path / "2" / UNFINISHED).write_text("it broke:\ndensity = 2\n")
    (tmp_path / "3" / UNFINISHED).write_text(ENDED)
    return tmp_path


def test_jobs_come_in_order_with_the_settings_that_differ(sweep):
    rows = read_sweep(sweep, leave_out=["paths"])
    assert [(row.name, row.settings, row.status, row.error) for row in rows] == [
        ("0", {"pruning.density": "0.1"}, "finished", ""),
        ("2", {"pruning.density": "2"}, "failed", "density = 2"),
        ("3", {"pruning.density": "0.2"}, "unfinished", ENDED),
        ("10", {"pruning.density": "0.3"}, "finished", ""),
    ]


def test_settings_that_a_job_was_not_started_with_are_its_composed_ones(tmp_path):
    """As when a sweep is extended by another key, or a value is written in another way."""
    choices = {"hydra": {"runtime": {"choices": {"pruning": "gradual", "pruning/criterion": "magnitude"}}}}
    config = {"pruning": {"density": 0.1, "weights": None}, "optimizer": {"lr": 0.001}, "seed": 1}
    jobs = [
        ["seed=1"],
        ["seed=1", "pruning.density=1e-1", "pruning.weights=7", "pruning=lottery", "pruning/criterion=random"],
        ["seed=1", "pruning.density=0.2", "optimizer.lr=1e-3", "tasks=[a,b]"],
    ]
    for number, overrides in enumerate(jobs):
        folder = write_run(tmp_path / str(number), {"a": {"val": 0.5, "test": 0.5}}, config=config, overrides=overrides)
        OmegaConf.save(OmegaConf.create(choices), folder / ".hydra" / "hydra.yaml")
    usual = {"pruning.weights": "null", "pruning": "gradual", "pruning/criterion": "magnitude", "tasks": "[a]"}
    assert [row.settings for row in read_sweep(tmp_path)] == [
        {"pruning.density": "0.1"} | usual,
        {"pruning.density": "0.1", "pruning.weights": "7", "pruning": "lottery", "pruning/criterion": "random"}
        | {"tasks": "[a]"},
        {"pruning.density": "0.2"} | usual | {"tasks": "[a,b]"},
    ]


@pytest.mark.parametrize("damage", ["{", "[1, 2]", "pruning: {density: '${nothing}'}", None])
def test_settings_are_empty_where_a_jobs_config_cannot_be_read(tmp_path, damage):
    for number, overrides in enumerate(([], ["pruning.density=0.2"])):
        folder = write_run(tmp_path / str(number), {"a": {"val": 0.5, "test": 0.5}}, overrides=overrides)
        for name in ("hydra.yaml", "config.yaml"):
            (folder / ".hydra" / name).unlink(missing_ok=True)
            if damage is not None:
                (folder / ".hydra" / name).write_text(damage)
    assert [row.settings for row in read_sweep(tmp_path)] == [{"pruning.density": ""}, {"pruning.density": "0.2"}]


def test_a_job_with_damaged_results_failed_and_the_error_names_the_file(sweep):
    (sweep / "0" / "results.json").write_text("{")
    row = read_sweep(sweep)[0]
    assert row.status == "failed"
    assert "cannot be read" in row.error


def test_the_csv_has_a_line_for_each_job_and_a_column_for_each_score(sweep):
    write_csv(sweep / "sweep.csv", read_sweep(sweep, ["paths"]))
    rows = list(csv.DictReader((sweep / "sweep.csv").read_text().splitlines()))
    assert [row["job"] for row in rows] == ["0", "2", "3", "10"]
    wanted = {"pruning.density": "0.1", "status": "finished", "mean_score": "0.6", "a.val": "0.6", "a.test": "0.9"}
    assert rows[0].items() >= wanted.items()
    assert rows[1].items() >= {"status": "failed", "mean_score": "", "a.val": "", "error": "density = 2"}.items()


def test_the_table_marks_the_best_by_validation_and_names_errors(sweep):
    console = Console(width=100, record=True, file=io.StringIO())
    print_sweep(read_sweep(sweep, ["paths"]), console)
    printed = console.export_text()
    assert "4 jobs, 2 finished" in printed
    best = next(line for line in printed.splitlines() if "*" in line)
    assert "10" in best
    assert "0.7000 *" in best
    assert "2 failed: density = 2" in printed


def test_long_numbers_are_shown_with_four_digits():
    values = ["0.0020614878273680667", "1e-3", "3", "magnitude", "weight_gradient", "[wine,diabetes]"]
    assert [short(value) for value in values] == ["0.002061", *values[1:]]


def test_a_folder_without_jobs_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not the folder of a sweep"):
        read_sweep(tmp_path)
