"""docs/results.md and results.json: order of the runs, records, targets and documents."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fakes import write_run
from messages import says
from msh.training.settings import OnDisk

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from benchmarks import attempts, figures, recording, reproduce, results_document  # noqa: E402
from benchmarks.rows import FILE, Goal, Row, check_baselines, check_dense, check_part, read_rows  # noqa: E402
from benchmarks.scores import beginning_of, read_run, records_of  # noqa: E402

CONTRACT = ["row", "task", "metric", "direction", "mean", "std", "seeds", "authors", "dense", "joint", "finetune"]
CONTRACT += ["density", "forgetting", "seconds"]


def row(id="1", **settings):
    return Row(id=id, title="Two tasks", experiment="fake", **{"seeds": [0, 1]} | settings)


def measured(folder, scores, **more):
    """Seed to run, of tasks that differ in their test scores."""
    runs = {}
    for seed, tasks in enumerate(scores):
        tasks = {name: given if isinstance(given, dict) else {"test": given} for name, given in tasks.items()}
        runs[seed] = read_run(write_run(folder / f"seed-{seed}", tasks, **more))
    return runs


# ---- rows


def write_rows(path, *rows):
    OmegaConf.save(OmegaConf.create([{"title": "x", "experiment": "fake", **given} for given in rows]), path)
    return path


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seed": [0]}, "row_1: Key 'seed' not in 'Row'"),
        ({"tasks": {"a": {"authors": "high"}}}, "row_1: Value 'high'"),
        ({"group": "some"}, "group must be one of core, all.*, got 'some'"),
        ({"seeds": []}, "seeds is empty"),
        ({"baselines": {"dens": [0]}}, "baselines must be one of .*, got 'dens'; did you mean 'dense'"),
        ({"baselines": {"dense": [3]}}, says("baselines.dense", "some of seeds = [0, 1]", [3])),
        ({"part_of": "4"}, "part_of must be one of row_1.*, got '4'"),
        ({"dense_of": "4"}, "dense_of must be one of row_1.*, got '4'"),
        ({"baselines_of": "4"}, "baselines_of must be one of row_1.*, got '4'"),
        (
            {"dense_of": "row_1", "baselines_of": "row_1"},
            says("dense_of", "null, as baselines_of has dense networks too", "row_1"),
        ),
    ],
)
def test_a_mistake_in_the_rows_is_named(tmp_path, given, message):
    path = write_rows(tmp_path / "rows.yaml", {"id": "row_1", "seeds": [0, 1]} | given)
    with pytest.raises(ValueError, match=message):
        read_rows(path)


def test_an_id_belongs_to_one_row(tmp_path):
    with pytest.raises(ValueError, match="more than one row_1"):
        read_rows(write_rows(tmp_path / "rows.yaml", {"id": "row_1"}, {"id": "row_1"}))


def test_the_projects_rows_are_allowed_and_the_quick_group_comes_first():
    rows = read_rows(FILE)
    groups = [row.group for row in rows.values()]
    assert {"1", "3", "4", "split_mnist", "permuted_mnist"} == {id for id, row in rows.items() if row.group == "core"}
    assert groups == sorted(groups, reverse=True)
    several = {id for id, row in rows.items() if len(row.seeds) == 3}
    assert several == {id for id, row in rows.items() if row.group == "core"} | {"four_domains_weights"}
    assert {len(row.seeds) for id, row in rows.items() if id not in several} == {1}


# ---- dense networks of another row


def sequential(id, *overrides, **settings):
    small = ["tasks=[iris,wine]", *overrides]
    return Row(id=id, title="x", experiment="sequential", overrides=small, **settings)


def test_dense_networks_are_shared_where_only_pruning_and_order_differ():
    other = sequential("4", "tasks=[wine,iris,digits]", "pruning.density=0.3", baselines={"dense": [0]})
    check_dense(sequential("1", "curriculum=[[iris,wine]]"), other)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.lr=0.5"], r"optimizer\.lr is 0\.5 in row 1 and 0\.001 in row 4"),
        (["backbone.width=7"], "backbone.width is 7"),
        (["tasks.wine.batch_size=3"], r"tasks\.wine\.batch_size is 3 in row 1 and 8 in row 4"),
        (["trainer.max_epochs=5"], "epochs of iris is 5 in row 1 and 12 in row 4"),
        (["tasks=[iris,digits]"], "it has no task digits, only iris, wine"),
    ],
)
def test_dense_networks_with_other_settings_are_not_shared(overrides, message):
    other = sequential("4", baselines={"dense": [0]})
    with pytest.raises(ValueError, match=message):
        check_dense(sequential("1", *overrides), other)


# ---- baselines of another row


def test_baselines_are_shared_where_only_pruning_differs():
    other = sequential("4", baselines={"joint": [0]})
    check_baselines(sequential("1", "pruning.granularity=weight", "pruning.density=0.3", "reuse=all"), other)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.lr=0.5"], r"optimizer\.lr is 0\.5 in row 1 and 0\.001 in row 4"),
        (["tasks.wine.batch_size=3"], r"tasks\.wine\.batch_size is 3 in row 1 and 8 in row 4"),
        (["trainer.max_epochs=5"], r"trainer\.max_epochs is 5 in row 1 and 12 in row 4"),
        (["tasks=[iris]"], r"tasks.* in row 1 and .* in row 4"),
        (["curriculum=[[iris,wine]]"], r"curriculum is .*'tasks': \['iris', 'wine'\].* in row 1 and None in row 4"),
        (["uneven=shortest"], r"uneven is 'shortest' in row 1"),
    ],
)
def test_baselines_with_other_settings_are_not_shared(overrides, message):
    other = sequential("4", baselines={"joint": [0]})
    with pytest.raises(ValueError, match=message):
        check_baselines(sequential("1", *overrides), other)


@pytest.mark.parametrize(
    ("check", "baseline", "message"),
    [
        (check_dense, "dense", "must train dense networks, and row"),
        (check_baselines, "joint", "must have baselines, and row"),
    ],
)
def test_a_row_without_networks_uses_those_of_another(check, baseline, message):
    without, training = sequential("1"), sequential("4", baselines={baseline: [0]})
    for pair in ((without, without), (training, training)):
        with pytest.raises(ValueError, match=message):
            check(*pair)


# ---- order


def test_the_first_seed_of_all_rows_comes_first(tmp_path):
    rows = [row("1", baselines={"joint": [0]}), row("2", seeds=[0]), row("3", seeds=[0, 1, 2])]
    names = [step.name for step in reproduce.plan(rows, None, tmp_path)]
    assert names == [
        *("row 1, seed 0", "row 2, seed 0", "row 3, seed 0"),
        *("row 1, seed 1", "row 3, seed 1", "row 3, seed 2"),
    ]
    assert [step.name for step in reproduce.plan(rows, [1], tmp_path)] == ["row 1, seed 1", "row 3, seed 1"]


def test_a_step_names_its_settings_and_folder(tmp_path):
    step = row("1", overrides=["reuse=all"], baselines={"dense": [1], "joint": [0, 1]}).step(1, tmp_path)
    assert step.overrides == ("experiment=fake", "reuse=all", "seed=1")
    assert (step.folder, step.baselines) == (tmp_path / "1" / "seed-1", ("dense", "joint"))


# ---- records


def test_a_record_averages_scores_and_baselines_over_their_seeds(tmp_path):
    runs = measured(tmp_path, [{"a": {"test": 0.8, "dense": 0.9, "joint": 0.5}}, {"a": {"test": 0.9, "dense": 0.7}}])
    (record,) = records_of(row(tasks={"a": Goal(authors=0.6)}), runs, runs, runs)
    assert list(record)[: len(CONTRACT)] == CONTRACT
    assert (record["mean"], record["std"]) == pytest.approx((0.85, 0.5**0.5 / 10))
    assert (record["dense"], record["joint"], record["finetune"]) == (pytest.approx(0.8), 0.5, None)
    assert (record["seeds"], record["dense_seeds"], record["joint_seeds"], record["finetune_seeds"]) == (2, 2, 1, 0)
    assert (record["authors"], record["density"], record["seconds"], record["epochs"]) == (0.6, 0.1, 10.0, 3)


def test_one_seed_has_no_deviation(tmp_path):
    runs = measured(tmp_path, [{"a": 0.8}])
    assert records_of(row(), runs, runs, runs)[0]["std"] is None


@pytest.mark.parametrize(
    ("direction", "test", "goal", "missed"),
    [
        ("max", 0.85, {}, None),
        ("max", 0.85, {"target": 0.85, "worse_than_dense": 0.05}, []),
        ("max", 0.85, {"target": 0.86, "worse_than_dense": 0.05}, ["target"]),
        ("max", 0.85, {"target": 0.86, "worse_than_dense": 0.04}, ["target", "more than 0.04 worse than dense"]),
        ("max", 0.85, {"worse_than_dense": 0.0}, ["more than 0 worse than dense"]),
        ("max", 0.95, {"worse_than_dense": 0.0}, []),
        ("min", 0.95, {"target": 0.95, "worse_than_dense": 0.05}, []),
        ("min", 0.95, {"target": 0.94, "worse_than_dense": 0.04}, ["target", "more than 0.04 worse than dense"]),
    ],
)
def test_a_record_lists_its_missed_targets(tmp_path, direction, test, goal, missed):
    runs = measured(tmp_path, [{"a": {"test": test, "dense": 0.9, "direction": direction}}])
    (record,) = records_of(row(tasks={"a": Goal(**goal)}), runs, runs, runs)
    assert record["met"] is (None if missed is None else not missed)
    assert record["missed"] == (missed or [])


def test_a_missing_dense_score_misses_its_bound(tmp_path):
    runs = measured(tmp_path, [{"a": 0.95}])
    (record,) = records_of(row(worse_than_dense=0.005), runs, runs, runs)
    assert (record["met"], record["missed"]) == (False, ["dense not measured"])


def test_forgetting_and_a_changed_frozen_task_count_as_missed(tmp_path):
    runs = measured(tmp_path, [{"a": 0.9, "b": 0.8}], matrix=[[0.95, None], [0.9, 0.8]])
    assert records_of(row(), runs, runs, runs)[0]["missed"] == ["forgetting 0.05"]
    runs = measured(tmp_path / "changed", [{"a": 0.9}], guarantee={"checked": 1, "violations": 1})
    assert [record["met"] for record in records_of(row(), runs, runs, runs)] == [False]


def test_a_task_must_stay_within_a_bound_of_the_first(tmp_path):
    runs = measured(tmp_path, [{"a": 0.95, "b": 0.94, "c": 0.93}])
    records = records_of(row(within_of_first=0.01), runs, runs, runs)
    assert [record["missed"] for record in records] == [[], [], ["more than 0.01 worse than a"]]
    assert [record["met"] for record in records] == [None, True, False]


def test_the_mean_over_tasks_is_taken_within_each_seed(tmp_path):
    scores = [{"a": {"test": 0.6, "dense": 1.0}, "b": {"test": 1.0, "dense": 0.5}}, {"a": 0.7, "b": 1.0}]
    runs = measured(tmp_path, scores)
    records = records_of(row(mean=Goal(target=0.9)), runs, runs, runs)
    assert [record["task"] for record in records] == ["a", "b", "mean"]
    assert (records[2]["mean"], records[2]["dense"]) == pytest.approx((0.825, 0.75))
    assert records[2]["std"] == pytest.approx(0.05 * 0.5**0.5)
    assert records[2]["missed"] == ["target"]


@pytest.mark.parametrize(("test", "missed"), [(0.92, []), (0.91, ["not above its best member, b"])])
def test_an_ensemble_is_compared_with_its_best_member(tmp_path, test, missed):
    ensemble = {"all": {"metric": "accuracy", "direction": "max", "tasks": ["a", "b"], "test": test}}
    runs = measured(tmp_path, [{"a": 0.9, "b": 0.91}], ensemble=ensemble)
    record = records_of(row(tasks={"all": Goal(above_members=True)}), runs, runs, runs)[-1]
    assert (record["task"], record["mean"], record["missed"]) == ("all", test, missed)
    assert (record["density"], record["dense"], record["forgetting"]) == (pytest.approx(0.2), None, None)


def test_dense_scores_from_another_row_use_the_task_with_the_same_data(tmp_path):
    mine = measured(tmp_path / "1", [{"a_0": 0.8}])
    other = measured(tmp_path / "2", [{"a": {"test": 0.1, "dense": 0.9}}, {"a": {"test": 0.1, "dense": 0.7}}])
    (record,) = records_of(row(dense_of="2", tasks={"a_0": Goal(dense_as="a")}), mine, mine, other)
    assert (record["mean"], record["dense"], record["dense_seeds"]) == (0.8, pytest.approx(0.8), 2)


def test_baselines_from_another_row_stand_beside_a_rows_scores(tmp_path):
    mine = measured(tmp_path / "1", [{"a": 0.8}])
    scores = {"test": 0.1, "dense": 0.9, "joint": 0.7, "finetune": 0.3}
    other = measured(tmp_path / "2", [{"a": scores}])
    (record,) = records_of(row(baselines_of="2"), mine, other, other)
    assert [record[name] for name in ("mean", "dense", "joint", "finetune")] == [0.8, 0.9, 0.7, 0.3]
    assert "Baselines: from row 2." in results_document.caption(row(baselines_of="2"), [record], mine)


def test_the_first_stages_of_a_run_equal_a_shorter_run(tmp_path):
    tasks = {
        "a": {"test": 0.7, "dense": 0.9, "joint": 0.5, "stage": 0},
        "b": {"test": 0.8, "dense": 0.8, "joint": 0.5, "stage": 1},
        "c": {"test": 0.6, "dense": 0.7, "joint": 0.5, "stage": 2},
    }
    matrix = [[0.75, None, None], [0.75, 0.85, None], [0.7, 0.8, 0.6]]
    finetune = {"matrix": [[0.9, None, None], [0.2, 0.9, None], [0.1, 0.1, 0.9]], "forgetting": 0.8, "bwt": -0.8}
    write_run(tmp_path, tasks, matrix=matrix, finetune=finetune, curriculum=[["a"], ["b"], ["c"]])
    cut = beginning_of(read_run(tmp_path), ["a", "b"])
    assert cut.results.curriculum == [["a"], ["b"]]
    assert cut.results.matrix == [[0.75, None], [0.75, 0.85]]
    found = {name: (task.test, task.dense, task.joint, task.finetune) for name, task in cut.results.tasks.items()}
    assert found == {"a": (0.75, 0.9, None, 0.2), "b": (0.85, 0.8, None, 0.9)}
    assert cut.results.forgetting == 0.0
    assert cut.results.finetune["forgetting"] == pytest.approx(0.7)
    assert list(cut.epochs) == ["a", "b"]


def test_networks_with_different_sizes_are_not_compared(tmp_path):
    mine = measured(tmp_path / "1", [{"a": 0.8}])
    other = measured(tmp_path / "2", [{"a": 0.8}], capacity={"prunable": 7})
    with pytest.raises(ValueError, match=r"networks of \[7, 1000\] weights"):
        records_of(row(), mine, mine, other)


def test_a_run_counts_after_all_stages_and_ensembles(tmp_path):
    write_run(tmp_path, {"a": {"test": 0.5}}, matrix=[])
    assert read_run(tmp_path) is None
    write_run(tmp_path, {"a": {"test": 0.5}}, config={"ensembles": {"all": ["a"]}})
    assert read_run(tmp_path) is None
    assert read_run(tmp_path / "none") is None


# ---- rows that are the beginning of another


def test_a_row_may_be_the_beginning_of_another():
    other = sequential("4", seeds=[0, 1])
    part = sequential("1", "tasks=[iris]", part_of="4", seeds=[0, 1], baselines={"joint": [0]})
    check_part(part, other)
    names = [step.name for step in reproduce.plan([part, other], None, Path())]
    assert names == ["row 1, seed 0", "row 4, seed 0", "row 4, seed 1"]


@pytest.mark.parametrize(
    ("overrides", "settings", "message"),
    [
        (["tasks=[wine]"], {}, "curriculum is "),
        (["tasks=[iris]", "pruning.density=0.5"], {}, r"pruning\.density is 0\.5 in row 1 and 0\.1 in row 4"),
        (["tasks=[iris]", "tasks.iris.batch_size=3"], {}, r"tasks\.iris\.batch_size is 3"),
        (["tasks=[iris]"], {"seeds": [0, 1]}, r"seeds is \[0, 1\] in row 1 and \[0\] in row 4"),
    ],
)
def test_a_row_is_not_the_beginning_of_one_with_other_settings(overrides, settings, message):
    with pytest.raises(ValueError, match=message):
        check_part(sequential("1", *overrides, **settings), sequential("4"))


# ---- documents


@pytest.fixture
def trusting(monkeypatch):
    """Runs on disk count as those of the rows' settings."""
    for module in (reproduce, recording):
        monkeypatch.setattr(module, "state_of", lambda step: OnDisk("finished"))


