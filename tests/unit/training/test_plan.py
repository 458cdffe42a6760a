"""The plan of a run: the curriculum, the fits of a stage, the pruning settings; and every way to get them wrong."""

import pytest
from omegaconf import OmegaConf

from msh.training.config import PruningConfig, TrainerConfig
from msh.training.plan import Gate, Pruning, Stage, check_gate, fits_of, read_baselines, read_curriculum, read_pruning

TASKS = ["digits", "wine", "iris"]


def stages(curriculum, tasks=TASKS, max_epochs=5):
    found = read_curriculum(OmegaConf.create({"c": curriculum}).c, tasks, max_epochs)
    return [(stage.index, stage.tasks, stage.max_epochs) for stage in found]


def test_without_a_curriculum_each_task_is_a_stage_in_order():
    assert stages(None) == [(0, ("digits",), 5), (1, ("wine",), 5), (2, ("iris",), 5)]


@pytest.mark.parametrize(
    "curriculum",
    [
        ["wine", "digits", "iris"],
        [["wine"], ["digits"], ["iris"]],
        [{"tasks": ["wine"]}, {"tasks": "digits"}, "iris"],
        ["wine", {"tasks": ["digits"], "max_epochs": 5}, ["iris"]],
    ],
)
def test_a_curriculum_may_be_written_in_several_ways(curriculum):
    assert stages(curriculum) == [(0, ("wine",), 5), (1, ("digits",), 5), (2, ("iris",), 5)]


def test_a_stage_may_have_epochs_of_its_own():
    assert stages(["wine", {"tasks": ["digits"], "max_epochs": 9}, "iris"])[1] == (1, ("digits",), 9)


def test_stages_may_have_several_tasks_in_any_mixture():
    assert stages([["wine", "iris"], "digits"]) == [(0, ("wine", "iris"), 5), (1, ("digits",), 5)]
    assert stages([{"tasks": TASKS, "max_epochs": 2}]) == [(0, tuple(TASKS), 2)]


def test_a_stage_may_have_loss_weights_and_an_end_of_epoch_of_its_own():
    entry = {"tasks": ["wine", "iris"], "loss_weights": {"iris": 2, "wine": 0.5}, "uneven": "shortest"}
    first, second = read_curriculum(OmegaConf.create({"c": [entry, "digits"]}).c, TASKS, 5, "cycle")
    assert (first.uneven, dict(first.loss_weights)) == ("shortest", {"iris": 2, "wine": 0.5})
    assert (second.uneven, second.loss_weights) == ("cycle", ())
    assert [fit.uneven for fit in fits_of(first, 2, make_pruning())] == ["shortest", "shortest"]


def test_more_tasks_than_owner_ids_are_refused():
    with pytest.raises(ValueError, match="tasks names 32767 tasks: a network has owner ids for 32766 at most"):
        stages(None, tasks=[f"task{i}" for i in range(2**15 - 1)])


@pytest.mark.parametrize(
    ("given", "expected"),
    [(None, []), ("joint", ["joint"]), (["joint", "dense", "joint"], ["dense", "joint"]), ([], [])],
)
def test_baselines_are_a_name_or_a_list(given, expected):
    assert read_baselines(OmegaConf.create({"b": given}).b) == expected


@pytest.mark.parametrize("given", ["fintune", ["dense", "fintune"]])
def test_an_unknown_baseline_is_refused(given):
    with pytest.raises(ValueError, match=r"baseline must be one of .*, got 'fintune'; did you mean 'finetune'"):
        read_baselines(OmegaConf.create({"b": given}).b)


WEIGHTED = {"tasks": ["digits", "wine", "iris"]}


