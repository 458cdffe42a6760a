"""Resume killed runs: from checkpoints within a fit, from networks between fits."""

import logging
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from toys import AfterBatch, AfterEpoch, begin, fit, make_config, make_module, make_task

from helpers import FEATURES, INPUTS, differences, make_batch, make_head, make_mlp
from msh.files.sealed import seal, sealed_files
from msh.files.state_file import fill_network
from msh.files.weights_only import Packing, UnreadableStateError
from msh.subnetworks import (
    CRITERIA,
    SCHEDULES,
    WEIGHTS,
    Blocks,
    Groups,
    MultiSubnetwork,
    NofM,
    Units,
    plan_groups,
    trace_units,
)
from msh.training.callbacks import IterativePruning, RestoreBest
from msh.training.callbacks.checkpoint import PATTERN, newest_readable, readable_checkpoint
from msh.training.module import SubnetworkModule
from msh.training.preemption import PREEMPTION, PreemptedError
from msh.training.state import RunState


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoints of a fit that saved each of its four epochs."""
    path = tmp_path_factory.mktemp("fit")
    fit(begin(make_module(), "a"), path, epochs=4, config=make_config(min_seconds=0))
    return path / "checkpoints"


def copy(folder, target):
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def stems(paths):
    """Names without checksums."""
    return [path.name.split(".")[0] for path in paths]


def test_the_newest_two_checkpoints_are_kept(folder):
    assert stems(sorted(folder.iterdir())) == ["epoch-00002", "epoch-00003"]
    assert stems([newest_readable(folder)]) == ["epoch-00003"]


def test_no_checkpoint_is_written_before_min_seconds(tmp_path):
    fit(begin(make_module(), "a"), tmp_path, config=make_config(min_seconds=1e9))
    assert sealed_files(tmp_path / "checkpoints", PATTERN) == []


def test_a_debugging_fit_writes_no_checkpoint(tmp_path):
    fit(begin(make_module(), "a"), tmp_path, config=make_config(min_seconds=0, fast_dev_run=True))
    assert sealed_files(tmp_path / "checkpoints", PATTERN) == []


@pytest.mark.parametrize("size", [0, 1, 100, 0.5, 0.99])
def test_a_torn_checkpoint_is_skipped_with_a_warning(size, folder, tmp_path, caplog):
    mine = copy(folder, tmp_path / "mine")
    newest = newest_readable(mine)
    content = newest.read_bytes()
    newest.write_bytes(content[: size if isinstance(size, int) else int(size * len(content))])
    with caplog.at_level(logging.WARNING):
        assert stems([newest_readable(mine)]) == ["epoch-00002"]
    assert f"{newest.name} cannot be read" in caplog.text
    assert "falling back to the one before" in caplog.text


def test_a_checkpoint_with_one_flipped_bit_is_skipped(folder, tmp_path):
    mine = copy(folder, tmp_path / "mine")
    newest = newest_readable(mine)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert stems([newest_readable(mine)]) == ["epoch-00002"]


def test_a_folder_without_readable_checkpoints_has_none(tmp_path):
    assert newest_readable(tmp_path / "nowhere") is None
    (tmp_path / "epoch-00001.ckpt").write_bytes(b"not sealed")
    seal(tmp_path / "epoch-00001.ckpt")
    assert newest_readable(tmp_path) is None


def make_pruner(module, granularity="weight"):
    if granularity in ("weight", "block"):
        kind = WEIGHTS if granularity == "weight" else Blocks.of(module.network, (2, 1))
        wanted = {"a": {"2.weight": 4 if granularity == "weight" else 1, "6.weight": 10}}
    elif granularity == "nm":
        kind = NofM(Groups.of(module.network, 1, 3))
        wanted = plan_groups(kind.groups, ["a"], module.network.free())
    else:
        kind = Units(trace_units(module.network, granularity, make_batch()[0]))
        wanted = {"a": {"2.weight": 2, "6.weight": 3}}
    settings = {"rounds": 5, "rewind_epoch": 0, "granularity": kind}
    return IterativePruning(wanted, CRITERIA["magnitude"], SCHEDULES["cubic"], 0.5, 3, **settings)


class KilledError(Exception):
    pass


@pytest.mark.parametrize(
    ("epoch", "granularity"), [(1, "weight"), (2, "weight"), (3, "weight"), (2, "channel"), (2, "block"), (2, "nm")]
)
def test_a_resumed_fit_ends_with_the_same_weights(epoch, granularity, tmp_path):
    def stop(now, batch, module):
        if (now, batch) == (epoch, 2):
            raise KilledError

    config = make_config(min_seconds=0, restore_best=True)
    undisturbed = begin(make_module(norm="batch"), "a")
    fit(undisturbed, tmp_path / "one", make_pruner(undisturbed, granularity), epochs=4, config=config)
    killed = begin(make_module(norm="batch"), "a")
    with pytest.raises(KilledError):
        fit(killed, tmp_path, make_pruner(killed, granularity), AfterBatch(stop), epochs=4, config=config)
    resumed = begin(make_module(norm="batch"), "a")
    seen = AfterBatch(lambda epoch, batch, module: epoch)
    fit(resumed, tmp_path, make_pruner(resumed, granularity), seen, epochs=4, config=config)
    assert min(seen.seen) == epoch  # finished epochs are not done again
    assert differences(resumed.network.state_dict(), undisturbed.network.state_dict()) == []
    assert resumed.run_step == undisturbed.run_step == 16


# ---- what a checkpoint holds


def make_wide(width, owned=4000):
    """A module with a compact task of `owned` weights in two square layers, beside a frozen one of as many."""
    backbone = make_mlp(INPUTS, width, width, width, FEATURES)
    module = SubnetworkModule(MultiSubnetwork(backbone, "[12].weight"), {"a": make_task()}, adam)
    for start, task in enumerate(("z", "a")):
        module.network.add_task(task, head=make_head())
        module.network.begin(task)
        step = 2 * width * width // owned
        kept = {
            name: torch.arange(mask.numel()).view(mask.shape) % step == start
            for name, mask in module.network.free().items()
        }
        module.network.restrict(task, kept)
        (module.network.compact if task == "a" else module.network.freeze)(task)
    return module


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


@pytest.mark.parametrize("best_is_last", [True, False])
def test_a_checkpoint_of_a_compact_task_is_as_large_as_what_it_owns(best_is_last, tmp_path):
    owned, sizes, bounds = 4000, {}, {}
    for width in (200, 400):
        module = make_wide(width, owned)

        def best(trainer, module):
            trainer.callback_metrics["a/val/accuracy"] = torch.tensor(float(best_is_last == trainer.current_epoch))

        config = make_config(min_seconds=0, restore_best=True)
        fit(module, tmp_path / str(width), Validated(best), epochs=2, config=config)
        sizes[width] = newest_readable(tmp_path / str(width) / "checkpoints").stat().st_size
        trained = sum(parameter.numel() for parameter in module.network.subnetwork("a").parameters())
        copies = 3 if best_is_last else 4  # values, two moments, the best values
        bounds[width] = 4 * copies * trained + owned  # and at most a byte for each owned weight's place
        assert 4 * copies * owned < sizes[width] < bounds[width] + 25_000
        assert sizes[width] < 4 * width * width  # one of the two layers
    assert sizes[400] - sizes[200] < bounds[400] - bounds[200] + 2000  # biases, and the private layers


class Validated(AfterEpoch):
    """Before `RestoreBest`, as callbacks of a fit are called in turn."""

    def on_validation_epoch_end(self, trainer, pl_module):
        self.look(trainer, pl_module)

    def on_validation_end(self, trainer, pl_module):
        pass


def test_a_checkpoint_of_a_pruned_task_has_no_state_of_weights_that_are_gone(tmp_path):
    sizes = []
    for rounds in (1, 4):  # of four cuts, one after each epoch
        module = make_wide_masked()
        cuts = IterativePruning({"a": {"": 1000}}, CRITERIA["magnitude"], SCHEDULES["linear"], 0, 4, 4)
        fit(module, tmp_path / str(rounds), cuts, epochs=rounds, config=make_config(min_seconds=0))
        assert cuts.rounds_done == rounds
        sizes.append(newest_readable(tmp_path / str(rounds) / "checkpoints").stat().st_size)
        held = sum(int(mask.sum()) for mask in module.network.masks("a").values())
        private = 12 * 200
        assert sizes[-1] < 3 * (4 * (held + private) + 80_000 / 8) + 25_000  # values, two moments, their places
    assert sizes[1] < sizes[0] / 6


def make_wide_masked():
    module = SubnetworkModule(
        MultiSubnetwork(make_mlp(INPUTS, 200, 200, 200, FEATURES), "[12].weight"), {"a": make_task()}, adam
    )
    module.network.add_task("a", head=make_head())
    module.network.begin("a")
    return module


@pytest.mark.parametrize("phase", ["masked", "compact"])
@pytest.mark.parametrize("reuse", ["none", "all"])
def test_checkpoints_of_earlier_releases_resume(phase, reuse, tmp_path, monkeypatch):
    def make():
        module = begin(begin(make_module(make_task("z"), make_task("a"), norm="batch"), "z"), "a", reuse=reuse)
        module.network.restrict("z", {n: m & (m.cumsum(0) % 2 == 0) for n, m in module.network.masks("z").items()})
        module.network.freeze("z")
        if phase == "compact":
            kept = {n: m & ~module.network.masks("z")[n] for n, m in module.network.masks("a").items()}
            module.network.restrict("a", kept)
            module.network.compact("a")
        return module

    def callbacks(module):
        return [make_pruner(module)] if phase == "masked" and reuse == "none" else []

    config = make_config(min_seconds=0, restore_best=phase == "compact")
    undisturbed, stopped, resumed = make(), make(), make()
    fit(undisturbed, tmp_path / "one", *callbacks(undisturbed), epochs=4, config=config)
    with monkeypatch.context() as patch:  # the whole network, and tensors as they are
        patch.delattr(SubnetworkModule, "on_save_checkpoint")
        patch.delattr(RestoreBest, "on_save_checkpoint")
        patch.setattr(Packing, "packed", lambda self, state: state)
        fit(stopped, tmp_path, *callbacks(stopped), epochs=2, config=config)
    saved = torch.load(newest_readable(tmp_path / "checkpoints"), weights_only=True)
    assert "network.backbone.2.weight" in saved["state_dict"]
    fit(resumed, tmp_path, *callbacks(resumed), epochs=4, config=config)
    assert differences(resumed.network.state_dict(), undisturbed.network.state_dict()) == []


def signalled(epoch, batch):
    """A callback that receives a signal after that batch."""

    def receive(now, done, module):
        if (now, done) == (epoch, batch):
            PREEMPTION.received = signal.SIGTERM

    return AfterBatch(receive)


@pytest.fixture
def watched():
    with PREEMPTION.watched():
        yield


@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize(
    ("epoch", "batch", "name"),
    [
        (0, 0, "epoch-00000-batch-000001"),
        (2, 2, "epoch-00002-batch-000003"),
        (2, 3, "epoch-00002"),  # the last batch of the epoch
        (3, 1, "epoch-00003-batch-000002"),
    ],
)
@pytest.mark.parametrize("granularity", ["weight", "block", "channel"])
def test_a_fit_ended_by_a_signal_resumes_at_the_next_batch(epoch, batch, name, granularity, tmp_path):
    def draw(epoch, batch, module):
        draws[epoch, batch] = torch.rand(1).item()

    config, draws = make_config(restore_best=True), {}
    undisturbed = begin(make_module(norm="batch"), "a")
    fit(undisturbed, tmp_path / "one", make_pruner(undisturbed, granularity), AfterBatch(draw), epochs=4, config=config)
    expected, draws = draws, {}
    ended = begin(make_module(norm="batch"), "a")
    callbacks = (make_pruner(ended, granularity), signalled(epoch, batch))
    with pytest.raises(PreemptedError) as stop:
        fit(ended, tmp_path, *callbacks, epochs=4, config=config)
    assert stop.value.code == 128 + signal.SIGTERM
    assert stems(sealed_files(tmp_path / "checkpoints", PATTERN))[0] == name
    PREEMPTION.received = None
    resumed = begin(make_module(norm="batch"), "a")
    fit(resumed, tmp_path, make_pruner(resumed, granularity), AfterBatch(draw), epochs=4, config=config)
    assert draws == {at: value for at, value in expected.items() if at > (epoch, batch)}
    assert differences(resumed.network.state_dict(), undisturbed.network.state_dict()) == []
    assert resumed.run_step == undisturbed.run_step == 16


@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize("batch", [0, 4, 6])
@pytest.mark.parametrize("uneven", ["cycle", "shortest"])
def test_tasks_with_uneven_epochs_resume_at_the_next_batch(batch, uneven, tmp_path):
    def make():
        return begin(begin(make_module(make_task("a"), make_task("b", examples=90, repeat=2)), "a"), "b")

    undisturbed, ended, resumed = make(), make(), make()
    cycle = {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "_partial_": True, "max_lr": 0.1}
    config = replace(make_config(), scheduler=cycle)
    fit(undisturbed, tmp_path / "one", name=["a", "b"], epochs=2, config=config, uneven=uneven)
    signal_callback = signalled(1, min(batch, 2) if uneven == "shortest" else batch)
    with pytest.raises(PreemptedError):
        fit(ended, tmp_path, signal_callback, name=["a", "b"], epochs=2, config=config, uneven=uneven)
    PREEMPTION.received = None
    fit(resumed, tmp_path, name=["a", "b"], epochs=2, config=config, uneven=uneven)
    assert differences(resumed.network.state_dict(), undisturbed.network.state_dict()) == []


@pytest.mark.usefixtures("watched")
def test_a_signal_loses_no_accumulated_gradients(tmp_path):
    config = make_config(accumulate_grad_batches=2)
    undisturbed, ended, resumed = (begin(make_module(), "a") for _ in range(3))
    fit(undisturbed, tmp_path / "one", epochs=2, config=config)
    with pytest.raises(PreemptedError):
        fit(ended, tmp_path, signalled(0, 0), epochs=2, config=config)
    assert stems(sealed_files(tmp_path / "checkpoints", PATTERN)) == ["epoch-00000-batch-000002"]
    PREEMPTION.received = None
    fit(resumed, tmp_path, epochs=2, config=config)
    assert differences(resumed.network.state_dict(), undisturbed.network.state_dict()) == []


# ---- between fits


def make_frozen(bias=0.0):
    module = begin(make_module(), "a")
    torch.nn.init.constant_(module.network.subnetwork("a").head.bias, bias)
    module.network.freeze("a")
    return module.network


@pytest.fixture
def state(tmp_path):
    """After three fits, whose networks differ in the head's bias: 0, 1, 2."""
    state = RunState(tmp_path / "checkpoints", writes=True)
    for number in range(3):
        state.fit_folder(f"fit-{number}").mkdir(parents=True)
        state.fit_ended(number, f"fit-{number}", make_frozen(number), {"run_step": 10 * number, "checked": number})
    return state