def test_the_documents_hold_the_runs_scores_and_keep_text_by_hand(tmp_path, trusting):
    goals = {"a": Goal(authors=0.7, target=0.9)}
    rows = {"1": row("1", tasks=goals, note="What was tried."), "two": row("two", seeds=[0])}
    docs = tmp_path / "docs"
    measured(tmp_path / "runs" / "1", [{"a": 0.8, "b": 0.6}])
    reproduce.document(rows, tmp_path / "runs", docs, tmp_path / "records")
    text = (docs / "results.md").read_text()
    assert "## Row 1: Two tasks\n" in text
    assert "| a | accuracy ↑ | 0.8000 | – | 0.7000 | 0.9000 | – | – | – | 0.100 | 0 | 10 | **no**: target |" in text
    assert "row two" not in text
    assert (docs / "figures" / "row_1.png").read_bytes().startswith(b"\x89PNG")

    (docs / "results.md").write_text(text + "\nBy hand.\n")
    measured(tmp_path / "runs" / "1", [{"a": 0.8, "b": 0.6}, {"a": 1.0, "b": 0.6}])
    measured(tmp_path / "runs" / "two", [{"c": 0.5}])
    reproduce.document(rows, tmp_path / "runs", docs, tmp_path / "records")
    text = (docs / "results.md").read_text()
    assert "| a | accuracy ↑ | 0.9000 | 0.1414 | 0.7000 | 0.9000 | – | – | – | 0.100 | 0 | 10 | yes |" in text
    assert "`+experiment=fake`, seeds 0, 1; 3 epochs per stage." in text
    assert text.count(" What was tried.\n") == 1
    assert "\nBy hand.\n" in text
    assert text.count("## ") == 2
    assert [record["task"] for record in json.loads((docs / "results.json").read_text())] == ["a", "b", "c"]


