"""List every command of `msh` with its help, an example and its arguments, and run the one that is asked for."""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import signal
import sys
import textwrap
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from msh.cli.arguments import flag_value
from msh.cli.configs import config_folder
from msh.cli.own import add_allow, allowed
from msh.errors import suggestion
from msh.training.launch import check_start

HELP = {"-h", "--help"}
GROUPS = {
    "experiment": "tasks, curriculum and settings that belong together",
    "tasks": "tasks to train; several: tasks=[wine,digits]",
    "backbone": "network that all tasks share",
    "pruning": "when and how tasks select their weights",
    "pruning/criterion": "score that decides which weights a task keeps",
    "pruning/schedule": "path of the sparsity to its goal",
    "procedure": "best: our settings; paper: those of the paper's authors",
    "optimizer": "from torch.optim",
    "scheduler": "learning rate over a fit",
    "trainer": "devices, processes and machines",
    "callbacks": "progress bar, early stopping",
    "logger": "where curves go",
    "paths": "folders of the data and of the runs",
    "hparams_search": "search among settings with Optuna, a run per trial",
    "debug": "short runs that look for mistakes",
}
"""Config groups that users choose from; other folders of `conf/` are internal."""


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Attributes:
        help: one line.
        example: a command line.
        arguments: adds its arguments to a parser; None: Hydra parses them, and the module of its name runs it.
        run: runs it.
    """

    help: str
    example: str
    arguments: Callable[[ArgumentParser], object] | None = None
    run: Callable[[Namespace], None] | None = None


# ---- commands without a config


def _merge_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("base", type=Path, metavar="PLAN", help="plan file; or a network file or run folder to add to")
    parser.add_argument(
        "files", type=Path, nargs="+", metavar="FILE", help="subnetwork file of a task, or run folder with several"
    )
    parser.add_argument("-o", dest="out", type=Path, required=True, metavar="NETWORK", help="network file to write")
    parser.add_argument("--allow-missing", action="store_true", help="leave out tasks of the plan that no file holds")


def _merge(given: Namespace) -> None:
    from msh.cli.memory import give_large_blocks_back
    from msh.files.header import network_file
    from msh.files.merging import merge_files

    give_large_blocks_back()
    found = [sorted(path.glob("subnetworks/*.safetensors")) if path.is_dir() else [path] for path in given.files]
    files = [path for paths in found for path in paths]
    print(f"tasks: {', '.join(merge_files(network_file(given.base), files, given.out, given.allow_missing))}")
    print(f"written: {given.out}")


def _one_task_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("network", type=Path, metavar="NETWORK", help="network file or run folder")
    parser.add_argument("task", metavar="TASK", help="name of the task")
    parser.add_argument("-o", dest="out", type=Path, required=True, metavar="FILE", help="file to write")


def _release(given: Namespace) -> None:
    from msh.files.header import network_file
    from msh.files.merging import release_task

    release_task(network_file(given.network), given.task, given.out)
    print(f"written: {given.out}")


def _split(given: Namespace) -> None:
    from msh.files.header import network_file
    from msh.files.merging import split_task

    split_task(network_file(given.network), given.task, given.out)
    print(f"written: {given.out}")


def _inspect_arguments(parser: ArgumentParser) -> None:
    path = "run folder; or one of its files, or a plan; or a setting as for `msh train`, such as backbone=resnet18"
    parser.add_argument("path", metavar="RUN_DIR|FILE|KEY=VALUE", help=path)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="more settings, such as backbone.width=32")
    parser.add_argument("--all", action="store_true", help="show every layer and task; else similar neighbours are one")
    parser.add_argument(
        "--modules",
        action="store_true",
        help="show for each module of the backbone its role, weights, granularities, and the FLOPs of one example, as "
        "it is shown for settings",
    )
    parser.add_argument(
        "--parameters",
        action="store_true",
        help="show for each tensor of the backbone whether tasks share it weight by weight (prunable), have their own "
        "(private), or all use the same (shared), and why",
    )
    parser.add_argument("--config-dir", metavar="DIR", help="folder of your own configs, with settings")
    add_allow(parser)


def _inspect(given: Namespace) -> None:
    from msh.report.inspection import print_folder_or_file, print_modules, print_parameters

    path = Path(given.path)
    if "=" in given.path and not path.exists():
        from msh.cli.inspecting import inspect_settings

        inspect_settings([given.path, *given.overrides], given.config_dir, given.parameters)
    elif given.overrides:
        raise ValueError(f"settings belong to no folder or file: leave out {given.path} or {given.overrides[0]}")
    elif given.parameters:
        print_parameters(path)
    elif given.modules:
        print_modules(path, classes=allowed(given.allow))
    else:
        print_folder_or_file(path, given.all)


def _report_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN_DIR", help="run folder, finished or not")
    page = "page to write; default: RUN_DIR/report.html, and comparison.html for several runs"
    parser.add_argument("-o", dest="out", type=Path, metavar="FILE", help=page)


def _report(given: Namespace) -> None:
    from msh.cli.report import report

    report(given.runs, given.out)


def _predict_arguments(parser: ArgumentParser) -> None:
    from msh.cli.predict import arguments

    arguments(parser)


def _predict(given: Namespace) -> None:
    from msh.cli.predict import predict

    predict(given)


def _generate_arguments(parser: ArgumentParser) -> None:
    from msh.cli.generate import arguments

    arguments(parser)


def _generate(given: Namespace) -> None:
    from msh.cli.generate import generate

    generate(given)


def _export_arguments(parser: ArgumentParser) -> None:
    from msh.cli.export import arguments

    arguments(parser)


def _export(given: Namespace) -> None:
    from msh.cli.export import export

    export(given)


def _serve_arguments(parser: ArgumentParser) -> None:
    from msh.cli.serve import arguments

    arguments(parser)


def _serve(given: Namespace) -> None:
    from msh.cli.serve import serve

    serve(given)


def _push_arguments(parser: ArgumentParser) -> None:
    from msh.cli.push import arguments

    arguments(parser)


def _push(given: Namespace) -> None:
    from msh.cli.push import push

    push(given)


def _sweep_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="SWEEP_DIR", help="folder that has the jobs' run folders in it")


def _sweep(given: Namespace) -> None:
    from msh.cli.sweeper import summarize

    summarize(given.folder)


def _dashboard_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--entity", help="W&B user or team")
    parser.add_argument("--project", help="W&B project; runs log to `msh` unless logger.wandb.project says otherwise")
    parser.add_argument("--name", default="msh", help="name of the workspace")
    parser.add_argument("--update", metavar="URL", help="workspace to put the panels into; default: a new one")
    parser.add_argument("--dry-run", action="store_true", help="write its JSON, and connect to nothing")
    parser.add_argument("-o", dest="out", type=Path, metavar="FILE", help="file for --dry-run; default: the screen")


def _dashboard(given: Namespace) -> None:
    from msh.cli.dashboard import dashboard

    dashboard(given)


COMMANDS = {
    "train": Command("train tasks into one network", "msh train +experiment=sequential"),
    "evaluate": Command("evaluate a run's tasks again", "msh evaluate run=RUN_DIR"),
    "predict": Command(
        "answer new inputs with a trained network",
        "msh predict RUN_DIR --task digits image.png -o answers.csv",
        _predict_arguments,
        _predict,
    ),
    "generate": Command(
        "write texts with a language model",
        'msh generate RUN_DIR --task novels "It was a" --temperature 0.8',
        _generate_arguments,
        _generate,
    ),
    "export": Command(
        "write a task as ONNX, torch.export, or a network file of its own",
        "msh export RUN_DIR --task digits -o digits.onnx",
        _export_arguments,
        _export,
    ),
    "serve": Command(
        "answer requests over HTTP with a trained network",
        "msh serve RUN_DIR --port 8000",
        _serve_arguments,
        _serve,
    ),
    "push": Command(
        "share a network, with a model card: on the hub, or as a folder",
        "msh push RUN_DIR user/name --license mit",
        _push_arguments,
        _push,
    ),
    "sweep": Command(
        "show the results of a sweep so far, and write its files", "msh sweep SWEEP_DIR", _sweep_arguments, _sweep
    ),
    "data": Command("show tasks' data as training would read them", "msh data digits wine -o data.html"),
    "plan": Command("plan which task will own which weight", "msh plan +experiment=sequential pruning=at_init -o PLAN"),
    "fleet": Command(
        "train every task of a plan as a job, and merge them as they finish", "msh fleet PLAN --launcher local --jobs 4"
    ),
    "merge": Command(
        "merge tasks that were trained apart into one network",
        "msh merge PLAN RUN_DIR/subnetworks/*.safetensors -o NETWORK",
        _merge_arguments,
        _merge,
    ),
    "release": Command(
        "remove a task from a network, and free its weights",
        "msh release NETWORK TASK -o NETWORK",
        _one_task_arguments,
        _release,
    ),
    "inspect": Command(
        "show the content of a run folder or a file, or the modules of a backbone",
        "msh inspect RUN_DIR --all",
        _inspect_arguments,
        _inspect,
    ),
    "report": Command(
        "write a run's report, or compare runs", "msh report RUN_DIR [RUN_DIR ...]", _report_arguments, _report
    ),
    "dashboard": Command(
        "make a W&B workspace with the panels of msh",
        "msh dashboard --entity ME --project msh",
        _dashboard_arguments,
        _dashboard,
    ),
    "split": Command(
        "copy a task of a network into a file of its own",
        "msh split NETWORK TASK -o FILE",
        _one_task_arguments,
        _split,
    ),
}
HYDRA = {
    "train": "Choose options of groups (GROUP=OPTION), set any key (KEY=VALUE), resume a run (resume=RUN_DIR; "
    "resume=auto: the newest unfinished one), or train all combinations (-m seed=1,2,3).",
    "plan": "The same GROUP=OPTION and KEY=VALUE as for the runs of the plan's tasks; -o PLAN names the file.",
    "data": "usage: msh data [--config-dir DIR] [-o FILE] TASK ... [KEY=VALUE ...]. Prints splits, shapes, columns and "
    "class counts, and writes a page with samples (-o FILE, data.html by default). All problems are told at once.",
    "fleet": "usage: msh fleet PLAN [--launcher local|slurm|ray] [--jobs N] [-o FILE] [KEY=VALUE ...]. PLAN is a "
    "file of `msh plan`, and holds the settings of its tasks. --launcher says where jobs run (default: "
    "here), --jobs how many at a time, and -o names the network file. Overrides may set what does not "
    "change the result: hydra.launcher.KEY=VALUE, logger=NAME, paths.data_dir=DIR, hydra.sweep.dir=DIR. "
    "The same command continues a fleet that was stopped, and repeats tasks that failed.",
    "evaluate": "run=RUN_DIR names the run folder, paths.data_dir=DIR where its data is now; unsafe=true calls code "
    "that its config names outside msh, torch and Lightning: only for folders that you trust.",
}
"""Commands whose arguments Hydra parses, and what these are."""


# ---- help


def overview() -> str:
    """List all commands, with an example each."""
    lines = [f"  {name:10} {command.help}\n  {'':10}   {command.example}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: msh COMMAND [ARGUMENTS]; `msh COMMAND --help` tells more", "", *lines])


def show_help(name: str, flags: Sequence[str]) -> bool:
    """Print the help of a command that Hydra parses, if its flags ask for it."""
    if not HELP & set(flags):
        return False
    command = COMMANDS[name]
    print(f"example: {command.example}\n\n{command.help.capitalize()}.\n{textwrap.fill(HYDRA[name], 79)}")
    if name in ("train", "plan"):
        print("\nGroups, and the options of each:\n\n" + "\n".join(_groups(flag_value(flags, "--config-dir", "-cd"))))
        print("\nEvery key has a default: --cfg job prints them all.")
        print("Your own options: --config-dir DIR, where DIR/tasks/NAME.yaml adds tasks=NAME.")
    print("Hydra's own flags: --hydra-help")
    return True


def _groups(own: str | None) -> Iterator[str]:
    from msh.training.config import NAMED

    folders = [Path(folder) for folder in (config_folder(), own) if folder]
    for group, sentence in GROUPS.items():
        pattern = "**/*.yaml" if group == "experiment" else "*.yaml"
        found = [path.relative_to(folder / group) for folder in folders for path in (folder / group).glob(pattern)]
        names = {path.with_suffix("").as_posix() for path in found} | set(NAMED.get(group, ()))
        options = sorted(names, key=lambda name: (name.count("/"), name))
        yield f"  {group:18} {sentence}"
        yield textwrap.fill(
            ", ".join(options), 79, initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False
        )


# ---- running


def main() -> None:
    """Run a subcommand with the rest of the arguments; exit quietly where the reader of its output goes away."""
    try:
        _run()
        sys.stdout.flush()
    except BrokenPipeError:
        leave_pipe()


def leave_pipe() -> NoReturn:
    """Exit as a program does whose reader has gone away, such as `head`: with the number of SIGPIPE, without a word."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's own flush at exit fails
    sys.exit(128 + signal.SIGPIPE)


