"""Going on with a run: find its folder, compose its config again, and see that it is the same."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from omegaconf import DictConfig

from msh.files.yaml_files import read_config, read_overrides
from msh.runs.results import FILE_NAME, Results
from msh.training.settings import differences, lacking

CHANGEABLE = (
    "resume",
    "baseline",
    "paths",
    "logger",
    "report",
    "owner_maps",
    "callbacks",
    "checkpoint",
    "hydra",
    "trainer.enable_progress_bar",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "evaluation",
    "objective",
    "skip_finished",
)
"""Settings that a resumed run may change: they do not change what it has learned. On other devices, or on more or fewer
of them, it goes on with the same batches; sums may round otherwise, as they may with other batches of evaluation."""


def rewrite_arguments() -> None:
    """Put a resumed run's own overrides and folder into `sys.argv`, so that Hydra composes the same config there.

    Raises:
        ValueError: the run to resume does not fit the command, or the run folder asked for holds a run already.
        FileNotFoundError: there is no such run.
    """
    take_groups()
    overrides = by_key(sys.argv[1:])
    target = overrides.get("resume", "resume=null").split("=", 1)[1]
    if target in ("null", ""):
        _refuse_used_folder(overrides)
        return
    if target == "auto" and "hydra.run.dir" in overrides:
        target = overrides["hydra.run.dir"].split("=", 1)[1].strip("'\"")
        if not (Path(target) / FILE_NAME).exists():  # the first start of a job that is put back into the queue
            sys.argv[1:] = [override for key, override in overrides.items() if key != "resume"]
            return
    if "-m" in sys.argv or "--multirun" in sys.argv:
        raise ValueError(
            "resume goes on with one run: leave out --multirun; hydra.sweep.dir=SWEEP skip_finished=true goes on with "
            "a sweep"
        )
    folder = find_run(target, overrides)
    merged = _saved_overrides(folder, overrides) | overrides
    merged |= {"resume": f"resume='{folder}'", "hydra.run.dir": f"hydra.run.dir='{folder}'"}
    merged |= {"hydra.output_subdir": "hydra.output_subdir=null", "hydra.mode": "hydra.mode=RUN"}
    sys.argv[1:] = list(merged.values())


def _saved_overrides(folder: Path, given: dict[str, str]) -> dict[str, str]:
    """What a run was started with, by key; what is given again is left out.

    Raises:
        ValueError: they could have any code called.
    """
    path = folder / ".hydra" / "overrides.yaml"
    added = lacking(read_config(folder / ".hydra" / "config.yaml"))
    saved = {key: f"{key}={json.dumps(value)}" for key, value in added.items()} | by_key(read_overrides(path))
    saved = {key: override for key, override in saved.items() if key not in given}
    for key, override in saved.items():
        if key.startswith("hydra") or BUILT.search(override) or not _calls_safely(override):
            raise ValueError(
                f"{path}: {override} is not allowed: it could have any code called; give it again beside resume, if "
                "you trust where the folder is from"
            )
    return saved


def _calls_safely(override: str) -> bool:
    """Whether all that an override says is to be called is safe."""
    if "_target_" not in override:
        return True
    from msh.training.targets import is_safe

    targets = TARGET.findall(override)
    return len(targets) == override.count("_target_") and all(is_safe(target) for target in targets)


BUILT = re.compile(r"\$\{\s*oc\.(decode|create)")
"""In an override whose value is put together later."""
TARGET = re.compile(r"_target_\s*[=:]\s*['\"]?([\w.]+)")
"""In an override, what is to be called."""


def take_groups() -> None:
    """Let `+experiment=NAME` be `experiment=NAME`: the group is in the defaults list, before others, which win."""
    group = re.compile(r"^\+(experiment|procedure|debug|hparams_search)=")
    sys.argv[1:] = [group.sub(r"\1=", argument) for argument in sys.argv[1:]]


def by_key(arguments: list[str]) -> dict[str, str]:
    """Overrides by their key; other arguments under themselves."""
    return {a.split("=", 1)[0].lstrip("+") if "=" in a and not a.startswith("-") else a: a for a in arguments}


def _refuse_used_folder(overrides: dict[str, str]) -> None:
    folder = overrides.get("hydra.run.dir", "=").split("=", 1)[1].strip("'\"")
    if folder and (Path(folder) / FILE_NAME).exists() and "hydra.output_subdir" not in overrides:
        raise ValueError(f"{folder} holds a run already: resume it (resume={folder}), or choose another hydra.run.dir")


def find_run(target: str, overrides: dict[str, str]) -> Path:
    """The run folder that `resume=` means.

    Args:
        target: a run folder, or "auto".
        overrides: of the command, by key.
    Raises:
        FileNotFoundError: it is not a run folder, or there is no unfinished run.
    """
    if target != "auto":
        folder = Path(target.strip("'\"")).resolve()
        if not folder.is_dir():
            raise FileNotFoundError(f"resume = {target}: there is no such folder")
        for needed in (FILE_NAME, ".hydra/overrides.yaml", ".hydra/config.yaml"):
            if not (folder / needed).is_file():
                raise FileNotFoundError(f"resume = {target} is not a run folder: it has no {needed}")
        return folder
    name = overrides.get("experiment", "=train").split("=", 1)[1]
    output = overrides.get("paths.output_dir", "=outputs").split("=", 1)[1].strip("'\"")
    root = Path(output) / Path(name).name  # experiments in folders are named without them
    unfinished = [path.parent for path in root.glob(f"*/{FILE_NAME}") if _is_unfinished(path.parent)]
    if not unfinished:
        raise FileNotFoundError(f"resume = auto: there is no unfinished run below {root}")
    return max(unfinished, key=lambda folder: folder.name).resolve()


def _is_unfinished(folder: Path) -> bool:
    try:
        return Results.load(folder).status != "finished"
    except ValueError:
        return False


def check_same_run(config: DictConfig, folder: Path) -> None:
    """Raise unless a resumed run's config is the one it was started with.

    Raises:
        ValueError: naming the first setting that differs, and both values.
    """
    saved = read_config(folder / ".hydra" / "config.yaml")
    if saved.get("name") != config.get("name"):
        raise ValueError(f"{folder} is a run of experiment {saved.get('name')!r}, not {config.get('name')!r}")
    for key, (before, now) in differences(saved, config, CHANGEABLE).items():
        raise ValueError(
            f"{folder} was started with {key} = {json.dumps(before)}, not {json.dumps(now)}: "
            "a resumed run keeps its settings; start a new run for others"
        )