def test_a_row_without_runs_keeps_its_records_and_section(tmp_path, trusting):
    docs = tmp_path / "docs"
    measured(tmp_path / "runs" / "1", [{"a": 0.8}])
    measured(tmp_path / "other" / "two", [{"c": 0.5}])
    rows = {"1": row("1"), "two": row("two")}
    reproduce.document(rows, tmp_path / "runs", docs, tmp_path / "records")
    shutil.rmtree(tmp_path / "records")
    reproduce.document(rows, tmp_path / "other", docs, tmp_path / "records")
    assert [record["row"] for record in json.loads((docs / "results.json").read_text())] == ["1", "two"]
    assert "<!-- table: row 1 -->" in (docs / "results.md").read_text()


def test_a_row_may_combine_runs_from_several_machines(tmp_path, trusting, monkeypatch):
    docs, rows = tmp_path / "docs", {"1": row("1")}
    for seed, score in enumerate((0.8, 0.6)):
        monkeypatch.setattr(recording, "processor", lambda seed=seed: f"processor {seed}")
        write_run(tmp_path / f"machine-{seed}" / "1" / f"seed-{seed}", {"a": {"test": score}})
        reproduce.document(rows, tmp_path / f"machine-{seed}", docs, tmp_path / "records")
    (record,) = json.loads((docs / "results.json").read_text())
    assert (record["mean"], record["seeds"]) == (pytest.approx(0.7), 2)
    assert "CPU threads: 1, on processor 0 or processor 1." in (docs / "results.md").read_text()