def _run() -> None:
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in HELP:
        print(overview())
        return
    command = COMMANDS.get(name)
    if command is None:
        print(f"error: msh has no command {name!r}{suggestion(name, COMMANDS)}\n\n{overview()}", file=sys.stderr)
        sys.exit(2)
    if command.arguments is None:
        if not show_help(name, arguments):
            # Processes that Lightning starts for more devices run `sys.argv` again: let it name the command's own file.
            sys.argv = [str(Path(__file__).with_name(f"{name}.py")), *arguments]
            run_train() if name == "train" else _module(name).main()
        return
    epilog = f"example: {command.example}"
    parser = ArgumentParser(
        f"msh {name}",
        description=f"{command.help.capitalize()}.",
        epilog=epilog,
        formatter_class=RawDescriptionHelpFormatter,
    )
    command.arguments(parser)
    given = parser.parse_args(arguments)
    from msh.cli.errors import user_errors
    from msh.files.atomic import check_output

    assert command.run is not None
    with user_errors():
        if getattr(given, "out", None) is not None:
            check_output("-o", given.out)
        command.run(given)


def run_train() -> None:
    """Run `train` with the process's arguments; a start that would hang is refused before torch is loaded."""
    if show_help("train", sys.argv[1:]):
        return
    if not {"-m", "--multirun"} & set(sys.argv):  # each job of a multirun has tasks of its own
        try:
            check_start()
        except ValueError as error:
            sys.exit(f"error: {error}")
    _module("train").main()


def _module(name: str) -> Any:
    """Import a command's module; torch, Lightning and Hydra come with it.

    While they load, the garbage collector would look through a million new objects again and again, for a second; none
    of them is garbage, so that it leaves them out later too.
    """
    gc.disable()
    try:
        return importlib.import_module(f"msh.cli.{name}")
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.unfreeze)  # or libraries report what they could not free at the end


if __name__ == "__main__":
    main()
