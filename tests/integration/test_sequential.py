"""The demo, end to end: one command, its run folder, and its evaluation."""

import csv
import json
import re
import shutil
import sys

import pytest
import wandb_file
from forking import run
from omegaconf import OmegaConf
from PIL import Image
from running import SMALL, few_steps
from safetensors import safe_open

from dashboards import shown
from messages import says
from msh.tracking.dashboard import sections

TASKS = ["digits", "breast_cancer", "wine", "diabetes"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """(run folder, printed text) of the demo with W&B offline, with a small network, in a separate process."""
    folder = tmp_path_factory.mktemp("demo")
    arguments = ["+experiment=sequential", "baseline=dense", f"hydra.run.dir={folder / 'run'}"]
    quick = [*SMALL, *few_steps(*TASKS), "trainer.max_epochs=6", "optimizer.lr=0.01"]
    return folder / "run", run("train.py", *arguments, *quick, cwd=folder)


@pytest.fixture(scope="module")
def results(demo):
    return json.loads((demo[0] / "results.json").read_text())


def test_the_run_folder_holds_the_files_in_the_contract(demo):
    folder, printed = demo
    for name in ("results.json", "metrics.csv", "network.safetensors", "train.log", ".hydra/config.yaml"):
        assert (folder / name).is_file(), name
    assert sorted(p.stem for p in (folder / "subnetworks").iterdir()) == sorted(TASKS)
    assert (folder / "checkpoints").is_dir()
    assert list((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert str(folder) in printed.splitlines()[-1]
    for task in TASKS:
        assert task in printed


def test_results_follow_the_schema(results):
    assert results["schema_version"] == 1
    assert (results["experiment"], results["seed"], results["status"]) == ("sequential", 0, "finished")
    assert results["curriculum"] == [[task] for task in TASKS]
    assert list(results["tasks"]) == TASKS
    prunable = results["capacity"]["prunable"]
    for stage, row in enumerate(results["tasks"].values()):
        assert row["stage"] == stage
        assert row["test"] == row["test_when_learned"] == results["matrix"][-1][stage]
        assert row["density"] == pytest.approx(0.1, abs=0.001)
        assert row["weights"] == pytest.approx(0.1 * prunable, rel=0.01)
        assert row["weights_private"] > 0
        assert row["weights_reused"] == 0
        assert row["dense"] is not None
        assert row["train_seconds"] > 0
    owned = sum(row["weights"] for row in results["tasks"].values())
    assert results["capacity"] == {"prunable": prunable, "owned": owned, "free": prunable - owned}


def test_nothing_is_forgotten(results):
    assert results["forgetting"] == 0.0
    assert results["bwt"] == 0.0
    assert results["guarantee"] == {"checked": 6, "violations": 0}
    for stage, row in enumerate(results["matrix"]):
        assert [score is None for score in row] == [task > stage for task in range(4)]


def test_tasks_are_learned(results):
    scores = {task: row["test"] for task, row in results["tasks"].items()}
    assert scores["digits"] > 0.7
    assert scores["breast_cancer"] > 0.85
    assert scores["wine"] > 0.7
    assert scores["diabetes"] < 77.0  # the standard deviation of the target


def test_evaluate_gives_the_same_scores_to_the_last_digit(demo, results, monkeypatch, capsys):
    from hydra.core.global_hydra import GlobalHydra

    from msh.cli.evaluate import main

    folder, _ = demo
    (folder / "checkpoints").rename(folder / "elsewhere")  # it needs the network file, and no checkpoint
    monkeypatch.setattr(sys, "argv", ["evaluate.py", f"run={folder}"])
    GlobalHydra.instance().clear()
    main()
    (folder / "elsewhere").rename(folder / "checkpoints")
    printed = capsys.readouterr().out
    rows = json.loads((folder / "evaluation.json").read_text())
    assert {row["task"]: row["score"] for row in rows} == {t: r["test"] for t, r in results["tasks"].items()}
    assert all(str(row["score"]) in printed for row in rows)


def test_evaluate_calls_no_foreign_code_from_a_run_folder_unless_unsafe(demo, tmp_path, monkeypatch, capsys):
    from hydra.core.global_hydra import GlobalHydra

    from msh.cli.evaluate import main

    folder = shutil.copytree(demo[0], tmp_path / "run")
    path = folder / ".hydra" / "config.yaml"
    config = OmegaConf.load(path)
    config.backbone = {"_target_": "builtins.dict"}
    OmegaConf.save(config, path)
    refused, called = (
        says("backbone._target_", value="builtins.dict"),
        "builtins.dict has no attribute 'input_shape'",
    )
    for unsafe, message in (("false", refused), ("true", called)):
        monkeypatch.setattr(sys, "argv", ["evaluate.py", f"run={folder}", f"unsafe={unsafe}"])
        GlobalHydra.instance().clear()
        with pytest.raises(SystemExit):
            main()
        assert re.search(message, capsys.readouterr().err)


def test_logs_have_one_step_axis_over_all_stages(demo):
    with (demo[0] / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows]
    assert steps == sorted(steps)
    first = {task: next(int(r["step"]) for r in rows if r[f"{task}/val/loss"]) for task in TASKS}
    assert [first[task] for task in TASKS] == sorted(set(first.values()))
    assert {"digits/val/accuracy", "diabetes/val/rmse", "capacity/free", "wine/sparsity"} <= set(rows[0])
    free = [float(row["capacity/free"]) for row in rows if row["capacity/free"]]
    assert free == pytest.approx([0.9, 0.8, 0.7, 0.6], abs=0.005)


def test_a_subnetwork_file_holds_only_the_tasks_weights(demo, results):
    with safe_open(demo[0] / "subnetworks" / "wine.safetensors", "pt") as file:
        values = sum(file.get_tensor(name).numel() for name in file.keys() if name.startswith("values."))  # noqa: SIM118
        assert [row["task"] for row in json.loads(file.metadata()["state"])["tasks"]] == ["wine"]
    assert values == results["tasks"]["wine"]["weights"]


# ---- W&B: the offline run holds all that is promised


@pytest.fixture(scope="module")
def wandb_run(demo):
    return next((demo[0] / "wandb").glob("offline-run-*/*.wandb"))


def table(wandb_run, row, key):
    """(columns, rows) of a table that was logged."""
    held = json.loads((wandb_run.parent / "files" / row[key]["path"]).read_text())
    return held["columns"], held["data"]


def test_the_wandb_run_has_a_name_and_the_config(wandb_run, results):
    run = next(record.run for record in wandb_file.records(wandb_run) if record.HasField("run"))
    assert (run.run_id, run.run_group, run.job_type) == (results["run_id"], "sequential", "train")
    assert set(run.tags) == {"sequential", "seed-0"}
    config = {item.key: item.value_json for r in wandb_file.records(wandb_run) for item in r.config.update}
    assert json.loads(config["pruning"])["density"] == 0.1
    assert list(json.loads(config["tasks"])) == TASKS


def test_wandb_curves_match_the_csv_on_one_axis(demo, wandb_run):
    metrics = [record.metric for record in wandb_file.records(wandb_run) if record.HasField("metric")]
    assert [m.step_metric for m in metrics if m.glob_name == "*"] == ["trainer/global_step"]
    with (demo[0] / "metrics.csv").open() as file:
        in_csv = [
            (int(r["step"]), k, float(v)) for r in csv.DictReader(file) for k, v in r.items() if v and k != "step"
        ]
    logged = wandb_file.rows(wandb_run)
    keys = {key for _, key, _ in in_csv}
    curves = [(row["trainer/global_step"], k, v) for row in logged for k, v in row.items() if k in keys]
    assert sorted(curves) == sorted(in_csv)
    assert {"digits/train/loss", "digits/val/accuracy", "diabetes/test/rmse", "wine/sparsity", "capacity/free"} <= keys
    steps = [row["trainer/global_step"] for row in logged]
    assert steps == sorted(steps)


def test_wandb_has_the_matrix_as_a_table_and_as_a_figure(wandb_run, results):
    logged = [row for row in wandb_file.rows(wandb_run) if "matrix/table" in row]
    assert len(logged) == len(TASKS)
    columns, rows = table(wandb_run, logged[-1], "matrix/table")
    assert columns == ["after", *TASKS]
    assert rows == [[name, *row] for name, row in zip(TASKS, results["matrix"], strict=True)]
    pictures = [row["matrix/heat_map"] for row in wandb_file.rows(wandb_run) if "matrix/heat_map" in row]
    assert len(pictures) == len(TASKS)
    assert (wandb_run.parent / "files" / pictures[-1]["filenames"][0]).is_file()


def test_wandb_has_the_capacity_of_each_layer_and_task_and_owner_maps(wandb_run, results):
    logged = [row for row in wandb_file.rows(wandb_run) if "capacity/table" in row]
    columns, rows = table(wandb_run, logged[-1], "capacity/table")
    assert columns == ["layer", "owner", "weights", "share"]
    whole = {owner: weights for layer, owner, weights, _ in rows if layer == "all layers"}
    assert whole == {task: row["weights"] for task, row in results["tasks"].items()} | {
        "free": results["capacity"]["free"]
    }
    layers = {layer for layer, *_ in rows} - {"all layers"}
    assert sum(weights for layer, _, weights, _ in rows if layer in layers) == results["capacity"]["prunable"]
    pictures = [row for row in wandb_file.rows(wandb_run) if "owner_maps" in row]
    assert set(pictures[-1]["owner_maps"]["captions"]) == layers  # two of them, and four may be shown
    for name in [*pictures[-1]["owner_maps"]["filenames"], *pictures[-1]["capacity/bars"]["filenames"]]:
        with Image.open(wandb_run.parent / "files" / name) as picture:
            assert picture.size > (40, 40)
    shares = [row for row in wandb_file.rows(wandb_run) if "owned/diabetes" in row]
    assert shares[-1]["owned/wine"] == pytest.approx(results["tasks"]["wine"]["density"])


def test_wandb_summary_has_scores_forgetting_and_the_guarantees_verdict(wandb_run, results):
    summary = wandb_file.summary(wandb_run)
    assert summary["guarantee/verdict"] == "held: 6 compared, 0 changed"
    assert (summary["guarantee/checked"], summary["guarantee/violations"]) == (6, 0)
    assert (summary["forgetting"], summary["bwt"], summary["status"]) == (0.0, 0.0, "finished")
    for task, row in results["tasks"].items():
        for key, name in (("score", "test"), ("val_score", "val"), ("density", "density"), ("dense", "dense")):
            assert summary[f"{key}/{task}"] == row[name]
    assert 0 < summary["mean_score"] < 1
    logged = next(row for row in wandb_file.rows(wandb_run) if "scores/table" in row)
    columns, rows = table(wandb_run, logged, "scores/table")
    assert [row[columns.index("test")] for row in rows] == [row["test"] for row in results["tasks"].values()]


def test_wandb_artifacts_link_data_run_and_subnetworks(demo, wandb_run, results):
    artifacts, run_id = wandb_file.artifacts(wandb_run), results["run_id"]
    aliases = {name: {alias for one in all_of for alias in one.aliases} for name, all_of in artifacts.items()}
    for stage, task in enumerate(TASKS):
        data = artifacts[f"data-{task}"][0]
        assert (data.type, data.use_after_commit) == ("dataset", True)
        described = json.loads(data.metadata)
        assert described["task"] == task
        assert described["examples"]["test"] > 0
        name = f"subnetwork-{run_id}-{task}"
        assert aliases[name] == {"latest", "final", f"stage-{stage}"}
        assert artifacts[name][0].type == "subnetwork"
        assert artifacts[name][0].manifest.contents[0].local_path == str(
            demo[0] / "subnetworks" / f"{task}.safetensors"
        )
        assert json.loads(artifacts[name][0].metadata)["weights"] == results["tasks"][task]["weights"]
    assert aliases[f"network-{run_id}"] == {"latest", "final", "stage-3"}


def test_wandb_records_the_system(wandb_run):
    keys = {item.key for record in wandb_file.records(wandb_run) for item in record.stats.item}
    assert {"memory_percent", "proc.memory.rssMB"} <= keys
    assert any(record.HasField("environment") for record in wandb_file.records(wandb_run))


def test_every_panel_of_the_dashboard_shows_what_runs_log(wandb_run):
    keys = {key for row in wandb_file.rows(wandb_run) for key in row} | set(wandb_file.summary(wandb_run))
    # the use of processors is known from the second look on, GPUs only where there are any
    system = {f"system/{item.key}" for record in wandb_file.records(wandb_run) for item in record.stats.item}
    for section in sections():
        for panel in section.panels:
            named, pattern = shown(panel)
            if section.name == "system":
                assert system & set(named) or named[0] in ("system/cpu", "system/gpu.0.gpu"), panel.title
            else:
                assert set(named) <= keys, panel
                assert pattern is None or any(re.fullmatch(pattern, key) for key in keys), panel
