"""Jobs of a sweep, composed as real ones are, and done by a launcher that only writes what they would leave."""

import sys
from concurrent.futures import BrokenExecutor
from copy import deepcopy
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from omegaconf import OmegaConf

from fakes import write_run
from messages import says
from msh.cli.configs import config_folder
from msh.cli.jobs import Jobs
from msh.runs.results import UNFINISHED
from msh.training.config import register

SWEPT = ["pruning.density=0.1", "pruning.density=0.2", "pruning.density=0.3"]


class FakeLauncher:
    """Ends jobs well, but for those whose density `acts` gives another end: "fail", "stop", "kill"
    or "kill once"."""

    def __init__(self, compose):
        self.compose, self.acts, self.launched, self.error = compose, {}, [], BrokenExecutor

    def launch(self, job_overrides, initial_job_idx):
        self.launched.append([list(overrides) for overrides in job_overrides])
        return [self.do(overrides) for overrides in job_overrides]

    def do(self, overrides):
        given = dict(override.split("=", 1) for override in overrides)
        folder = Path(given["hydra.sweep.dir"].strip("'"), given["hydra.sweep.subdir"].strip("'"))
        saved = OmegaConf.to_container(self.compose([o for o in overrides if not o.startswith(("hydra.", "resume="))]))
        del saved["hydra"]
        act = self.acts.get(saved["pruning"]["density"])
        if act == "kill once":
            del self.acts[saved["pruning"]["density"]]
            act = "kill"
        status = {"stop": "running", "kill": "running"}.get(act, "finished")
        write_run(folder, {"wine": {"test": 0.7, "val": 0.8}}, config=saved, overrides=overrides, status=status)
        if act == "fail":
            (folder / "results.json").unlink()
        (folder / UNFINISHED).unlink(missing_ok=True)
        if act in ("fail", "kill"):
            (folder / UNFINISHED).write_text("it broke")
        if act == "kill":
            raise self.error("a worker was killed")
        result = JobReturn(overrides=overrides, status=JobStatus.FAILED if act == "fail" else JobStatus.COMPLETED)
        result.return_value = ValueError("it broke") if act == "fail" else 0.8
        return result


@pytest.fixture(scope="module")
def composed():
    """What Hydra composes of a sweep's overrides (those of Hydra's own among them) and a job's, each once."""
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_folder(), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()

        @cache
        def load(*overrides):
            return loader.load_configuration("config", list(overrides), run_mode=RunMode.MULTIRUN)

        @cache
        def load_job(overrides, job):
            return loader.load_sweep_config(load(*overrides), list(job))

        yield lambda overrides, job=None: deepcopy(load(*overrides) if job is None else load_job(overrides, tuple(job)))


@pytest.fixture
def sweep(composed, tmp_path, monkeypatch):
    """Makes (jobs, launcher) of the sweep in one folder, as a command with these overrides would."""
    monkeypatch.chdir(tmp_path)

    def make(*overrides):
        given = ("tasks=wine", "objective=wine.val", "hydra.sweep.dir=sweep", *overrides)
        context = SimpleNamespace(load_sweep_config=lambda config, job: composed(given, job))
        launcher = FakeLauncher(lambda job: composed(given, job))
        return Jobs(composed(given), SimpleNamespace(config_loader=context), launcher), launcher

    return make


def batch(*changes):
    return [["tasks=wine", "objective=wine.val", change] for change in changes]


def launched(launcher, number=-1):
    """Density to folder, of the jobs of a launch."""
    return {
        next(o for o in overrides if o.startswith("pruning.density")).partition("=")[2]: next(
            o for o in overrides if o.startswith("hydra.sweep.subdir")
        )
        .partition("=")[2]
        .strip("'")
        for overrides in (launcher.launched[number] if launcher.launched else [])
    }


def test_a_job_that_fails_does_not_keep_the_others_from_being_done(sweep):
    jobs, launcher = sweep()
    launcher.acts = {0.2: "fail"}
    assert [outcome.values for outcome in jobs.run(batch(*SWEPT))] == [(0.8,), None, (0.8,)]
    assert launched(launcher) == {"0.1": "0", "0.2": "1", "0.3": "2"}


def test_again_finished_jobs_are_left_and_failed_and_stopped_ones_are_done_where_they_were(sweep):
    jobs, launcher = sweep()
    launcher.acts = {0.2: "fail", 0.3: "stop"}
    jobs.run(batch(*SWEPT))
    jobs, launcher = sweep("skip_finished=true")
    outcomes = jobs.run(batch("pruning.density=0.05", *SWEPT))
    assert launched(launcher) == {"0.05": "3", "0.2": "1", "0.3": "2"}
    assert [(outcome.folder.name, outcome.values) for outcome in outcomes] == [
        ("3", (0.8,)),
        ("0", (0.8,)),
        ("1", (0.8,)),
        ("2", (0.8,)),
    ]