@pytest.mark.parametrize(
    ("curriculum", "message"),
    [
        ([["digits", "wnie"], "iris"], r"curriculum\[0\] names 'wnie', which is not in tasks: .*did you mean 'wine'"),
        ([["digits", "wine", "wine"], "iris"], "curriculum names task 'wine' 2 times"),
        ([["digits", 3], "iris"], r"curriculum\[0\] names 3, which is not in tasks"),
        (
            [WEIGHTED | {"uneven": "cylce"}],
            r"uneven of curriculum\[0\] must be one of .*, got 'cylce'; did .*'cycle'",
        ),
        ([WEIGHTED | {"loss_weights": {"wnie": 1}}], r"loss_weights of curriculum\[0\] names 'wnie', .*mean 'wine'"),
        ([WEIGHTED | {"loss_weights": {"wine": 0}}], r"loss_weights = 0 of curriculum\[0\], task 'wine', is not"),
        ([WEIGHTED | {"loss_weights": {"wine": -1.0}}], r"loss_weights = -1.0 of .* a number above 0"),
        ([WEIGHTED | {"loss_weights": {"wine": True}}], r"loss_weights = True of"),
        ([WEIGHTED | {"loss_weights": {"wine": "much"}}], r"loss_weights = 'much' of"),
        ([WEIGHTED | {"loss_weights": {"wine": float("nan")}}], r"loss_weights = nan of"),
        ([WEIGHTED | {"loss_weights": [1, 2, 3]}], r"loss_weights = \[1, 2, 3\] of .*a mapping from task to number"),
        ([{"tasks": ["digits"], "max_epochs": True}], r"max_epochs = True of curriculum\[0\]"),
        (["digits", "wine"], r"curriculum names task 'iris' 0 times: every task belongs to one stage"),
        (["digits", "wine", "iris", "wine"], r"curriculum names task 'wine' 2 times"),
        (["digits", "wnie", "iris"], r"curriculum\[1\] names 'wnie', which is not in tasks: .*did you mean 'wine'"),
        (["digits", [], "wine", "iris"], r"curriculum\[1\] has no task"),
        (["digits", None, "wine", "iris"], r"curriculum\[1\] has no task"),
        (["digits", {"max_epochs": 3}], r"curriculum\[1\] has no task"),
        ("digits", r"curriculum = 'digits' is not allowed: a list of stages"),
        ([{"task": ["digits"]}], r"a key of curriculum\[0\] must be one of .*, got 'task'; did you mean 'tasks'"),
        ([{"tasks": ["digits"], "max_epochs": 0}], r"max_epochs = 0 of curriculum\[0\] is not allowed"),
        ([{"tasks": ["digits"], "max_epochs": 1.5}], r"max_epochs = 1.5 of curriculum\[0\]"),
        ([{"tasks": ["digits"], "max_epochs": "9"}], r"max_epochs = '9' of curriculum\[0\]"),
    ],
)
def test_a_wrong_curriculum_is_refused(curriculum, message):
    with pytest.raises(ValueError, match=message):
        stages(curriculum)


@pytest.mark.parametrize("entry", [3, 1.5, True])
def test_a_stage_of_no_known_form_is_refused(entry):
    with pytest.raises(ValueError, match=r"curriculum\[0\]"):
        stages([entry, "digits", "wine", "iris"])


def test_a_curriculum_that_is_a_mapping_is_refused():
    with pytest.raises(ValueError, match="a list of stages"):
        read_curriculum(OmegaConf.create({"digits": 1}), TASKS, 5)


def test_max_epochs_below_one_is_refused():
    with pytest.raises(ValueError, match=r"max_epochs = 0 of curriculum\[0\]"):
        stages(None, max_epochs=0)


def test_no_task_at_all_is_refused():
    with pytest.raises(ValueError, match="tasks is empty: name at least one"):
        stages(None, tasks=[])


# ---- fits


def make_pruning(begin=0.16, end=0.33, rewind=None):
    return Pruning({}, None, None, begin, end, rounds=1, rewind=rewind, rescale=True, sample=1)


def parts(epochs, **pruning):
    fits = fits_of(Stage(1, ("wine",), epochs), 4, make_pruning(**pruning))
    return [(fit.key, fit.epochs, fit.prunes, fit.last) for fit in fits]


@pytest.mark.parametrize(
    ("epochs", "end", "pruned", "rest"),
    [(12, 0.33, 4, 8), (12, 0.5, 6, 6), (3, 0.33, 1, 2), (10, 0.3, 3, 7), (10, 0.1 + 0.2, 3, 7), (100, 0.01, 1, 99)],
)
def test_pruning_has_the_epochs_that_its_end_reaches_into(epochs, end, pruned, rest):
    assert parts(epochs, begin=0, end=end) == [
        ("stage-001-prune", pruned, True, False),
        ("stage-001-train", rest, False, True),
    ]


def test_pruning_at_initialisation_needs_one_fit():
    assert parts(7, begin=0, end=0) == [("stage-001-train", 7, False, True)]


@pytest.mark.parametrize(("epochs", "end"), [(7, 1.0), (1, 0.33)])
def test_pruning_to_the_end_leaves_one_fit(epochs, end):
    assert parts(epochs, begin=0, end=end) == [("stage-001-prune", epochs, True, True)]


def test_fits_are_named_for_stage_and_task():
    fits = fits_of(Stage(1, ("wine",), 6), 4, make_pruning())
    assert [fit.name for fit in fits] == ["stage 2/4 wine: prune", "stage 2/4 wine: train"]


