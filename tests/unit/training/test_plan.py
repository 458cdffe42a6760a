"""A stage's fits, computed from the pruning settings."""

import pytest

from messages import says
from msh.training.config import GateConfig, PruningConfig, TrainerConfig
from msh.training.plan import Stage, check_gate, fits_of

GATE = {"step": 0.05, "maximum": 0.98, "patience": 2, "tolerance": 0.01, "until": 0.75}


def make_pruning(begin=0.16, end=0.33, rewind=None):
    return PruningConfig(begin=begin, end=end, rewind=rewind)


def parts(epochs, **pruning):
    fits = fits_of(Stage(1, ("wine",), epochs), 4, make_pruning(**pruning))
    return [(fit.key, fit.epochs, fit.prunes, fit.last) for fit in fits]


@pytest.mark.parametrize(
    ("epochs", "end", "pruned", "rest"),
    [(12, 0.33, 4, 8), (12, 0.5, 6, 6), (3, 0.33, 1, 2), (10, 0.3, 3, 7), (10, 0.1 + 0.2, 3, 7), (100, 0.01, 1, 99)],
)
def test_the_pruning_fit_has_the_epochs_up_to_its_end(epochs, end, pruned, rest):
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
    with pytest.raises(ValueError, match=says("pruning.rewind", value=rewind)):
        parts(epochs, begin=0.1, rewind=rewind)


def test_rewinding_to_an_epoch_before_the_first_cut_is_allowed():
    assert parts(10, begin=0.2, end=0.5, rewind=2)[0][1] == 5


def test_a_gate_needs_an_epoch_of_the_dense_network():
    pruning = PruningConfig(begin=0.1, end=0.4, gate=GateConfig(**GATE))
    fits_of(Stage(0, ("wine",), 10), 1, pruning)
    with pytest.raises(ValueError, match=says("pruning.begin", value=0.1)):
        fits_of(Stage(3, ("wine",), 9), 4, pruning)


@pytest.mark.parametrize(
    ("kept", "trainer", "message"),
    [
        (2, {}, says("pruning.gate.maximum", value=0.98)),
        (20, {"check_val_every_n_epoch": 2}, says("trainer.check_val_every_n_epoch", value=2)),
    ],
)
def test_a_gate_that_cannot_pass_or_has_no_metric_is_refused(kept, trainer, message):
    config = TrainerConfig(**trainer)
    with pytest.raises(ValueError, match=message):
        check_gate(GateConfig(**GATE), {"a": {"": kept}}, {"x": 60, "y": 40}, config)


def test_a_gate_needs_an_epoch_to_prune_in():
    pruning = PruningConfig(begin=0.5, end=0.51, gate=GateConfig(**GATE))
    with pytest.raises(ValueError, match=says("pruning.gate.until", "> 1, so that the gate has an epoch of stage 1")):
        fits_of(Stage(0, ("wine",), 2), 1, pruning)
    fits_of(Stage(0, ("wine",), 6), 1, pruning)


def test_a_gate_keeps_pruning_until_its_own_end():
    pruning = PruningConfig(begin=0.2, end=0.4, gate=GateConfig(**GATE))
    fits = fits_of(Stage(0, ("wine",), 10), 1, pruning)
    assert [(fit.key, fit.epochs) for fit in fits] == [("stage-000-prune", 8), ("stage-000-train", 2)]


def test_fits_of_a_stage_end_their_epochs_by_the_same_rule():
    fits = fits_of(Stage(0, ("wine", "iris"), 6, "shortest"), 2, make_pruning())
    assert [fit.uneven for fit in fits] == ["shortest", "shortest"]
