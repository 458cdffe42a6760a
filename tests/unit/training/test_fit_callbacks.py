"""RestoreBest, Freeze and Guarantee."""

import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import save
from toys import AfterBatch, AfterEpoch, begin, fit, make_config, make_module, make_task

from messages import says
from msh.files.state_file import open_safetensors
from msh.subnetworks import MultiSubnetwork
from msh.training.callbacks import Freeze, Guarantee, GuaranteeError, RestoreBest
from msh.training.callbacks.guarantee import same_bits, tolerance
from msh.training.fitting import evaluate_tasks
from msh.training.machine import Machine, machine
from msh.training.module import FitContext


def bias_after(scores, kind="classification", metric="accuracy"):
    """Set the head's bias to i in epoch i; return the bias that RestoreBest restores after these scores."""
    module = begin(make_module(make_task(kind=kind, metric=metric)), "a")
    module.begin_fit(FitContext(tasks=("a",)))
    callback, bias = RestoreBest(), module.network.subnetwork("a").head.bias
    for epoch, score in enumerate(scores):
        torch.nn.init.constant_(bias, epoch)
        metrics = {} if score is None else {f"a/val/{metric}": torch.tensor(score)}
        callback.on_validation_end(SimpleNamespace(sanity_checking=False, callback_metrics=metrics), module)
    callback.on_train_end(None, module)
    assert bool((bias == bias[0]).all())
    return bias[0].item()


@pytest.mark.parametrize(
    ("scores", "best"),
    [([0.5, 0.9, 0.7], 1), ([0.5, 0.9, 0.9, 0.7], 2), ([0.9, 0.5], 0), ([0.1, 0.2], 1), ([None, 0.2, None], 1)],
)
def test_the_best_epoch_is_restored_the_latest_among_equals(scores, best):
    assert bias_after(scores) == best


@pytest.mark.parametrize(("scores", "best"), [([3.0, 1.0, 2.0], 1), ([3.0, 1.0, 1.0, 2.0], 2), ([1.0, 5.0], 0)])
def test_the_lowest_score_is_best_for_a_metric_to_minimize(scores, best):
    assert bias_after(scores, kind="regression", metric="rmse") == best


def test_each_task_of_a_stage_has_its_own_best_epoch():
    module = begin(begin(make_module(make_task("a"), make_task("b")), "a"), "b")
    module.begin_fit(FitContext(tasks=("a", "b")))
    callback = RestoreBest()
    for epoch, scores in enumerate([(0.9, 0.1), (0.2, 0.8), (0.1, 0.3)]):
        metrics = dict(zip(("a/val/accuracy", "b/val/accuracy"), map(torch.tensor, scores), strict=True))
        for task in ("a", "b"):
            torch.nn.init.constant_(module.network.subnetwork(task).head.bias, epoch)
        callback.on_validation_end(SimpleNamespace(sanity_checking=False, callback_metrics=metrics), module)
    callback.on_train_end(None, module)
    assert [module.network.subnetwork(task).head.bias[0].item() for task in ("a", "b")] == [0, 1]


def test_the_sanity_check_does_not_count():
    module = begin(make_module(), "a")
    module.begin_fit(FitContext(tasks=("a",)))
    callback = RestoreBest()
    metrics = {"a/val/accuracy": torch.tensor(1.0)}
    callback.on_validation_end(SimpleNamespace(sanity_checking=True, callback_metrics=metrics), module)
    assert callback.scores == {}


def test_a_fit_ends_with_the_weights_of_its_best_epoch(tmp_path):
    def spoil(epoch, batch, module):
        if epoch >= 3:
            rarest = module.tasks["a"].splits["val"].targets.bincount(minlength=3).argmin()
            with torch.no_grad():
                module.network.subnetwork("a").head.bias[rarest] = 100.0

    module, config = begin(make_module(), "a"), make_config(restore_best=True)
    seen = AfterEpoch(lambda trainer, module: trainer.callback_metrics["a/val/accuracy"].item())
    fit(module, tmp_path, seen, AfterBatch(spoil), Freeze(), config=config, epochs=5)
    assert max(seen.seen) > seen.seen[-1]  # or the last epoch's weights would pass too
    assert evaluate_tasks(module, ["a"], "val", config, tmp_path)["a"] == max(seen.seen)