@pytest.mark.parametrize(("rewind", "epochs"), [(2, 10), (-1, 10), (1, 5)])
def test_rewinding_to_an_epoch_after_the_first_cut_is_refused(rewind, epochs):
    with pytest.raises(ValueError, match=rf"pruning.rewind = {rewind} is not allowed: the first cut of stage 1"):
        parts(epochs, begin=0.1, rewind=rewind)


def test_rewinding_to_an_epoch_before_the_first_cut_is_allowed():
    assert parts(10, begin=0.2, end=0.5, rewind=2)[0][1] == 5


# ---- pruning settings


def settings(**changes):
    usual = {"criterion": {"name": "magnitude"}, "schedule": "cubic"}
    return OmegaConf.merge(OmegaConf.structured(PruningConfig), usual | changes)


def test_one_density_is_every_tasks():
    pruning = read_pruning(settings(density=0.25), TASKS)
    assert {task: budget.density for task, budget in pruning.budgets.items()} == dict.fromkeys(TASKS, 0.25)
    assert (pruning.criterion.name, pruning.schedule.__name__) == ("magnitude", "cubic")


def test_density_may_be_a_mapping_from_task_to_number():
    densities = {"digits": 0.5, "wine": 0.25, "iris": 1}
    found = read_pruning(settings(density=densities), TASKS).budgets
    assert {task: budget.density for task, budget in found.items()} == densities


def test_weights_and_share_replace_density():
    found = read_pruning(settings(density=None, weights={"digits": 9, "wine": 8, "iris": 7}), TASKS).budgets
    assert [budget.weights for budget in found.values()] == [9, 8, 7]
    assert read_pruning(settings(density=None, share="equal"), TASKS).budgets["iris"].share == "equal"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"density": 0}, r"task 'digits': density = 0.0 is not allowed: .*in \(0, 1\]"),
        ({"density": 1.5}, r"task 'digits': density = 1.5 is not allowed"),
        ({"density": -0.1}, r"density = -0.1 is not allowed"),
        ({"density": float("nan")}, r"density = nan is not allowed"),
        ({"density": "much"}, r"pruning.density = 'much' is not allowed: a number in \(0, 1\]"),
        ({"density": True}, r"pruning.density = True is not allowed"),
        ({"density": [0.1, 0.2, 0.3]}, r"pruning.density = .* is not allowed"),
        ({"density": {"digits": 0.1, "wine": 0.1}}, r"pruning.density has no number for task 'iris'"),
        (
            {"density": {"digits": 0.1, "wine": 0.1, "iris": 0.1, "wines": 0.1}},
            r"pruning.density names 'wines', which is not a task; did you mean 'wine'",
        ),
        ({"density": {"digits": 0.1, "wine": 2, "iris": 0.1}}, r"task 'wine': density = 2.0 is not allowed"),
        ({"weights": 5}, r"pruning.weights and pruning.share replace pruning.density: pass pruning.density=null"),
        ({"share": "equal"}, r"pass pruning.density=null"),
        ({"density": None}, r"exactly one of density, weights, share"),
        ({"density": None, "weights": 0}, r"task 'digits': weights = 0 is not allowed"),
        ({"density": None, "share": "half"}, r"share = 'half' is not allowed: only 'equal' is"),
        ({"scope": "layer"}, r"scope must be one of tensor, erk, epl, network.*, got 'layer'"),
        ({"start": "frsh"}, r"pruning.start must be one of .*, got 'frsh'; did you mean 'fresh'"),
        ({"granularity": "neurn"}, r"pruning.granularity must be one of .*, got 'neurn'; did you mean 'neuron'"),
        ({"granularity": "channel", "scope": "erk"}, r"pruning.scope = 'erk' is not allowed with pruning.gran"),
        ({"granularity": "channel", "scope": "network"}, r"pruning.scope = 'network' is not allowed with pruning.gran"),
        ({"begin": 0.5, "end": 0.2}, r"pruning.begin = 0.5, pruning.end = 0.2 are not allowed"),
        ({"begin": -0.5}, r"pruning.begin = -0.5"),
        ({"end": 1.2}, r"pruning.end = 1.2"),
        ({"rounds": 0}, r"pruning.rounds = 0 is not allowed: at least 1 is"),
        ({"sample": 0}, r"pruning.sample = 0 is not allowed: at least 1 is"),
        ({"criterion": "magnitud"}, r"pruning.criterion must be one of .*, got 'magnitud'; did you mean 'magnitude'"),
        ({"schedule": {"name": "cubik"}}, r"pruning.schedule must be one of .*, got 'cubik'; did you mean 'cubic'"),
    ],
)
def test_wrong_pruning_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        read_pruning(settings(**changes), TASKS)


