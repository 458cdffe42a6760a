"""Log a run folder to one W&B run, also across resumes and without a network."""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from msh.compat import use_offline, without_launch
from msh.errors import one_of
from msh.runs.results import Results
from msh.runs.tables import Table
from msh.tracking.bitmaps import Bitmaps, same_size
from msh.tracking.catching_up import CatchesUp
from msh.tracking.wandb_file import STEP, Logged, read_offline, set_aside_unsent

log = logging.getLogger(__name__)

MODES = ("online", "offline", "disabled")
SETTINGS: dict[str, Any] = {"console": "off", "finish_timeout": 60.0}
"""W&B's settings, unless its variables (WANDB_CONSOLE, ...) set them: the console shows progress that would be stored
line by line, and `train.log` has the rest; at the end, uploads have a minute, as without a network they never end."""


def new_run_id() -> str:
    """Return the run id that a W&B sweep's agent has chosen, or a random one."""
    return (os.environ.get("WANDB_SWEEP_ID") and os.environ.get("WANDB_RUN_ID")) or secrets.token_hex(4)


def wandb_logger(
    directory: str,
    project: str | None,
    entity: str | None = None,
    name: str | None = None,
    group: str | None = None,
    job_type: str | None = None,
    tags: Sequence[str] = (),
    mode: str | None = None,
    fallback: str | None = None,
    timeout: float = 30.0,
    artifacts: bool = True,
) -> RunWandbLogger:
    """Make a W&B logger for a run folder, without asking the user anything.

    Args:
        directory: the run folder; files go to its `wandb/`.
        project: in W&B.
        entity: in W&B; the user's default when None.
        name: the run's; W&B chooses one when None.
        group: when None, the experiment; for a multirun's job, with the sweep's folder.
        job_type: when None, "train", or "multirun" for a multirun's job.
        tags: additional to the experiment's name and the seed.
        mode: "online", "offline" or "disabled"; when None, WANDB_MODE decides, and without it: offline unless
            the user is logged in.
        fallback: "offline": without a network, an online run is logged offline; None: that is an error.
        timeout: seconds to wait for W&B at the start.
        artifacts: record data sets, subnetwork files and the network as artifacts.
    Raises:
        ValueError: a setting is invalid, or the mode needs a login and there is none.
    """
    mode = mode or os.environ.get("WANDB_MODE") or ("online" if _logged_in() else "offline")
    one_of("logger.wandb.mode", mode, MODES)
    if fallback is not None:
        one_of("logger.wandb.fallback", fallback, ("offline",))
    if not project:
        raise ValueError("logger.wandb.project names no project: set it, or leave W&B out with logger=csv")
    if mode == "online" and not _logged_in():
        raise ValueError(
            "logger.wandb.mode = 'online' needs a login: `wandb login`, or WANDB_API_KEY; without one, "
            "logger.wandb.mode=offline"
        )
    results = Results.load(Path(directory))
    is_job, sweep = _multirun()
    os.environ.setdefault("WANDB_SILENT", "true")
    return RunWandbLogger(
        Path(directory),
        fallback,
        timeout,
        artifacts and mode != "disabled",
        project=project,
        entity=entity,
        name=name,
        group=group or (f"{results.experiment}/{sweep}" if is_job else results.experiment),
        job_type=job_type or ("multirun" if is_job else "train"),
        tags=list(dict.fromkeys([results.experiment, f"seed-{results.seed}", *tags])),
        id=results.run_id,
        resume="allow",
        mode=mode,
    )


def _multirun() -> tuple[bool, str]:
    """Return (True for a multirun's job, the sweep folder's name)."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return False, ""
    return True, Path(HydraConfig.get().sweep.dir).name


def _logged_in() -> bool:
    """Look for a W&B key in the environment and in the login file, without asking or connecting."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import netrc

    try:
        hosts = netrc.netrc().hosts
    except (OSError, netrc.NetrcParseError):
        return False
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    return host in hosts