def test_runs_with_other_settings_are_not_documented(tmp_path, monkeypatch):
    states = {0: "other", 1: "finished"}
    monkeypatch.setattr(reproduce, "state_of", lambda step: OnDisk(states[int(step.folder.name[-1])]))
    measured(tmp_path / "1", [{"a": 0.8}, {"a": 0.6}])
    assert list(reproduce.measured(row("1"), {}, tmp_path)) == [1]


def test_with_many_tasks_the_table_has_mean_lowest_highest_and_missed(tmp_path):
    scores = {f"t_{i}": 0.9 - 0.01 * i for i in range(8)}
    runs = measured(tmp_path, [scores])
    records = records_of(row(mean=Goal(), tasks={"t_3": Goal(target=0.99)}), runs, runs, runs)
    lines = results_document._lines(records)
    assert [line["task"] for line in lines] == ["mean of 8 tasks", "lowest: t_7", "highest: t_0", "t_3"]
    assert len(records) == 9


@pytest.mark.parametrize("finetune", [None, 0.3])
def test_a_figure_with_many_tasks_is_wider_if_it_shows_forgetting(tmp_path, finetune):
    runs = measured(tmp_path, [{f"t_{i}": {"test": 0.9, "dense": 0.9, "finetune": finetune} for i in range(8)}])
    figures.draw(records_of(row(), runs, runs, runs), "many", tmp_path / "many.png")
    width = int.from_bytes((tmp_path / "many.png").read_bytes()[16:20], "big")
    assert width == 120 * (6 if finetune is None else 10)


