"""Train a plan's tasks in separate jobs and merge them; add tasks to a merged network, split and release them."""

import importlib.util
import json
import logging
import re

import pytest
import torch
from forking import run
from running import SMALL, few_steps, here

from msh.cli import app, evaluate, plan, train
from msh.files.plans import read_plan
from msh.files.state_file import open_safetensors, read_state
from msh.subnetworks.blocks import is_in_blocks
from msh.training.run import Run

TASKS = ["digits", "breast_cancer", "wine", "diabetes"]
COMMON = ["+experiment=sequential", "pruning=at_init", "trainer.max_epochs=2", "logger=none", *SMALL]


FOUR = [*COMMON, *few_steps(*TASKS)]
TWO = [*COMMON, "tasks=[wine,iris]", *few_steps("wine", "iris")]


def scores(folder):
    return {task: row["test"] for task, row in json.loads((folder / "results.json").read_text())["tasks"].items()}


def tensors(path):
    return open_safetensors(path)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make a folder with a plan, four jobs that follow it, their merged network, and a run of all tasks."""
    folder = tmp_path_factory.mktemp("apart")
    here(plan.main, *FOUR, "-o", "plan", cwd=folder)
    assert [path.name for path in folder.iterdir()] == ["plan"]
    jobs = [f"task={','.join(TASKS)}", "hydra.sweep.dir=jobs", "hydra.sweep.subdir=${task}"]
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.launcher.backend=multiprocessing"]
    run("train.py", "-m", *FOUR, "plan=plan", *jobs, *launcher, cwd=folder)
    here(train.main, *FOUR, "plan=plan", "hydra.run.dir=together", cwd=folder)
    files = [f"jobs/{task}/subnetworks/{task}.safetensors" for task in reversed(TASKS)]
    files[0] = f"jobs/{TASKS[-1]}"  # a run folder, for its subnetworks
    here(app.main, "merge", "plan", *files, "-o", "merged", cwd=folder)
    return folder


def test_separate_jobs_merge_into_the_file_that_a_run_of_all_tasks_writes(folder):
    assert (folder / "merged").read_bytes() == (folder / "together" / "network.safetensors").read_bytes()
    for task in TASKS:
        separate = folder / "jobs" / task / "subnetworks" / f"{task}.safetensors"
        assert separate.read_bytes() == (folder / "together" / "subnetworks" / separate.name).read_bytes()
        assert scores(folder / "jobs" / task) == {task: scores(folder / "together")[task]}
        for network in ("merged", "together"):  # a file, a run folder
            here(app.main, "split", network, task, "-o", "split", cwd=folder)
            assert (folder / "split").read_bytes() == separate.read_bytes()


@pytest.mark.parametrize(
    ("plugin", "launcher"),
    [
        ("hydra_ray_launcher", ["hydra/launcher=ray"]),
        ("hydra_submitit_launcher", ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10"]),
    ],
)
def test_jobs_with_other_launchers_write_the_same_files(plugin, launcher, folder, tmp_path):
    if importlib.util.find_spec(f"hydra_plugins.{plugin}") is None:
        pytest.skip(f"{plugin} is not installed")
    jobs = ["task=wine,diabetes", f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=${task}"]
    run("train.py", "-m", *FOUR, "plan=plan", *jobs, *launcher, cwd=folder)
    for task in ("wine", "diabetes"):
        separate = tmp_path / task / "subnetworks" / f"{task}.safetensors"
        assert separate.read_bytes() == (folder / "jobs" / task / "subnetworks" / separate.name).read_bytes()


def test_a_job_is_evaluated_again_with_only_its_data(folder):
    here(evaluate.main, "run=jobs/wine", cwd=folder)
    rows = json.loads((folder / "jobs" / "wine" / "evaluation.json").read_text())
    assert {row["task"]: row["score"] for row in rows} == scores(folder / "jobs" / "wine")


def test_a_plan_equals_the_allocation_of_a_sequential_run_at_initialisation(folder):
    here(train.main, *FOUR, "trainer.max_epochs=1", "hydra.run.dir=usual", cwd=folder)
    planned = read_plan(folder / "plan")
    for task in TASKS:
        owned = read_state(folder / "usual" / "subnetworks" / f"{task}.safetensors", "subnetwork").state.owned(task)
        assert all(torch.equal(owned[name], mask) for name, mask in planned.state.owned(task).items())
    with_weights = sum(tensors(folder / "usual" / "network.safetensors")[f"values.{name}"].nbytes for name in owned)
    assert sum(tensor.nbytes for tensor in tensors(folder / "plan").values()) < with_weights


@pytest.fixture
def grown(folder, tmp_path):
    """(run folder of an additional task in the merged network, its overrides)."""
    overrides = [*FOUR, f"tasks=[iris,{','.join(TASKS)}]", *few_steps("iris"), "network=merged"]
    overrides.append(f"hydra.run.dir={tmp_path / 'grown'}")
    here(train.main, *overrides, "reuse=all", cwd=folder)
    return tmp_path / "grown", [*overrides, "reuse=all"]


def test_a_merged_network_is_evaluated_and_takes_an_additional_task(folder, grown, tmp_path, capsys):
    results = json.loads((grown[0] / "results.json").read_text())
    assert results["curriculum"] == [TASKS, ["iris"]]
    assert results["guarantee"] == {"checked": 4, "violations": 0}
    assert results["forgetting"] == 0.0
    assert results["tasks"]["iris"]["weights_reused"] == sum(results["tasks"][task]["weights"] for task in TASKS)
    together = scores(folder / "together")
    assert {task: score for task, score in scores(grown[0]).items() if task != "iris"} == together
    here(evaluate.main, f"run={grown[0]}", cwd=folder)
    network = grown[0] / "network.safetensors"
    with pytest.raises(SystemExit):
        here(app.main, "release", network, "wine", "-o", tmp_path / "less", cwd=folder)
    assert "task 'wine' cannot be released: 'iris' read its weights" in capsys.readouterr().err
    here(app.main, "release", network, "iris", "-o", tmp_path / "less", cwd=folder)
    remaining, merged = tensors(tmp_path / "less"), tensors(folder / "merged")
    assert remaining.keys() == merged.keys()
    assert all(torch.equal(remaining[key], merged[key]) for key in remaining)


def test_a_stopped_run_from_a_network_resumes_to_the_same_end(folder, grown, tmp_path, monkeypatch):
    def stop(*_):
        raise RuntimeError("stopped")

    again = [*grown[1], f"hydra.run.dir={tmp_path / 'again'}"]
    with monkeypatch.context() as patch:
        patch.setattr(Run, "_do_fit", stop)
        with pytest.raises(SystemExit):
            here(train.main, *again, cwd=folder)
    here(train.main, f"resume={tmp_path / 'again'}", cwd=folder)
    ends = [run_folder / "network.safetensors" for run_folder in (grown[0], tmp_path / "again")]
    assert ends[0].read_bytes() == ends[1].read_bytes()


def test_a_plan_by_gradients_for_whole_units_is_followed(tmp_path):
    how = [*TWO, "trainer.max_epochs=1", "pruning.criterion=weight_gradient"]
    how += ["pruning.granularity=unit", "pruning.density=0.05"]
    here(plan.main, *how, "-o", "plan", cwd=tmp_path)
    here(train.main, *how, "plan=plan", "task=iris", "hydra.run.dir=apart", cwd=tmp_path)
    here(train.main, *how, "hydra.run.dir=usual", cwd=tmp_path)
    planned = read_plan(tmp_path / "plan")
    for run_folder, task in (("usual", "wine"), ("usual", "iris"), ("apart", "iris")):
        owned = read_state(tmp_path / run_folder / "subnetworks" / f"{task}.safetensors", "subnetwork").state.owned(
            task
        )
        assert all(torch.equal(owned[name], mask) for name, mask in planned.state.owned(task).items())
        rows = owned["layers.3.weight"].any(1)
        assert 0 < int(rows.sum()) < 32
        assert torch.equal(owned["layers.3.weight"].sum(1)[rows].unique(), owned["layers.1.weight"].any(1).sum()[None])


def test_a_plan_of_blocks_is_followed(tmp_path):
    how = [*TWO, "trainer.max_epochs=1", "pruning.granularity=block", "pruning.density=0.25"]
    here(plan.main, *how, "pruning.block_size=4", "-o", "plan", cwd=tmp_path)
    planned = read_plan(tmp_path / "plan").state
    for task in ("wine", "iris"):
        alone = ["plan=plan", f"task={task}", f"hydra.run.dir={task}"]
        here(train.main, *how, "pruning.block_size=4", *alone, cwd=tmp_path)
    here(app.main, "merge", "plan", "wine", "iris", "-o", "merged", cwd=tmp_path)
    merged = read_state(tmp_path / "merged", "network").state
    for task in ("wine", "iris"):
        assert merged.task(task).blocks == planned.task(task).blocks == {f"layers.{n}.weight": (4, 4) for n in (1, 3)}
        for name, mask in planned.owned(task).items():
            assert torch.equal(merged.owned(task)[name], mask)
            assert is_in_blocks(mask, (4, 4))
    with pytest.raises(SystemExit):
        here(train.main, *how, "pruning.block_size=8", "plan=plan", "task=iris", cwd=tmp_path)


def test_a_plan_of_n_of_m_weights_is_followed(tmp_path):
    how = [*TWO, "trainer.max_epochs=1", "pruning=nm", "pruning.begin=0", "pruning.end=0"]
    how += ["pruning.rounds=1"]
    here(plan.main, *how, "-o", "plan", cwd=tmp_path)
    planned = read_plan(tmp_path / "plan").state
    assert planned.total().free == 0
    for task in ("wine", "iris"):
        here(train.main, *how, "plan=plan", f"task={task}", f"hydra.run.dir={task}", cwd=tmp_path)
    here(app.main, "merge", "plan", "wine", "iris", "-o", "merged", cwd=tmp_path)
    merged = read_state(tmp_path / "merged", "network").state
    for task in ("wine", "iris"):
        assert merged.task(task).granularity == "nm"
        for name, mask in planned.owned(task).items():
            assert torch.equal(merged.owned(task)[name], mask)
            if mask.shape[1] % 4 == 0:
                assert bool((mask.unflatten(1, (-1, 4)).sum(2) == 2).all())
    with pytest.raises(SystemExit):
        here(train.main, *how, "pruning.nm=[1,2]", "plan=plan", "task=iris", cwd=tmp_path)


def test_a_plan_says_what_overlapping_units_cost(tmp_path, capsys):
    how = [*TWO, "pruning.criterion=weight_gradient", "pruning.granularity=unit"]
    how += ["pruning.density=0.45"]
    logging.getLogger("pytorch_lightning").setLevel(logging.INFO)  # as in a new process
    here(plan.main, *how, "-o", "plan", cwd=tmp_path)
    assert logging.getLogger("pytorch_lightning").level == logging.WARNING  # no notes on devices
    told = capsys.readouterr().out
    printed = re.findall(r"(\w+): ([\d,]+) weights, 45.0%; ([\d.]+)% of the dense network's FLOPs", told)
    assert [name for name, *_ in printed] == ["wine", "iris"]
    first, second = (float(share) for *_, share in printed)
    assert 45 < first < second
    here(train.main, *how, "plan=plan", "task=iris", "hydra.run.dir=apart", cwd=tmp_path)
    row = json.loads((tmp_path / "apart" / "results.json").read_text())["tasks"]["iris"]
    assert row["flops"] == pytest.approx(second / 100, abs=1e-3)
    with pytest.raises(SystemExit):
        here(plan.main, *how, "pruning.overlap=false", "-o", "none", cwd=tmp_path)
    assert "or let tasks share units with pruning.overlap=true" in capsys.readouterr().err


def test_a_plan_with_an_empty_layer_needs_allow_empty_layers(tmp_path, capsys):
    how = [*COMMON, "tasks=wine", *few_steps("wine"), "pruning.criterion=magnitude", "pruning.density=0.0005"]
    allowed = [*how, "pruning.allow_empty_layers=true"]

    def is_refused(main, *arguments):
        with pytest.raises(SystemExit):
            here(main, *arguments, cwd=tmp_path)
        return "no weight of layer 'layers.1.weight'" in capsys.readouterr().err

    assert is_refused(plan.main, *how, "-o", "plan")
    here(plan.main, *allowed, "-o", "plan", cwd=tmp_path)
    assert is_refused(train.main, *how, "plan=plan", "hydra.run.dir=run")
    here(train.main, *allowed, "plan=plan", "hydra.run.dir=run", cwd=tmp_path)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["task=wine"], ["task=wine needs plan=", r"tasks=\[wine\]"]),
        (["plan=plan", "task=wnie"], ["task must be one of .*, got 'wnie'", "did you mean 'wine'"]),
        (["plan=nowhere"], ["there is no file nowhere"]),
        (["plan=merged"], ["merged is not a plan file: a network file"]),
        (["plan=plan", "network=merged"], ["plan and network exclude each other"]),
        (
            ["plan=plan", "tasks=[wine,iris]"],
            ["plan has no task 'iris'", "digits, breast_cancer, wine, diabetes"],
        ),
        (["plan=plan", "pruning=gradual"], ["pruning.end must be 0 with a plan", "pruning=at_init"]),
        (["plan=plan", "reuse=all"], ["reuse must be 'none' with a plan"]),
        (["plan=plan", "seed=1"], ["plan was made with seed=0, .* 1"]),
        (["plan=plan", "pruning.density=0.05"], ["was made with pruning.density=0.1, .* 0.05"]),
        (["plan=plan", "backbone.width=33"], ["was made with backbone.width=32, .* 33"]),
        (["network=plan"], ["plan is not a network file: a plan file"]),
        (
            ["network=merged", "tasks=[wine,digits]", "retrain=iris"],
            ["retrain must be one of .*, got .iris."],
        ),
        (["network=merged", "seed=1"], ["seed must be 0, as in the network merged, got 1"]),
        (
            ["network=merged", f"tasks=[iris,{','.join(TASKS)}]", "pruning.density=0.7"],
            ["task 'iris' wants .* weights of layer .*, but only .* are free"],
        ),
    ],
)
def test_settings_that_do_not_fit_a_plan_or_network_are_refused(overrides, parts, folder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        here(train.main, *COMMON, *overrides, f"hydra.run.dir={tmp_path / 'run'}", cwd=folder)
    message = capsys.readouterr().err
    assert all(re.search(part, message) for part in parts), message
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "add -o PLAN"),
        (["-o", "p", "-m", "seed=1,2"], "leave out --multirun"),
        (["plan=plan", "-o", "p"], "plan must be null"),
        (["pruning=gradual", "-o", "p"], "pruning=at_init"),
        (["pruning.density=0.4", "-o", "p"], "task 'wine' wants"),
    ],
)
def test_plans_that_cannot_be_made_are_refused(arguments, part, folder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        here(plan.main, *COMMON, *arguments, cwd=tmp_path)
    assert part in capsys.readouterr().err
    assert not (tmp_path / "p").exists()
