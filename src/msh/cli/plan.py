"""`msh plan`: say which task will own which weight, for all tasks at once."""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from msh.cli.configs import config_folder
from msh.cli.errors import user_errors
from msh.cli.memory import give_large_blocks_back
from msh.cli.resume import take_groups
from msh.training.config import register, run_config

register()


def main() -> None:
    """Run the command with the process's arguments: those of `msh train`, and `-o PLAN`."""

    @hydra.main(version_base="1.3", config_path=config_folder(), config_name="config")
    def plan(config: DictConfig) -> None:
        from msh.training.apart import make_plan

        give_large_blocks_back()
        made = make_plan(run_config(config), out)
        total = made.state.total()
        for task, count in total.owned.items():
            print(f"{task}: {count:,} weights, {count / total.size:.1%}")
        print(f"written: {out}")

    with user_errors():
        out = _take_output()
        take_groups()
        sys.argv.append("hydra=no_folder")
        plan()


def _take_output() -> Path:
    """Take `-o PATH` out of `sys.argv`.

    Raises:
        ValueError: it is not there once, or the command is to run several times.
    """
    if "-m" in sys.argv or "--multirun" in sys.argv:
        raise ValueError("a plan is one file for all tasks: leave out --multirun")
    if sys.argv.count("-o") != 1 or sys.argv[-1] == "-o":
        raise ValueError("where to? end with -o PLAN")
    place = sys.argv.index("-o")
    _, path = sys.argv[place : place + 2]
    del sys.argv[place : place + 2]
    return Path(path)


if __name__ == "__main__":
    main()