@pytest.mark.parametrize(("callbacks", "by"), [({}, "metric"), ({"monitor": "metric"}, "metric"), ({}, "loss")])
def test_the_best_epoch_follows_the_monitor_of_early_stopping(callbacks, by, tmp_path):
    module, config = begin(make_module(), "a"), make_config(restore_best=True)
    if callbacks or by == "loss":
        target = "msh.training.callbacks.early_stopping.EarlyStoppingPerTask"
        config.callbacks = {"early_stopping": {"_target_": target, "patience": 9, **callbacks}}
    monitored = {}

    class Look(pl.Callback):
        def on_fit_start(self, trainer, pl_module):
            monitored["by"] = [c.by for c in trainer.callbacks if isinstance(c, RestoreBest)]

    fit(module, tmp_path, Look(), config=config, epochs=1)
    assert monitored == {"by": [by]}


def test_by_the_loss_another_epoch_may_be_the_best():
    module = begin(make_module(), "a")
    module.begin_fit(FitContext(tasks=("a",)))
    callback, bias = RestoreBest("loss"), module.network.subnetwork("a").head.bias
    for epoch, (accuracy, loss) in enumerate([(0.5, 1.0), (0.6, 0.2), (0.9, 0.7)]):
        torch.nn.init.constant_(bias, epoch)
        metrics = {"a/val/accuracy": torch.tensor(accuracy), "a/val/loss": torch.tensor(loss)}
        callback.on_validation_end(SimpleNamespace(sanity_checking=False, callback_metrics=metrics), module)
    callback.on_train_end(None, module)
    assert bias[0].item() == 1


def test_restore_best_saves_and_loads_its_state():
    first, second = RestoreBest(), RestoreBest()
    first.scores, first.states = {"a": 0.5}, {"a": {"x": torch.ones(2)}}
    second.load_state_dict(first.state_dict())
    assert (second.scores, second.states) == (first.scores, first.states)


# ---- freezing


def test_freezing_leaves_no_parameter(tmp_path):
    module = begin(make_module(norm="batch"), "a")
    assert list(module.parameters())
    fit(module, tmp_path, Freeze(), epochs=1)
    assert list(module.parameters()) == []
    assert module.network.subnetwork("a").phase == "frozen"


def test_freezing_keeps_the_trained_weights(tmp_path):
    module = begin(make_module(), "a")
    inputs = module.tasks["a"].splits["val"].inputs
    fit(module, tmp_path, epochs=1)
    with torch.no_grad():
        before = module(inputs, "a")
    module.network.freeze("a")
    assert torch.equal(module(inputs, "a"), before)


# ---- the guarantee


@pytest.fixture
def learned(tmp_path):
    """(module with a frozen task in a quarter of the network, guarantee that has recorded it)."""
    module = begin(make_module(make_task("a"), make_task("b"), norm="batch"), "a")
    masks = {name: torch.arange(free.numel()).view(free.shape) % 4 == 0 for name, free in module.network.free().items()}
    module.network.restrict("a", masks)
    guarantee = Guarantee(tmp_path / "guarantee")
    fit(module, tmp_path, Freeze(), guarantee, epochs=1)
    assert (guarantee.checked, guarantee.violations) == (0, 0)
    return module, guarantee


def tamper(module, owned=True, by=1.0):
    weight = module.network.backbone.get_buffer("6.weight")
    weight[module.network.masks("a")["6.weight"] == owned] += by
    module.network.forget_modules()


def test_an_unchanged_task_passes(learned):
    module, guarantee = learned
    guarantee.check(module, ["a"])
    assert (guarantee.checked, guarantee.violations) == (1, 0)


def test_a_tampered_weight_ends_the_run(learned):
    module, guarantee = learned
    tamper(module)
    with pytest.raises(GuaranteeError, match=r"task 'a' has changed since it was frozen: .*its weights.*its outputs"):
        guarantee.check(module, ["a"])
    assert guarantee.violations == 1


def test_a_change_of_the_last_bit_is_detected(learned):
    module, guarantee = learned
    weight = module.network.backbone.get_buffer("6.weight")
    place = module.network.masks("a")["6.weight"].nonzero()[0].tolist()
    weight[tuple(place)] = torch.nextafter(weight[tuple(place)], torch.tensor(9.0))
    with pytest.raises(GuaranteeError, match="its weights"):
        guarantee.check(module, ["a"])


def test_a_weight_of_no_task_may_change(learned):
    module, guarantee = learned
    tamper(module, owned=False)
    guarantee.check(module, ["a"])
    assert guarantee.violations == 0


