"""`msh plan`: plan which task will own which weight, for all tasks at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from msh.cli.app import show_help
from msh.cli.arguments import by_key, split_arguments
from msh.cli.composing import command
from msh.cli.errors import user_errors
from msh.cli.memory import give_large_blocks_back
from msh.errors import refuse_password
from msh.files.atomic import check_output
from msh.files.plans import MadeWith
from msh.training.config import register, run_config

register()


def main() -> None:
    """Run the command with the process's arguments: those of `msh train`, and `-o PLAN`."""

    @command("config")
    def plan(config: DictConfig) -> None:
        from msh.cli.train import quiet_lightning
        from msh.training.apart import make_plan

        quiet_lightning()
        give_large_blocks_back()
        composed = cast(dict[str, Any], OmegaConf.to_container(config, resolve=False))
        made_with: MadeWith = {"config": composed, "overrides": list(HydraConfig.get().overrides.task)}
        file, flops = make_plan(run_config(config), out, made_with)
        total = file.state.total()
        for task, count in total.owned.items():
            cost = f"; {flops[task]:.1%} of the dense network's FLOPs" if task in flops else ""
            print(f"{task}: {count:,} weights, {count / total.size:.1%}{cost}")
        print(f"free: {total.free:,} weights, {total.free / total.size:.1%}")
        print(f"written: {out}")

    if show_help("plan", sys.argv):
        return
    with user_errors():
        out, arguments = _take_output(sys.argv[1:])
        check_output("-o", out)
        flags, overrides = split_arguments(arguments)
        for key, value in by_key(overrides).items():  # the plan stores them
            refuse_password(key, value)
        sys.argv[1:] = [*flags, *overrides, "hydra=no_folder"]
        plan()


def _take_output(arguments: list[str]) -> tuple[Path, list[str]]:
    """Separate `-o PATH` from the other arguments.

    Raises:
        ValueError: it does not occur once, or the command is to run several times.
    """
    if "-m" in arguments or "--multirun" in arguments:
        raise ValueError("a plan is one file for all tasks: leave out --multirun")
    if arguments.count("-o") != 1 or arguments[-1] == "-o":
        raise ValueError("where to? add -o PLAN")
    at = arguments.index("-o")
    return Path(arguments[at + 1]), arguments[:at] + arguments[at + 2 :]


if __name__ == "__main__":
    main()