def test_a_finished_job_is_found_whatever_place_and_incidental_settings_it_has_now(sweep):
    jobs, _ = sweep()
    jobs.run(batch(*SWEPT))
    jobs, launcher = sweep("skip_finished=true", "logger=none")
    assert [o.folder.name for o in jobs.run([[*job, "logger=none"] for job in batch(*reversed(SWEPT))])] == list("210")
    assert launcher.launched == []
    jobs.run(batch("seed=1"))
    assert len(launcher.launched) == 1


def test_jobs_that_are_the_same_are_done_once(sweep):
    jobs, launcher = sweep()
    outcomes = jobs.run(batch("pruning.density=0.1", "pruning.density=0.10"))
    assert [outcome.folder.name for outcome in outcomes] == ["0", "0"]
    assert len(launcher.launched[0]) == 1
    jobs.run(batch("pruning.density=0.1"))
    assert len(launcher.launched) == 1


def test_where_a_process_is_killed_the_jobs_not_begun_are_launched_again_and_then_the_one_that_was(sweep):
    jobs, launcher = sweep()
    launcher.acts = {0.2: "kill"}
    assert [outcome.values for outcome in jobs.run(batch(*SWEPT))] == [(0.8,), None, (0.8,)]
    assert launched(launcher, 1) == {"0.3": "2"}
    assert launched(launcher) == {"0.2": "1"}
    assert len(launcher.launched) == 3


def test_a_job_whose_process_was_killed_once_goes_on(sweep):
    jobs, launcher = sweep()
    launcher.acts = {0.2: "kill once"}
    assert [outcome.values for outcome in jobs.run(batch(*SWEPT))] == [(0.8,)] * 3
    assert launched(launcher) == {"0.2": "1"}


@pytest.fixture
def ray(monkeypatch):
    """A module with Ray's errors."""
    exceptions = SimpleNamespace(RayError=type("RayError", (Exception,), {}))
    exceptions.RayTaskError = type("RayTaskError", (exceptions.RayError,), {})
    exceptions.WorkerCrashedError = type("WorkerCrashedError", (exceptions.RayError,), {})
    stopped = []
    ray = SimpleNamespace(exceptions=exceptions, shutdown=lambda: stopped.append(True), stopped=stopped)
    monkeypatch.setitem(sys.modules, "ray", ray)
    return ray


def test_where_ray_gives_up_a_job_its_other_jobs_are_stopped_before_any_is_launched_again(sweep, ray):
    jobs, launcher = sweep()
    launcher.acts, launcher.error = {0.2: "kill once"}, ray.exceptions.WorkerCrashedError
    assert [outcome.values for outcome in jobs.run(batch(*SWEPT))] == [(0.8,)] * 3
    assert launched(launcher) == {"0.2": "1"}
    assert ray.stopped == [True]


def test_an_error_of_a_ray_task_itself_ends_the_sweep(sweep, ray):
    jobs, launcher = sweep()
    launcher.acts, launcher.error = {0.2: "kill"}, ray.exceptions.RayTaskError
    with pytest.raises(ray.exceptions.RayTaskError):
        jobs.run(batch(*SWEPT))
    assert ray.stopped == []


def test_a_damaged_job_gets_another_folder(sweep, tmp_path):
    jobs, _ = sweep()
    jobs.run(batch(*SWEPT))
    (tmp_path / "sweep" / "1" / "results.json").write_text("{")
    jobs, launcher = sweep("skip_finished=true")
    jobs.run(batch(*SWEPT))
    assert launched(launcher) == {"0.2": "3"}


def test_folders_are_named_as_the_user_wants_but_never_twice(sweep):
    jobs, launcher = sweep("hydra.sweep.subdir=density_${pruning.density}")
    jobs.run(batch(*SWEPT[:2]))
    assert list(launched(launcher).values()) == ["density_0.1", "density_0.2"]
    with pytest.raises(ValueError, match=r"'density_0\.1' is the folder of another job"):
        jobs.run([[*batch(SWEPT[0])[0], "seed=1"]])
    assert len(launcher.launched) == 1


def test_a_folder_that_has_jobs_is_refused_unless_the_sweep_is_to_go_on(sweep):
    jobs, _ = sweep()
    jobs.run(batch(SWEPT[0]))
    with pytest.raises(ValueError, match="has 1 jobs already: skip_finished=true"):
        sweep()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("objective=wine.f1", says("objective", value="wine.f1")),
        ("objective=[wine.val,wine.val]", "names 'wine.val' more than once"),
        ("+pruning.densty=1", "there is no setting pruning.densty"),
    ],
)
def test_what_is_not_allowed_is_an_error_before_the_first_job(change, message, sweep):
    jobs, launcher = sweep()
    with pytest.raises(ValueError, match=message):
        jobs.run([*batch(SWEPT[0]), ["tasks=wine", change]])
    assert launcher.launched == []