GATE = {"step": 0.05, "maximum": 0.98, "patience": 2, "tolerance": 0.01, "until": 0.75}


def test_a_gate_keeps_pruning_until_its_own_end():
    pruning = read_pruning(settings(begin=0.2, end=0.4, gate=GATE), TASKS)
    assert pruning.gate == Gate(**GATE)
    fits = fits_of(Stage(0, ("wine",), 10), 1, pruning)
    assert [(fit.key, fit.epochs) for fit in fits] == [("stage-000-prune", 8), ("stage-000-train", 2)]
    assert read_pruning(settings(), TASKS).gate is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": 0}, r"pruning.gate.step = 0.0 is not allowed: in \(0, 1\) is"),
        ({"step": 1}, r"pruning.gate.step = 1.0 is not"),
        ({"maximum": 1}, r"pruning.gate.maximum = 1.0 is not allowed: in \(0, 1\) is"),
        ({"patience": 0}, r"pruning.gate.patience = 0 is not allowed: at least 1 is"),
        ({"tolerance": -0.1}, r"pruning.gate.tolerance = -0.1 is not allowed: at least 0 is"),
        ({"until": 0.4}, r"pruning.gate.until = 0.4 is not allowed: above pruning.end = 0.4, and at most 1, is"),
        ({"until": 1.1}, r"pruning.gate.until = 1.1 is not"),
    ],
)
def test_a_wrong_gate_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        read_pruning(settings(begin=0.2, end=0.4, gate=GATE | changes), TASKS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"granularity": "neuron"}, "pruning.granularity = 'neuron' is not allowed with pruning.gate.step"),
        ({"rewind": 0}, "pruning.rewind = 0 is not allowed with pruning.gate.step"),
    ],
)
def test_what_does_not_go_with_a_gate_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        read_pruning(settings(begin=0.2, end=0.4, gate=GATE, **changes), TASKS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"begin": 0.0, "end": 0.0},
            r"pruning.begin = 0, pruning.end = 0 are not allowed with pruning.criterion",
        ),
        ({"begin": 0.4}, r"pruning.begin = 0.4, pruning.end = 0.4 are not allowed .* scores learn from begin to end"),
        ({"scores": "magnitud"}, r"pruning.scores must be one of .*, got 'magnitud'; did you mean 'magnitude'"),
        ({"granularity": "neuron"}, r"pruning.granularity = 'neuron' is not allowed .*'learned': 'weight' is"),
        ({"rewind": 0}, r"pruning.rewind = 0 is not allowed with pruning.criterion = 'learned': null is"),
    ],
)
def test_settings_under_which_scores_do_not_learn_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        read_pruning(settings(**{"criterion": "learned", "begin": 0.2, "end": 0.4} | changes), TASKS)


def test_a_gate_needs_an_epoch_of_the_dense_network():
    pruning = read_pruning(settings(begin=0.1, end=0.4, gate=GATE), TASKS)
    fits_of(Stage(0, ("wine",), 10), 1, pruning)
    with pytest.raises(ValueError, match=r"pruning.begin = 0.1 is not allowed .*stage 3 trains 0.9 epochs dense"):
        fits_of(Stage(3, ("wine",), 9), 4, pruning)


@pytest.mark.parametrize(
    ("kept", "trainer", "message"),
    [
        (2, {}, r"pruning.gate.maximum = 0.98 is not allowed: the budget of task 'a' has sparsity 0.98 already"),
        (20, {"limit_val_batches": 0}, "trainer.limit_val_batches = 0 is not allowed"),
        (20, {"check_val_every_n_epoch": 2}, "trainer.check_val_every_n_epoch = 2 is not allowed"),
    ],
)
def test_a_gate_that_nothing_could_pass_or_decide_is_refused(kept, trainer, message):
    config = OmegaConf.merge(OmegaConf.structured(TrainerConfig), trainer)
    with pytest.raises(ValueError, match=message):
        check_gate(Gate(**GATE), {"a": {"": kept}}, {"x": 60, "y": 40}, config)


@pytest.mark.parametrize("weights", ["many", 2.5, [1, 2]])
def test_weights_that_are_not_a_whole_number_are_refused(weights):
    with pytest.raises(ValueError, match="weights"):
        read_pruning(settings(density=None, weights=weights), TASKS)
