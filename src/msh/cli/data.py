"""`msh data`: load tasks as training would, and show their data."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from hydra.errors import InstantiationException

from msh.cli.app import show_help
from msh.cli.arguments import flag_value, split_arguments
from msh.cli.configs import compose_config
from msh.cli.errors import message_of, user_errors
from msh.errors import Problems
from msh.files.atomic import check_output
from msh.tasks import Task
from msh.training.config import RunConfig

FLAGS = ("--config-dir", "-cd", "-o")


def main() -> None:
    """Run the command with the process's arguments."""
    if show_help("data", sys.argv):
        return
    with user_errors():
        arguments = sys.argv[1:]
        out = Path(flag_value(arguments, "-o") or "data.html")
        if "-o" in arguments:
            at = arguments.index("-o")
            if at + 1 == len(arguments):
                raise ValueError("-o needs a file: -o data.html")
            arguments = arguments[:at] + arguments[at + 2 :]
            check_output("-o", out)
        flags, words = split_arguments(arguments)
        if unknown := [flag for flag in flags[::2] if flag not in FLAGS]:
            raise ValueError(f"msh data has no option {unknown[0]}; it has {', '.join(FLAGS)}")
        names = list(dict.fromkeys(word for word in words if "=" not in word))
        overrides = [word for word in words if "=" in word]
        if names:
            overrides.append(f"tasks=[{','.join(names)}]")
        _show(compose_config(overrides, flag_value(flags, "--config-dir", "-cd")), out)


def _show(config: RunConfig, out: Path) -> None:
    from msh.report.data_page import print_data, write_data_page
    from msh.report.terminal import new_console

    kept = _Kept()
    logging.getLogger("msh").addHandler(kept)
    try:
        tasks = _load(config)
    finally:
        logging.getLogger("msh").removeHandler(kept)
    console = new_console()
    warnings = list(dict.fromkeys(kept.texts))
    print_data(tasks, console)
    for text in warnings:
        console.print(f"warning: {text}", markup=False, highlight=False)
    write_data_page(tasks, warnings, out)
    print(f"written: {out}")


def _load(config: RunConfig) -> dict[str, Task]:
    """Load all tasks; if one fails, try each, so that all problems are raised together."""
    from msh.training.build import build_tasks
    from msh.training.targets import check_task_arguments

    try:
        check_task_arguments(config.tasks)
        return build_tasks(config)
    except (ValueError, OSError, InstantiationException):
        told = set()  # a source's own problem is the same for all variants
        with Problems() as problems:
            for name in config.tasks:
                try:
                    check_task_arguments({name: config.tasks[name]})
                    build_tasks(config, [name])
                except (ValueError, OSError, InstantiationException) as error:
                    message = message_of(error)
                    if message not in told:
                        is_named = f"tasks.{name}." in message or f"task {name!r}" in message
                        problems.add(message if is_named else f"tasks.{name}: {message}")
                    told.add(message)
        raise


class _Kept(logging.Handler):
    """Keep the texts of warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


if __name__ == "__main__":
    main()