class RunWandbLogger(CatchesUp, WandbLogger):
    """Log to W&B; a resumed run continues there with no value lost and none twice.

    Args:
        folder: the run folder.
        fallback: "offline" or None, as in `wandb_logger`.
        timeout: seconds to wait for W&B at the start.
        artifacts: record artifacts.
        run: additional arguments for `wandb.init`.
    """

    title = "W&B"

    def __init__(self, folder: Path, fallback: str | None, timeout: float, artifacts: bool, **run: Any) -> None:
        import wandb

        ours = {name: value for name, value in SETTINGS.items() if f"WANDB_{name.upper()}" not in os.environ}
        settings = wandb.Settings(init_timeout=timeout, finish_timeout_raises=True, **ours)
        super().__init__(save_dir=str(folder), settings=settings, **run)
        self._wandb_init.pop("anonymous", None)  # W&B warns about it, even if it is None
        self.folder, self._fallback, self._timeout, self._artifacts = folder, fallback, timeout, artifacts
        self._logged, self.resumed = Logged(), False
        self.points = self._logged.points

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Return the W&B run; start it if needed.

        Raises:
            ConnectionError: W&B cannot be reached in online mode, and there is no fallback.
        """
        if self._experiment is None:
            self._start()
        return self._experiment

    def _start(self) -> None:
        import wandb
        from wandb.errors import AuthenticationError, CommError

        earlier = read_offline(self.folder / "wandb")
        try:
            run = self._init()
        except AuthenticationError as error:
            raise ValueError(f"W&B refuses the login: {error}; `wandb login` makes a new one") from error
        except CommError as error:
            reason = str(error).splitlines()[0]
            if self._fallback is None:
                raise ConnectionError(
                    f"logger.wandb.mode = 'online', but W&B cannot be reached within {self._timeout:g} s: {reason}; "
                    "logger.wandb.mode=offline logs into the run folder, to be uploaded later by `wandb sync`; "
                    "logger.wandb.fallback=offline does so whenever there is no network"
                ) from error
            log.warning(
                "W&B cannot be reached (%s): logging offline, as logger.wandb.fallback says; later: wandb sync %s",
                reason,
                self.folder / "wandb",
            )
            wandb.teardown()  # frees the run's id
            self._wandb_init["mode"] = "offline"
            with without_launch():
                run = super().experiment
        if run.offline:
            self.resumed, self._logged = earlier is not None, earlier or Logged()
        elif run.resumed or earlier:
            set_aside_unsent(self.folder / "wandb")
            self.resumed = True
            latest = dict(run.summary)
            self._logged = Logged(last=latest.get("_step", -1), before=latest.get(STEP, 0), latest=latest)
        self.points = self._logged.points
        log.info("W&B run: %s", f"offline; later: wandb sync {Path(run.dir).parent}" if run.offline else run.url)

    def _init(self) -> Any:
        """Start the W&B run, with a service of this process's own if the parent's still has the run.

        A service that a process inherits, as from a notebook or an agent, never frees the runs of processes that were
        killed.
        """
        import wandb

        with without_launch():
            try:
                return super().experiment
            except Exception as error:
                if not str(error).endswith("is in use"):
                    raise
                wandb.teardown()
                os.environ.pop("WANDB_SERVICE", None)
                return super().experiment

    def has(self, step: int, name: str, value: object) -> bool:
        """Return True for a value that W&B has."""
        return self._logged.has(step, name, value)

    def write(self, values: Mapping[str, Any], step: int) -> None:
        """Log values as a row, after all rows that W&B has."""
        self._logged.last = max(self._logged.last + 1, self.experiment.step)
        self.experiment.log({**values, STEP: step}, step=self._logged.last, commit=True)

    @rank_zero_only
    def log_bitmaps(self, bitmaps: Bitmaps, step: int) -> None:
        """Log bitmaps; those with the same name as a row, in which W&B expects one size."""
        import wandb

        images = {
            name: [wandb.Image(bitmap, caption=caption or None) for caption, bitmap in same_size(by_caption).items()]
            for name, by_caption in bitmaps.items()
        }
        self.log_metrics(images, step)

    @rank_zero_only
    def log_rows(self, name: str, table: Table[Any], step: int) -> None:
        """Log a table."""
        self.log_table(name, table.names, table.values(), step=step)

    @rank_zero_only
    def log_final(self, values: Mapping[str, Any], step: int) -> None:
        """Put the outcome into the run's summary."""
        self.experiment.summary.update(values)

    @rank_zero_only
    def use_data(self, name: str, description: Mapping[str, Any]) -> None:
        """Record the data set as the run's input: an artifact with its description, without its data."""
        import wandb

        artifact = wandb.Artifact(_allowed(f"data-{name}"), "dataset", metadata=dict(description))
        if self._is_new(artifact.name, "latest"):
            with artifact.new_file("data.json") as file:
                file.write(json.dumps(description, indent=1, sort_keys=True))
            if self.experiment.offline:  # `use_artifact` refuses, though this is all it does online
                use_offline(self.experiment, artifact)
            else:
                self.experiment.use_artifact(artifact)

    @rank_zero_only
    def log_file(self, path: Path, name: str, kind: str, aliases: Sequence[str], about: Mapping[str, Any]) -> None:
        """Record a file as an artifact; the file must not change afterwards."""
        import wandb

        name = _allowed(name)
        new = [alias for alias in aliases if self._is_new(name, alias)]
        if new:
            artifact = wandb.Artifact(name, kind, metadata=dict(about))
            artifact.add_file(str(path), policy="immutable")  # without a copy
            self.experiment.log_artifact(artifact, aliases=new)

    def _is_new(self, name: str, alias: str) -> bool:
        """Return True for an artifact that is still to be recorded, and note it as recorded."""
        new = self._artifacts and (name, alias) not in self._logged.artifacts
        self._logged.artifacts.add((name, alias))
        return new

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Do nothing: a run has many fits."""

    @rank_zero_only
    def close(self, status: str) -> None:
        """End the run in W&B: "success", "failed" or "stopped".

        Raises:
            ConnectionError: W&B has not received everything in time.
        """
        if self._experiment is None:
            return
        run, self._experiment = self._experiment, None
        try:
            run.finish(exit_code=0 if status == "success" else 1)
        except TimeoutError as error:
            folder = Path(run.dir).parent
            raise ConnectionError(
                f"it has not received all values and files within {run.settings.finish_timeout:g} s "
                f"(WANDB_FINISH_TIMEOUT); later: wandb sync {folder}"
            ) from error

    @rank_zero_only
    def abandon(self) -> None:
        """Free W&B's service after an error, or it would report that error again when the process exits."""
        import wandb

        wandb.teardown()


def _allowed(name: str) -> str:
    """Turn a name into one that W&B allows for artifacts."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", name)[:128]