def test_the_caption_counts_seeds_and_comparisons(tmp_path):
    scores = [{"a": {"test": 0.8, "dense": 0.9, "joint": 0.5}}, {"a": {"test": 0.9, "dense": 0.7}}]
    runs = measured(tmp_path, scores, guarantee={"checked": 3, "violations": 1})
    mine = row(source="somebody")
    said = results_document.caption(mine, records_of(mine, runs, runs, runs), runs)
    assert "joint: 1 seed." in said
    assert "dense" not in said
    assert "Frozen tasks compared bitwise: 6 times, 2 changed." in said
    assert "Authors: somebody." in said


@pytest.mark.parametrize(("name", "head"), [("results", results_document.HEAD), ("attempts", attempts.HEAD)])
def test_the_project_s_documents_begin_with_the_head_of_their_generator(name, head):
    assert (ROOT / "docs" / f"{name}.md").read_text().startswith(head)


@pytest.mark.parametrize("arguments", [["--rows", "1,99"], ["--jobs", "0"], ["--threads", "x"], ["--seeds", "a"]])
def test_bad_arguments_are_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        reproduce.parse(arguments, {"1": row("1")})
    assert arguments[0] in capsys.readouterr().err


def test_only_the_quick_rows_run_without_all():
    rows = {"1": row("1"), "2": row("2", group="all")}
    assert [reproduce.parse(given, rows).rows for given in ([], ["--all"], ["--rows", "2"])] == [
        ["1"],
        ["1", "2"],
        ["2"],
    ]
