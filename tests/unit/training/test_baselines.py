"""Baselines train for as many steps as the subnetworks they are compared with."""

import pytest
import pytorch_lightning as pl
from toys import begin, make_config, make_module, make_run, make_task

from msh.training.baselines import Baselines
from msh.training.plan import Stage


@pytest.mark.parametrize(
    ("stages", "uneven", "epochs"),
    [
        ([Stage(0, ("a",), 30), Stage(1, ("b",), 4)], "cycle", 14),  # 30 x 4 steps are 13.3 epochs of 9
        ([Stage(0, ("a",), 5), Stage(1, ("b",), 4)], "cycle", 4),
        ([Stage(0, ("a", "b"), 5)], "cycle", 5),
        ([Stage(0, ("a", "b"), 5, "shortest")], "shortest", 5),
        ([Stage(0, ("a",), 5), Stage(1, ("b",), 4)], "shortest", 9),
    ],
)
def test_the_joint_network_has_the_steps_of_the_longest_stage(stages, uneven, epochs, tmp_path):
    tasks = {"a": make_task("a"), "b": make_task("b", examples=90)}  # 4 and 9 batches
    config = make_run(["a"], uneven=uneven)
    baselines = Baselines(config, tmp_path, tasks, stages, None, lambda: None, False)
    assert baselines._joint_epochs() == epochs


@pytest.mark.parametrize(("uneven", "batches"), [("cycle", 9), ("shortest", 4)])
def test_a_dense_network_trains_for_as_many_steps_as_the_subnetwork(uneven, batches, tmp_path):
    tasks = {"a": make_task("a"), "b": make_task("b", examples=90), "c": make_task("c")}  # 4, 9 and 4 batches
    stages = [Stage(0, ("a", "b"), 2, uneven), Stage(1, ("c",), 3)]
    baselines = Baselines(make_config(), tmp_path, tasks, stages, None, lambda: None, False)
    module = begin(begin(begin(make_module(*tasks.values()), "a"), "b"), "c")
    steps = {}
    for task in tasks:
        start = module.run_step
        baselines._fit_alone(module, "dense", task, pl.Callback())
        steps[task] = module.run_step - start
    assert steps == {"a": 2 * batches, "b": 2 * batches, "c": 3 * 4}
