"""Show errors as one message, not a traceback."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from msh.cli.app import leave_pipe
from msh.cli.arguments import flag_value
from msh.cli.configs import config_folder
from msh.errors import described, suggestion, without_secrets
from msh.files.atomic import write_text
from msh.runs.results import ENDED, UNFINISHED
from msh.training.launch import fate
from msh.training.preemption import PreemptedError

log = logging.getLogger(__name__)

FULL = "HYDRA_FULL_ERROR"
NEAR = "did you mean"
"""In messages that suggest a name already."""
EXPECTED = (ValueError, FileNotFoundError, OSError, RuntimeError, HydraException, OmegaConfBaseException)
LAUNCHERS = {
    "joblib": "joblib",
    "ray": "ray",
    "ray_aws": "ray",
    "submitit_local": "slurm",
    "submitit_slurm": "slurm",
}
"""Hydra's launchers, to the extra of msh that installs them."""


@contextmanager
def user_errors() -> Iterator[None]:
    """Print the message of an error that a user can fix, and exit with 1; the traceback goes to the log file.

    With HYDRA_FULL_ERROR=1 in the environment, the error is raised instead.
    """
    before = os.environ.get(FULL, "")
    wants_traceback = before not in ("", "0")
    os.environ[FULL] = "1"  # or Hydra prints its own traceback and exits before we see the error
    try:
        yield
    except BrokenPipeError:
        leave_pipe()
    except EXPECTED as error:
        if wants_traceback:
            raise
        _log_traceback(error)
        print(f"error: {without_secrets(message_of(error))}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:  # before a run listens, or in another command
        print("stopped", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    finally:
        os.environ[FULL] = before
        if not before:
            del os.environ[FULL]


class JobError(RuntimeError):
    """A job of a sweep failed; it has only a message, so that it comes back from any launcher's process."""


@contextmanager
def recorded(folder: Path) -> Iterator[None]:
    """Keep a note in the folder of a sweep's job, `unfinished.txt`, until it is finished: it says why it is not.

    Raises:
        JobError: anything that goes wrong, the traceback goes to the log file; or SLURM cancelled a job of submitit's,
            which would wait for a result.
    """
    note = folder / UNFINISHED
    write_text(note, ENDED + "\n")
    try:
        yield
    except Exception as error:
        known = isinstance(error, EXPECTED)
        message = without_secrets(message_of(error) if known else f"{type(error).__name__}: {error}")
        write_text(note, message + "\n")
        _log_traceback(error)
        log.error("failed: %s", message)
        raise JobError(message) from None
    except PreemptedError as stop:
        if "SUBMITIT_EXECUTOR" not in os.environ or stop.signum != signal.SIGTERM or fate() != "cancelled":
            raise
        raise JobError("the job was cancelled") from None
    note.unlink(missing_ok=True)


def _log_traceback(error: BaseException) -> None:
    """Write the traceback into the log file, if there is one yet."""
    files = [handler for handler in logging.getLogger().handlers if isinstance(handler, logging.FileHandler)]
    for handler in files:
        record = log.makeRecord(
            log.name, logging.ERROR, __file__, 0, "the run failed", (), (type(error), error, error.__traceback__)
        )
        handler.handle(record)


def message_of(error: BaseException) -> str:
    """Write the message for the user: the error's own, and the nearest valid name where one is misspelt."""
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        own = error.__cause__
        return message_of(own) if isinstance(own, (*EXPECTED, TypeError)) else described(own)
    text = str(error).strip() or type(error).__name__
    if isinstance(error, OverrideParseException):
        text = text if error.override in text else f"{error.override}: {text}"
        return text if "=" in error.override else _no_setting(error.override)
    if isinstance(error, MissingConfigException):
        return text + _nearest_option(text)
    if isinstance(error, HydraException | OmegaConfBaseException):
        cause = str(error.__cause__).strip() if error.__cause__ is not None else ""
        text = text if not cause or cause.splitlines()[0] in text else f"{text}\n{cause}"
        return text + _nearest_key(text)
    unknown = re.fullmatch(r"there is no setting ([^;\s]+);.*", text)
    return text + suggestion(unknown[1], _groups_in(_own_folders())) if unknown and NEAR not in text else text


def _no_setting(word: str) -> str:
    """Explain an argument that is no KEY=VALUE: a task's name, or a run's folder."""
    if Path(word).is_dir():
        example = f"resume={word} to resume a run, or run={word} in msh evaluate"
    elif any((folder / "tasks" / f"{word}.yaml").is_file() for folder in (Path(config_folder()), *_own_folders())):
        example = f"tasks={word}"
    else:
        example = "tasks=digits"
    return f"{word} is no setting: arguments are KEY=VALUE, such as {example}"


def _nearest_option(text: str) -> str:
    """Suggest an option for "Could not find 'group/option'", from those that the message lists; or an extra."""
    wanted = re.search(r"Could not (?:find|load) '(?:(.*)/)?([^'/]+)'", text)
    if not wanted:
        return ""
    group, name = wanted.groups()
    if group == "hydra/launcher" and name in LAUNCHERS:
        return f"\nThis launcher is not installed: pip install 'msh[{LAUNCHERS[name]}]'"
    listed = re.findall(r"^\s+(\S+)$", text, flags=re.M)  # a message about a list of options has none
    folders = [config_folder(), *re.findall(r"path=file://(.+)$", text, flags=re.M)]  # of the search path
    options = (path.stem for folder in folders for path in (Path(folder) / (group or "")).glob("*.yaml"))
    return suggestion(name, [*listed, *options])


def _nearest_key(text: str) -> str:
    """Suggest a key for one that the config does not have."""
    strange = re.search(
        r"not in struct\s+full_key: tasks\.([^.\s]+)$|tasks\.([^.\s]+)\S*\s.*subclass of TaskConfig", text, re.M
    )
    if strange:
        name = strange.group(1) or strange.group(2)
        folders = [Path(config_folder()), *_own_folders()]
        files = (path for folder in folders for path in (folder / "tasks").glob("*.yaml"))
        text = f"; {name} is not a task of this run, tasks=[NAME,...] chooses them"
        return text + suggestion(name, [path.stem for path in files])
    missing = re.search(r"full_key: (\S+)", text) or re.search(r"[Kk]ey '([^']+)'", text)
    missing = missing or re.search(r"override '([^']+)'", text)
    if not missing or not re.search(r"not in|Could not override|not find", text):
        return ""
    if of_task := re.fullmatch(r"tasks\.[^.]+\.(\S+)", missing.group(1)):
        from msh.training.config import TaskConfig

        return suggestion(of_task.group(1), [field.name for field in fields(TaskConfig)])
    group, dot, _ = missing.group(1).partition(".")
    keys = known_keys()
    return suggestion(missing.group(1), [key for key in keys if key.startswith(group + dot)] if group in keys else keys)


def known_keys() -> list[str]:
    """List all keys of the schema, dotted, and all config groups, the user's too."""
    from msh.training.config import NAMED, SCHEMA

    def walk(node: object, prefix: str) -> Iterator[str]:
        if isinstance(node, dict):
            for key, value in node.items():
                yield f"{prefix}{key}"
                yield from walk(value, f"{prefix}{key}.")

    groups = _groups_in([Path(config_folder()), *_own_folders()])
    return [*walk(OmegaConf.to_container(OmegaConf.structured(SCHEMA)), ""), *groups, *NAMED]


def _own_folders() -> list[Path]:
    """List the folders of the user's configs that the command line names."""
    own = flag_value(sys.argv[1:], "--config-dir", "-cd")
    return [Path(own)] if own else []


def _groups_in(folders: Sequence[Path]) -> list[str]:
    """List the config groups in folders."""
    return [path.relative_to(folder).as_posix() for folder in folders for path in folder.rglob("*") if path.is_dir()]