@pytest.mark.parametrize("part", ["private", "head", "owners"])
def test_every_tensor_of_a_task_is_guarded(learned, part):
    module, guarantee = learned
    sub = module.network.subnetwork("a")
    if part == "private":
        sub.private["3.running_var"].mul_(2)
    elif part == "head":
        sub.head.bias.add_(1)
    else:
        module.network.owners["6.weight"].zero_()
        module.network.forget_modules()
    with pytest.raises(GuaranteeError):
        guarantee.check(module, ["a"])


def test_violations_logged_as_warnings_are_counted(learned, caplog):
    module, guarantee = learned
    tamper(module)
    guarantee.on_violation = "warn"
    with caplog.at_level(logging.WARNING):
        guarantee.check(module, ["a"])
        guarantee.check(module, ["a"])
    assert (guarantee.checked, guarantee.violations) == (2, 2)
    assert "task 'a' has changed" in caplog.text


def test_a_later_fit_that_harms_an_earlier_task_is_stopped(learned, tmp_path):
    module, guarantee = learned
    begin(module, "b")
    harm = AfterEpoch(lambda trainer, module: tamper(module))
    with pytest.raises(GuaranteeError, match="task 'a'"):
        fit(module, tmp_path, harm, Freeze(), guarantee, name="b", epochs=1)


def test_a_later_fit_is_checked_and_recorded(learned, tmp_path):
    module, guarantee = learned
    begin(module, "b")
    fit(module, tmp_path, Freeze(), guarantee, name="b", epochs=2)
    assert (guarantee.checked, guarantee.violations) == (1, 0)
    again = Guarantee(tmp_path / "guarantee")  # as a resumed run has it: the records are files
    again.check(module, ["a", "b"])
    assert (again.checked, again.violations) == (2, 0)


def test_outputs_are_compared_in_batches_of_the_recorded_size(learned, tmp_path):
    module, sizes = learned[0], []
    module.network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    small, other = (Guarantee(tmp_path / "small", batch_size=size) for size in (3, 5))
    small.record(module, "a")
    assert sizes == [3, 3, 2]  # of 8 validation examples
    other.check(module, ["a"])
    assert sizes == [3, 3, 2] * 2
    Guarantee(tmp_path / "usual", examples=7).record(module, "a")
    assert sizes[6:] == [7]


def test_a_record_of_an_earlier_release_is_compared_in_one_batch(learned, tmp_path):
    (module, guarantee), sizes = learned, []
    path = tmp_path / "guarantee" / "a.safetensors"
    tensors, metadata = open_safetensors(path)
    earlier = {key: value for key, value in metadata.items() if key != "batch_size"}
    path.write_bytes(save(tensors, earlier))
    module.network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    Guarantee(tmp_path / "guarantee", batch_size=3).check(module, ["a"])
    assert sizes == [8]
    path.write_bytes(save(tensors, earlier | {"batch_size": "0"}))
    with pytest.raises(ValueError, match=says("batch_size", ">= 1", "0")):
        guarantee.check(module, ["a"])


HERE = machine(torch.device("cpu"))
ELSEWHERE = [
    Machine(HERE.setting, "another model, AVX2"),
    Machine(HERE.setting, None),  # a record of an earlier release
    Machine("cpu, 9 threads, torch 9", HERE.processor),
]


def recorded_on(named, path, outputs=None):
    """Rewrite a record as another machine would have written it, with other outputs."""
    tensors, metadata = open_safetensors(path)
    metadata |= {"computed_on": named.setting, "processor": named.processor or ""}
    kept = {key: value for key, value in metadata.items() if key != "processor" or named.processor}
    path.write_bytes(save(tensors if outputs is None else {"outputs": outputs(tensors["outputs"])}, kept))


def far(outputs, by):
    """Change the largest output by a share of itself."""
    outputs.view(-1)[outputs.abs().argmax()] *= 1 + by
    return outputs


@pytest.mark.parametrize("named", ELSEWHERE)
def test_another_machine_may_round_outputs_otherwise_and_counts_it(named, learned, tmp_path, caplog):
    module, guarantee = learned
    path = tmp_path / "guarantee" / "a.safetensors"
    recorded_on(named, path, lambda outputs: far(outputs, 1e-4))
    with caplog.at_level(logging.WARNING):
        guarantee.check(module, ["a"])
        guarantee.check(module, ["a"])
    assert guarantee.counts["largest_difference"] == pytest.approx(1e-4, rel=0.01)
    assert guarantee.counts | {"largest_difference": 0} == {
        "checked": 2,
        "violations": 0,
        "rounded": 2,
        "largest_difference": 0,
    }
    assert caplog.text.count("recorded on another machine") == 1
    assert str(named) in caplog.text


