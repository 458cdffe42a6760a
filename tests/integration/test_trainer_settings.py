"""Every allowed setting of the trainer leaves a curriculum with pruning whole: budgets, scores, frozen tasks."""

import json

import pytest
from running import few_steps

TWO = ["+experiment=sequential", "tasks=[wine,iris]", *few_steps("wine", "iris"), "logger=none"]
SETTINGS = [*TWO, "trainer.max_epochs=4", "callbacks=early_stopping", "callbacks.early_stopping.patience=1"]
ALLOWED = {
    "steps": ["accumulate_grad_batches=5", "gradient_clip_val=0.5", "log_every_n_steps=0", "deterministic=warn"],
    "epochs": ["check_val_every_n_epoch=2", "limit_train_batches=0.3", "benchmark=true", "enable_progress_bar=false"],
    "evaluation": ["limit_val_batches=1", "limit_test_batches=1", "num_sanity_val_steps=-1", "profiler=simple"],
    "few batches": ["overfit_batches=3", "detect_anomaly=true"],
}
"""Settings of which none takes another's effect away, tested together."""


@pytest.mark.parametrize("settings", ALLOWED.values(), ids=ALLOWED)
def test_a_curriculum_with_pruning_stays_whole(settings, train_here):
    folder, _ = train_here(*SETTINGS, *(f"trainer.{setting}" for setting in settings))
    results = json.loads((folder / "results.json").read_text())
    assert (results["status"], results["forgetting"]) == ("finished", 0.0)
    assert results["guarantee"] == {"checked": 1, "violations": 0}
    for row in results["tasks"].values():
        assert row["density"] == pytest.approx(0.1, abs=0.002)
        assert None not in (row["val"], row["test"])


def test_checking_validation_before_training_changes_nothing(train_here):
    weights = []
    for number in (0, 2):
        folder, _ = train_here(*SETTINGS, f"trainer.num_sanity_val_steps={number}", folder=str(number))
        weights.append((folder / "network.safetensors").read_bytes())
    assert weights[0] == weights[1]


@pytest.mark.parametrize("pruning", ["gradual", "at_init", "gated", "learned", "lottery"])
@pytest.mark.parametrize("batches", ["true", "3"])
def test_a_trial_of_a_few_batches_goes_through_every_kind_of_pruning(pruning, batches, train_here):
    more = ["trainer.max_epochs=12", f"pruning={pruning}", f"trainer.fast_dev_run={batches}"]
    folder, printed = train_here(*TWO, *more)
    assert "wine" in printed
    assert not (folder / "results.json").exists()
