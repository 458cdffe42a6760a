"""The runs whose results are recorded: a few seconds each."""

from pathlib import Path
from typing import Any

from golden.recording import FOLDER, outcome, resume, run, scores_alone, told_to_end_after
from integration.running import SMALL

QUIET = ["logger=none", "checkpoint.min_seconds=0"]
MLP = [*SMALL, *QUIET]
WEIGHTS = "pruning.granularity=weight"
"""What `pruning=gradual` chose in a network of any size when the runs were recorded."""
IMAGES = ["threads=1", "trainer.accelerator=cpu", "callbacks=none", "report=false", *QUIET]
SEQUENTIAL, PARALLEL, MIXED = (f"+experiment={name}" for name in ("sequential", "parallel", "mixed"))
STAGES = "curriculum=[[digits,breast_cancer],{tasks:[wine],max_epochs:4}]"
MIXED_RUN = [
    *(MIXED, "tasks=[digits,breast_cancer,wine]", STAGES, "trainer.max_epochs=3", "pruning.density=0.3"),
    *("backbone.norm=true", *MLP),
]
CONF = f"--config-dir={FOLDER / 'conf'}"
DATA = f"paths.data_dir={FOLDER / 'texts'}"

RUNS: dict[str, list[str]] = {
    "sequential": [SEQUENTIAL, "tasks=[digits,wine,diabetes]", "trainer.max_epochs=4", *MLP],
    "parallel": [  # wide enough for linear layers in sparse form
        *(PARALLEL, "tasks=[breast_cancer,wine,iris]", "trainer.max_epochs=3", *MLP, "backbone.width=512", WEIGHTS),
    ],
    "mixed": MIXED_RUN,
    "gated": [
        *(
            SEQUENTIAL,
            "tasks=[breast_cancer,wine]",
            "pruning=gated",
            "pruning.gate.step=0.1",
            "pruning.gate.tolerance=9",
        ),
        *("trainer.max_epochs=7", *MLP),
    ],
    "reuse learned": [
        *(SEQUENTIAL, "tasks=[wine,iris,breast_cancer]", "pruning=learned", "reuse=learned", "pruning.density=0.5"),
        *("pruning.scores=random", "trainer.max_epochs=4", *MLP),
    ],
    "reuse all": [
        *(SEQUENTIAL, "tasks=[mails,letters]", "reuse=all", "backbone=transformer", "backbone.vocabulary=64"),
        *("backbone.width=16", "backbone.heads=2", "backbone.hidden=32", "pruning.density=0.3"),
        *("trainer.max_epochs=4", *IMAGES, DATA, CONF),
    ],
    "granularity neuron": [
        *(PARALLEL, "tasks=[digits,wine]", "pruning.granularity=neuron", "pruning.density=0.2"),
        *("trainer.max_epochs=3", *MLP),
    ],
    "lottery": [SEQUENTIAL, "tasks=[breast_cancer,iris]", "pruning=lottery", "trainer.max_epochs=10", *MLP],
    "at_init": [
        *(SEQUENTIAL, "tasks=[digits]", "tasks.digits.variants={split_classes:[[0,1,2],[3,4,5]]}", "pruning=at_init"),
        *("pruning.criterion.name=gradient", "pruning.sample=100", "backbone=resnet18", "backbone.width=4"),
        *("pruning.density=0.3", "trainer.max_epochs=2", *IMAGES),
    ],
    "baselines and ensemble": [
        *(PARALLEL, "tasks=[wine,iris]", "tasks.wine.variants=3", "+ensembles={all:[wine_0,wine_1,wine_2]}"),
        *("baseline=[dense,finetune,joint]", "trainer.max_epochs=3", *MLP),
    ],
    "interrupted": MIXED_RUN,
}
STOPPED = {"interrupted": 100}
"""Run to the optimizer step after which it is told to end; it is resumed then."""


def record_run(name: str, folder: Path, *settings: str) -> dict[str, Any]:
    """Do a run in a folder, with more settings; returns what is recorded of it."""
    if name in STOPPED:
        with told_to_end_after(STOPPED[name]):
            run(folder, *settings, *RUNS[name])
        assert list((folder / "checkpoints").rglob("epoch-*.ckpt")), "the run was not stopped within a fit"
        resume(folder)
    else:
        run(folder, *settings, *RUNS[name])
    return outcome(folder)


def record_scores(name: str, folder: Path) -> dict[str, Any]:
    """Do a run in float64; returns its scores and sizes, which hardly depend on how a processor rounds."""
    return scores_alone(record_run(name, folder, "trainer.precision=64-true"))
