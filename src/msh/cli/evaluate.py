"""`msh evaluate`, `python evaluate.py`: measure a run's tasks again."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from msh.cli.app import show_help
from msh.cli.arguments import split_arguments
from msh.cli.composing import command
from msh.cli.errors import user_errors

VIOLATED = 4
"""Exit code where a task has changed since it was frozen."""


@dataclass
class EvaluatePaths:
    """Folders."""

    data_dir: str | None = None
    """Folder of the data; null: where the run had it."""


@dataclass
class EvaluateConfig:
    """Settings of `evaluate`."""

    run: str = MISSING
    """The run folder."""
    unsafe: bool = False
    """Call code that the config names outside msh, torch and Lightning: only for folders whose origin you trust."""
    paths: EvaluatePaths = EvaluatePaths  # type: ignore[assignment]


ConfigStore.instance().store(name="evaluate_schema", node=EvaluateConfig)


@command("evaluate")
def _evaluate(config: DictConfig) -> None:
    from msh.cli.train import quiet_lightning
    from msh.report.terminal import print_scores
    from msh.training.evaluation import evaluate_run

    quiet_lightning()
    if OmegaConf.is_missing(config, "run"):
        raise ValueError("which run? give its folder: msh evaluate run=RUN_DIR")
    folder = Path(config.run)
    evaluation = evaluate_run(folder, config.paths.data_dir, config.unsafe)
    print_scores(evaluation.rows)
    print(f"written: {folder / 'evaluation.json'}")
    if evaluation.violations:
        sys.exit(VIOLATED)


def main() -> None:
    """Run the command with the process's arguments."""
    with user_errors():
        flags, overrides = split_arguments(sys.argv[1:])
        if not show_help("evaluate", flags):
            sys.argv[1:] = [*flags, *overrides]
            _evaluate()


if __name__ == "__main__":
    main()