@pytest.mark.parametrize("named", ELSEWHERE)
def test_outputs_of_another_machine_that_are_bitwise_the_records_are_not_counted_as_rounded(named, learned, tmp_path):
    module, guarantee = learned
    recorded_on(named, tmp_path / "guarantee" / "a.safetensors")
    guarantee.check(module, ["a"])
    assert guarantee.counts == {"checked": 1, "violations": 0}


@pytest.mark.parametrize(
    "changed", [lambda o: far(o, 1e-3), lambda o: o[:, :-1].contiguous(), lambda o: o * float("nan"), torch.zeros_like]
)
def test_outputs_of_another_machine_beyond_rounding_are_a_violation(changed, learned, tmp_path):
    module, guarantee = learned
    recorded_on(ELSEWHERE[0], tmp_path / "guarantee" / "a.safetensors", changed)
    with pytest.raises(GuaranteeError, match=r"its outputs, by .* rounding explains 3.5e-04"):
        guarantee.check(module, ["a"])
    assert guarantee.counts == {"checked": 1, "violations": 1}


def test_other_data_are_no_violation_but_refused(learned, caplog):
    module, guarantee = learned
    split = module.tasks["a"].splits["val"]
    other = replace(split, inputs=split.inputs + 1)
    module.tasks["a"] = replace(module.tasks["a"], splits=module.tasks["a"].splits | {"val": other})
    with pytest.raises(ValueError, match="the data of task 'a' have changed since it was frozen"):
        guarantee.check(module, ["a"])
    guarantee.on_violation = "warn"
    guarantee.check(module, ["a"])
    assert "the data of task 'a' have changed" in caplog.text
    assert guarantee.counts == {"checked": 1, "violations": 0}
    tamper(module)
    guarantee.check(module, ["a"])  # other weights are a violation, whatever the data
    assert guarantee.counts == {"checked": 2, "violations": 1}


def test_a_comparison_takes_as_many_examples_as_the_record(learned):
    module, guarantee = learned
    assert len(module.tasks["a"].splits["val"]) > 5
    Guarantee(guarantee.folder, examples=5).record(module, "a")
    guarantee.check(module, ["a"])
    assert guarantee.counts == {"checked": 1, "violations": 0}


def test_another_digit_on_the_records_own_machine_is_a_violation(learned, tmp_path):
    module, guarantee = learned
    recorded_on(HERE, tmp_path / "guarantee" / "a.safetensors", lambda outputs: far(outputs, 1e-6))
    with pytest.raises(GuaranteeError, match=r"its outputs$"):
        guarantee.check(module, ["a"])


@pytest.mark.parametrize("named", ELSEWHERE)
def test_weights_are_compared_bitwise_on_every_machine(named, learned, tmp_path):
    module, guarantee = learned
    recorded_on(named, tmp_path / "guarantee" / "a.safetensors")
    weight = next(module.network.weights())[1]
    weight[module.network.masks("a")[next(module.network.weights())[0]]] *= 1 + 2e-7
    with pytest.raises(GuaranteeError, match="its weights"):
        guarantee.check(module, ["a"])


@pytest.mark.parametrize(
    ("dtype", "setting", "expected"),
    [
        (torch.float32, "cpu", 2**-11.5),
        (torch.float64, "cpu", 2**-26),
        (torch.bfloat16, "cpu", 2**-3.5),
        (torch.float32, "cuda", 2**-5),
    ],
)
def test_the_tolerance_follows_from_the_coarsest_type(dtype, setting, expected):
    network = MultiSubnetwork(torch.nn.Linear(3, 3).to(dtype))
    assert tolerance(network, Machine(setting, "x"), Machine("cpu", "y")) == pytest.approx(expected)


def test_a_machine_is_named_by_all_that_decides_rounding(monkeypatch):
    for change in ("MKL_CBWR", "ONEDNN_MAX_CPU_ISA"):
        monkeypatch.setenv(change, "AVX2")
        assert machine(torch.device("cpu")) != HERE
        monkeypatch.delenv(change)
    with monkeypatch.context() as later:
        later.setattr("msh.__version__", "99.0")
        assert machine(torch.device("cpu")) != HERE
    assert machine(torch.device("cpu")) == HERE
    assert torch.backends.cpu.get_cpu_capability() in str(HERE)


def test_same_bits_is_stricter_than_equal_and_takes_nan():
    nan, zero = torch.tensor([float("nan")]), torch.zeros(1)
    assert same_bits(nan, nan.clone())
    assert not same_bits(zero, -zero)
    assert not same_bits(zero, zero.double())
    assert not same_bits(zero, torch.zeros(2))
