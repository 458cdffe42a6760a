"""Eight processes on the CPU, for every kind of experiment, with DDP and with shards: a dry run on a few batches."""

import json

import pytest
from forking import run_ranks
from running import SMALL

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(3000)]

PROCESSES = 8
SETTINGS = [
    *(setting for setting in SMALL if not setting.startswith("trainer.")),
    *("trainer=ddp_sim", f"trainer.devices={PROCESSES}", "trainer.limit_train_batches=4", "trainer.max_epochs=1"),
    *("tasks=[wine,iris,diabetes]", "tasks.wine.batch_size=16", "tasks.iris.batch_size=8", "logger=csv"),
    "tasks.diabetes.batch_size=16",
]
MIXED = ["+experiment=mixed", "curriculum=[[wine,diabetes],[iris]]"]
RUNS = {
    "sequential": ["+experiment=sequential", "baseline=[dense,finetune,joint]"],
    "parallel": ["+experiment=parallel", "uneven=shortest"],
    "mixed": [*MIXED, "reuse=all"],
    "gated": ["+experiment=sequential", "pruning=gated", "trainer.max_epochs=4"],
    "learned": [*MIXED, "pruning=learned", "reuse=learned", "trainer.max_epochs=2"],
    "lottery": ["+experiment=sequential", "pruning=lottery", "pruning.rewind=0", "trainer.max_epochs=2"],
    "at_init": [*MIXED, "pruning=at_init", "pruning.scope=erk"],
    "units": ["+experiment=sequential", "pruning.granularity=unit"],
}
CASES = {
    f"{name}-{how}": [*SETTINGS, *overrides, *strategy]
    for name, overrides in RUNS.items()
    for how, strategy in (("ddp", []), ("fsdp", ["trainer.strategy=fsdp"]))
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of all runs, one after another: starting eight processes costs more than a run."""
    folder = tmp_path_factory.mktemp("eight")
    (folder / "cases.json").write_text(json.dumps(CASES))
    run_ranks(PROCESSES, "tests/integration/ranks.py", folder, cwd=folder)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_eight_processes_agree_and_finish(case, folder):
    first, *others = (json.loads((folder / f"{case}.{rank}.json").read_text()) for rank in range(PROCESSES))
    assert others == [first] * (PROCESSES - 1)
    results = json.loads((folder / case / "results.json").read_text())
    assert (results["status"], results["forgetting"], results["guarantee"]["violations"]) == ("finished", 0.0, 0)
    assert list(first["digests"]) == [task for stage in results["curriculum"] for task in stage]
    assert all(0 < row["density"] <= 0.2 for row in results["tasks"].values())
