"""Searches: Hydra's grammar in Optuna's terms, trials that follow from the seed, studies that continue."""

from types import SimpleNamespace

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from messages import says
from msh.cli.search import read_directions, read_distribution, search

SETTINGS = {"n_trials": 4, "n_jobs": 1, "n_startup_trials": 2, "seed": 3, "directions": None, "storage": None}


def parse(*overrides):
    return {override.key_or_group: override for override in OverridesParser.create().parse_overrides(list(overrides))}


@pytest.mark.parametrize(
    ("written", "distribution"),
    [
        ("interval(0.02,0.3)", FloatDistribution(0.02, 0.3)),
        ("interval(1,3)", FloatDistribution(1.0, 3.0)),
        ("tag(log,interval(0.001,0.1))", FloatDistribution(0.001, 0.1, log=True)),
        ("int(interval(1,9))", IntDistribution(1, 9)),
        ("tag(int,log,interval(1,64))", IntDistribution(1, 64, log=True)),
        ("range(2,9,3)", IntDistribution(2, 8, step=3)),
        ("range(9,1,-4)", IntDistribution(5, 9, step=4)),
        ("range(0.1,0.5,0.1)", FloatDistribution(0.1, 0.4, step=0.1)),
        ("choice(a,2,[1,2])", CategoricalDistribution(["a", "2", "[1,2]"])),
        ("a,b,a", CategoricalDistribution(["a", "b"])),
    ],
)
def test_hydras_grammar_is_translated(written, distribution):
    assert read_distribution(parse(f"x={written}")["x"]) == distribution


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("interval(0.3,0.2)", r"x=interval\(0\.3,0\.2\) cannot be searched: .*low"),
        ("tag(log,interval(0,1))", "cannot be searched: .*low"),
        ("range(3,3)", "cannot be searched"),
        (
            "tag(logarithmic,interval(1,2))",
            says("the tag of x=tag(logarithmic,interval(1,2))", "one of log, int", "logarithmic"),
        ),
    ],
)
def test_an_impossible_space_is_named(written, message):
    with pytest.raises(ValueError, match=message):
        read_distribution(parse(f"x={written}")["x"])


def test_directions_are_known_or_given():
    assert read_directions(["mean_score", "density"], None) == {"mean_score": "maximize", "density": "minimize"}
    assert read_directions("wine.val", ["maximize"]) == {"wine.val": "maximize"}


@pytest.mark.parametrize(
    ("objective", "directions", "message"),
    [
        (None, None, "a search needs an objective, such as objective=mean_score"),
        (
            "wine.test",
            ["maximize"],
            says("objective", "wine.val in a search: the test split chooses nothing", "wine.test"),
        ),
        ("wine.val", None, r"'wine\.val' needs a direction: .*hydra\.sweeper\.directions"),
        ("wine.val", ["up"], says("hydra.sweeper.directions", "one of maximize, minimize", "up")),
        (["wine.val", "density"], ["maximize"], says("hydra.sweeper.directions", value=["maximize"])),
    ],
)
def test_an_objective_that_cannot_be_searched_is_named(objective, directions, message):
    with pytest.raises(ValueError, match=message):
        read_directions(objective, directions)


# ---- trials, with jobs that only compute


class FakeJobs:
    """Jobs that return (x - 2) ** 2, and fail where y is "bad"."""

    def __init__(self, folder, stop_after=99, **config):
        self.folder, self.done, self.stop_after = folder, [], stop_after
        self.config = OmegaConf.create({"objective": "seconds", "seed": 0} | config)

    def compose(self, overrides):
        return OmegaConf.from_dotlist(list(overrides))

    def run(self, batch):
        if len(self.done) == self.stop_after:
            raise KeyboardInterrupt
        self.done += batch
        configs = [self.compose(overrides) for overrides in batch]
        return [SimpleNamespace(values=None if c.get("y") == "bad" else ((c.x - 2) ** 2,)) for c in configs]


def study_of(folder):
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / "study.log")))
    return optuna.load_study(study_name="search", storage=storage)


def do(jobs, *overrides, **settings):
    return search(SimpleNamespace(**SETTINGS | settings), parse("z=1", *(overrides or ["x=interval(-3,3)"])), jobs)


def test_an_interrupted_search_continues_with_the_trials_of_an_undisturbed_one(tmp_path):
    undisturbed = FakeJobs(tmp_path / "a")
    do(undisturbed, n_trials=6)
    assert all(job[0] == "z=1" for job in undisturbed.done)
    stopped = FakeJobs(tmp_path / "b", stop_after=3)
    with pytest.raises(KeyboardInterrupt):
        do(stopped, n_trials=6)
    assert study_of(tmp_path / "b").trials[-1].state == TrialState.RUNNING
    resumed = FakeJobs(tmp_path / "b")
    do(resumed, n_trials=6)
    assert stopped.done + resumed.done == undisturbed.done
    assert [t.values for t in study_of(tmp_path / "b").trials] == [t.values for t in study_of(tmp_path / "a").trials]
    more = FakeJobs(tmp_path / "b")
    do(more, n_trials=8)
    assert len(more.done) == 2


def test_trials_depend_on_the_seed_and_learn_after_the_first(tmp_path):
    jobs = [FakeJobs(tmp_path / str(seed)) for seed in (3, 4)]
    for seed, found in zip((3, 4), jobs, strict=True):
        do(found, seed=seed)
    assert jobs[0].done != jobs[1].done
    long = FakeJobs(tmp_path / "long")
    do(long, n_trials=40)
    tried = [float(job[1].partition("=")[2]) for job in long.done]
    assert sum(abs(x - 2) for x in tried[30:]) < 0.5 * sum(abs(x - 2) for x in tried[:10])


def test_trials_that_fail_are_marked_and_count(tmp_path):
    jobs = FakeJobs(tmp_path)
    outcomes = do(jobs, "x=1,2", "y=bad", n_trials=3)
    assert len(outcomes) == len(jobs.done) == 3
    assert {trial.state for trial in study_of(tmp_path).trials} == {TrialState.FAIL}


def test_n_jobs_trials_are_launched_at_a_time(tmp_path):
    jobs, sizes = FakeJobs(tmp_path), []
    run = jobs.run
    jobs.run = lambda batch: sizes.append(len(batch)) or run(batch)
    do(jobs, n_trials=5, n_jobs=2)
    assert sizes == [2, 2, 1]


@pytest.mark.parametrize(
    ("change", "overrides", "key"),
    [
        ({"seed": 1}, (), "seed = 0, not 1"),
        ({}, ("x=interval(-3,5)",), r"search\.params\.x"),
        ({"objective": "density"}, (), r"search\.objectives\.density"),
    ],
)
def test_a_study_of_other_settings_is_refused(change, overrides, key, tmp_path):
    do(FakeJobs(tmp_path))
    with pytest.raises(ValueError, match=f"has a search with {key}"):
        do(FakeJobs(tmp_path, **change), *overrides)
    do(FakeJobs(tmp_path, logger="other"))


def test_no_trials_and_nothing_to_try_are_errors(tmp_path):
    with pytest.raises(ValueError, match=says("hydra.sweeper.n_trials", ">= 1", 0)):
        do(FakeJobs(tmp_path), n_trials=0)
    with pytest.raises(ValueError, match="a search needs something to try"):
        do(FakeJobs(tmp_path), "x=1")