def bias_of(found):
    return found.state.tasks["a"].private["head.bias"][0].item()


def test_a_run_without_checkpoints_starts_at_the_beginning(tmp_path):
    assert RunState(tmp_path, writes=True).newest() == (0, None, {})


def test_the_newest_network_counts_the_fits_that_ended(state):
    ended, file, counted = state.newest()
    assert (ended, bias_of(file), counted) == (3, 2.0, {"run_step": 20, "checked": 2})


def test_two_networks_and_no_fit_folder_are_kept(state):
    assert stems(sorted(state.folder.iterdir())) == ["after-0001", "after-0002"]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_torn_network_falls_back_to_the_one_before_with_a_warning(share, state, caplog):
    (newest,) = state.folder.glob("after-0002.*")
    newest.write_bytes(newest.read_bytes()[: int(share * newest.stat().st_size)])
    with caplog.at_level(logging.WARNING):
        ended, file, counted = state.newest()
    assert (ended, bias_of(file), counted) == (2, 1.0, {"run_step": 10, "checked": 1})
    assert newest.name in caplog.text
    assert "falling back to the one before" in caplog.text
    assert not newest.exists()


def test_a_network_between_fits_has_no_values_that_no_task_owns(tmp_path):
    state = RunState(tmp_path / "checkpoints", writes=True)
    sizes = {}
    for number, width in enumerate((200, 400)):
        module = make_wide(width)
        network = module.network
        state.fit_ended(number, "fit", network, {})
        (path,) = state.folder.glob(f"after-000{number}.*")
        sizes[width] = path.stat().st_size
        assert sizes[width] < 2 * 4 * 4000 + 4 * 4 * 4 * width + 2 * width * width / 8 + 25_000  # two tasks
        again = make_wide(width).network
        before = {key: value.clone() for key, value in network.state_dict().items() if torch.is_tensor(value)}
        changed = [again.subnetwork("a").values[name].data.zero_() for name in again.names.prunable]
        fill_network(path, again, state.newest()[1])
        assert len(changed) == 2
        assert differences(again.state_dict(), before | {"_extra_state": network.get_extra_state()}) == []


