"""Trainer settings that cannot act, or would spoil a run, are refused or reported before training."""

from dataclasses import fields

import pytest
from toys import make_run, make_task

from messages import ANY, says
from msh.errors import ProblemsError
from msh.training.callbacks import EarlyStoppingPerTask
from msh.training.config import TrainerConfig
from msh.training.effects import check_effects
from msh.training.plan import fits_of, stages_of
from msh.training.trainers import check_trainer

BUILT = r"trainer cannot be built from \{.*"


def check(tasks=None, callbacks=(), **settings):
    """Do the checks of a start that concern the trainer; toy tasks have 4 training, 1 validation and 4 test batches."""
    tasks = tasks or {"a": make_task()}
    trainer = {"accelerator": "cpu", "max_epochs": 6} | settings.pop("trainer", {})
    config = make_run(list(tasks), trainer=trainer, **settings)
    check_trainer(config.trainer)
    stages = stages_of(config)
    check_effects(config, {s: fits_of(s, len(stages), config.pruning) for s in stages}, tasks, callbacks)


GRADUAL = {"begin": 0.2, "end": 0.5}  # of 6 epochs, the last 3 follow pruning
REFUSED = [
    ("max_epochs", 0, says("trainer.max_epochs", ">= 1", 0)),
    ("accelerator", "gqu", f"{BUILT}gqu"),
    ("devices", "many", f"{BUILT}many"),
    ("num_nodes", 0, says("trainer.num_nodes", ">= 1", 0)),
    ("strategy", "dpp", f"{BUILT}dpp"),
    ("precision", "17-true", f"{BUILT}17-true"),
    ("accumulate_grad_batches", 5, says("trainer.accumulate_grad_batches", ANY, 5)),
    ("gradient_clip_val", -1.0, says("trainer.gradient_clip_val", ">= 0", -1.0)),
    ("gradient_clip_algorithm", "value", says("trainer.gradient_clip_val", ANY, None)),
    ("log_every_n_steps", -1, says("trainer.log_every_n_steps", ">= 0", -1)),
    ("check_val_every_n_epoch", 4, says("trainer.check_val_every_n_epoch", ANY, 4)),
    ("limit_train_batches", 0, says("trainer.limit_train_batches", ANY, 0)),
    ("limit_train_batches", 1.5, says("trainer.limit_train_batches", ANY, 1.5)),
    (
        "limit_train_batches",
        0.2,
        r"limit_train_batches must be >= 0.25, .*the 4 batches of stage 1 \(a\).* 0.2",
    ),
    ("limit_val_batches", 0, says("trainer.limit_val_batches", ANY, 0)),
    (
        "limit_val_batches",
        0.9,
        r"limit_val_batches must be >= 1, .* the 1 batches of the val split of task 'a'",
    ),
    ("limit_test_batches", 0.0, says("trainer.limit_test_batches", ANY, 0.0)),
    ("limit_test_batches", 0.2, r"trainer.limit_test_batches must be >= 0.25, .* the test split of task 'a'.* got 0.2"),
    ("overfit_batches", -1, says("trainer.overfit_batches", ANY, -1)),
    ("overfit_batches", 0.2, r"trainer.overfit_batches must be >= 0.25, .*got 0.2"),
    ("fast_dev_run", -1, says("trainer.fast_dev_run", ANY, -1)),
    ("num_sanity_val_steps", -2, says("trainer.num_sanity_val_steps", ">= -1", -2)),
    ("detect_anomaly", 1, says("trainer.detect_anomaly", "true or false", 1)),
    ("deterministic", "wran", says("trainer.deterministic", ANY, "wran", "warn")),
    ("benchmark", 1, says("trainer.benchmark", "true or false", 1)),
    ("profiler", "simpel", f"{BUILT}simpel"),
    ("enable_progress_bar", 1, says("trainer.enable_progress_bar", "true or false", 1)),
    ("sync_batchnorm", 1, says("trainer.sync_batchnorm", "true or false", 1)),
]


def test_every_setting_of_the_trainer_is_tried():
    assert {key for key, *_ in REFUSED} == {field.name for field in fields(TrainerConfig)}


@pytest.mark.parametrize(("key", "value", "message"), REFUSED)
def test_a_trainer_setting_that_would_spoil_a_run_is_refused(key, value, message):
    with pytest.raises(ValueError, match=message):
        check(trainer={key: value}, pruning=GRADUAL)


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"accumulate_grad_batches": 3, "limit_train_batches": 2}, "must be <= 2, the batches in one pass .*, got 3"),
        ({"limit_train_batches": 2, "overfit_batches": 2}, says("trainer.limit_train_batches", ANY, 2)),
        ({"limit_val_batches": 2, "overfit_batches": 2}, says("trainer.limit_val_batches", ANY, 2)),
    ],
)
def test_settings_of_the_trainer_that_exclude_each_other_are_refused(trainer, message):
    with pytest.raises(ValueError, match=message):
        check(trainer=trainer)


def test_accumulated_batches_are_compared_with_one_pass_through_the_data():
    with pytest.raises(ValueError, match=r"must be <= 4, .*, got 5"):
        check({"a": make_task(repeat=10)}, trainer={"accumulate_grad_batches": 5})
    check({"a": make_task(repeat=10)}, trainer={"accumulate_grad_batches": 4})
    both = {"a": make_task(), "b": make_task("b", batch_size=4)}  # 4 and 8 batches
    check(both, curriculum=[["a", "b"]], trainer={"accumulate_grad_batches": 8})
    with pytest.raises(ValueError, match=r"must be <= 4, .* stage 1 \(a, b\), got 5"):
        check(both, curriculum=[["a", "b"]], uneven="shortest", trainer={"accumulate_grad_batches": 5})


def test_all_problems_are_reported_at_once():
    with pytest.raises(ProblemsError) as caught:
        check(trainer={"accumulate_grad_batches": 5, "limit_test_batches": 0.2, "check_val_every_n_epoch": 9})
    assert len(caught.value.problems) == 3


def test_without_a_best_epoch_none_needs_to_be_validated():
    check(trainer={"check_val_every_n_epoch": 9}, checkpoint={"restore_best": False})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"pruning": GRADUAL | {"rounds": 12}}, "pruning.rounds = 12 become 8 in stage 1 (a): it has 7.2 batches"),
        (
            {"pruning": GRADUAL | {"rounds": 5}, "trainer": {"max_epochs": 2}},
            "pruning.rounds = 5 become 3 in stage 1 (a)",
        ),
        ({"pruning": {"rounds": 5}}, "pruning.rounds = 5 become 1"),
        ({"pruning": GRADUAL | {"rounds": 3}}, None),
        ({"callbacks": [EarlyStoppingPerTask(patience=3)], "pruning": GRADUAL}, "patience = 3 cannot stop anything"),
        ({"callbacks": [EarlyStoppingPerTask(patience=3)]}, None),
        (
            {"callbacks": [EarlyStoppingPerTask(patience=2)], "trainer": {"check_val_every_n_epoch": 2}},
            "it needs more than 6 epochs after pruning, and no stage has more than 6",
        ),
        ({"callbacks": [EarlyStoppingPerTask(patience=3)], "pruning": GRADUAL, "baseline": "dense"}, None),
    ],
)
def test_a_setting_that_only_does_nothing_is_reported(settings, words, caplog):
    check(**settings)
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said == [] if words is None else len(said) == 1 and words in said[0], said