def test_a_process_that_does_not_write_changes_no_file(state):
    other = RunState(state.folder, writes=False)
    (newest,) = state.folder.glob("after-0002.*")
    newest.write_bytes(b"torn")
    other.fit_ended(3, "fit-3", make_frozen(), {"run_step": 30})
    assert other.newest()[0] == 2
    assert newest.read_bytes() == b"torn"
    assert len(list(state.folder.iterdir())) == 2


def test_ctrl_c_stops_at_the_next_checkpoint_and_a_second_one_at_once():
    with PREEMPTION.watched():
        PREEMPTION.postponed = True
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(PreemptedError, match="130"):
            signal.raise_signal(signal.SIGINT)
    PREEMPTION.received = None


class Keeps(pl.Callback):
    """Keep a state, and note the one that is restored."""

    def __init__(self, state):
        self.state, self.restored = state, None

    def state_dict(self):
        return self.state

    def load_state_dict(self, state_dict):
        self.restored = state_dict


def test_a_callbacks_numbers_and_paths_are_restored_on_resume(tmp_path):
    state = {"best": np.float64(0.5), "where": Path("x"), "curve": np.arange(3.0)}
    fit(begin(make_module(), "a"), tmp_path, Keeps(state), epochs=2, config=make_config(min_seconds=0))
    again = Keeps({})
    fit(begin(make_module(), "a"), tmp_path, again, epochs=3, config=make_config(min_seconds=0))
    assert again.restored["curve"].tolist() == [0, 1, 2]
    assert {key: again.restored[key] for key in ("best", "where")} == {"best": 0.5, "where": "x"}


@pytest.mark.parametrize("min_seconds", [0, 1e9])
def test_a_state_that_could_not_be_read_back_ends_the_first_epoch(min_seconds, tmp_path):
    seen = AfterBatch(lambda epoch, *_: epoch)
    message = r"callback Keeps: state_dict\(\)\['best'\] is a builtins.object"
    with pytest.raises(UnreadableStateError, match=message):
        fit(
            *(begin(make_module(), "a"), tmp_path, Keeps({"best": object()}), seen),
            epochs=5,
            config=make_config(min_seconds=min_seconds),
        )
    assert set(seen.seen) == {0}


def test_a_schedulers_state_is_converted_or_refused_by_name():
    state = {"lr_schedulers": [{"best": np.float32(2)}], "optimizer_states": [{"state": {0: {"step": np.int64(3)}}}]}
    assert readable_checkpoint(state) == {
        "lr_schedulers": [{"best": 2.0}],
        "optimizer_states": [{"state": {0: {"step": 3}}}],
    }
    for part, name in (("lr_schedulers", "scheduler"), ("optimizer_states", "optimizer"), ("mine", "checkpoint")):
        with pytest.raises(UnreadableStateError, match=name):
            readable_checkpoint({part: [object()]})
