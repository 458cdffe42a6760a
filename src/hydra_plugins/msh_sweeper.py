"""Give Hydra the sweeper of msh: it looks for plugins in this package, and imports them in every application."""

# No `from __future__ import annotations`: Hydra runs this file before the module is among sys.modules, where a
# dataclass would look its annotations up.

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import MISSING, DictConfig


@dataclass
class MshSweeperConfig:
    """Settings below hydra.sweeper."""

    _target_: str = "hydra_plugins.msh_sweeper.MshSweeper"
    params: dict[str, str] = field(default_factory=dict)
    """Key to its values, written as on the command line, which replaces them: a,b,c; choice(a,b); range(1,9,2); in a
    search also interval(0.1,0.5), tag(log,interval(0.001,0.1)), int(interval(2,9))."""
    n_trials: int | None = None
    """Trials of a search, at least 1; null: no search, all combinations."""
    n_jobs: int = 1
    """Trials that are chosen and launched together."""
    n_startup_trials: int = 10
    """Trials that are drawn at random before the search learns from them."""
    seed: int = 0
    """Seed of the search."""
    directions: list[str] | None = None
    """minimize or maximize, for each objective; null where these imply it, as mean_score and density do."""
    storage: str | None = None
    """Address of a database for the study, such as postgresql://HOST/DATABASE; null: a file in the sweep's folder."""


ConfigStore.instance().store(group="hydra/sweeper", name="msh", node=MshSweeperConfig, provider="msh")


class MshSweeper(Sweeper):
    """All combinations of settings, or a search among them; a job that crashes does not end it.

    Args:
        settings: see `MshSweeperConfig`.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = MshSweeperConfig(**settings)
        self.config: DictConfig | None = None
        self.launcher: Launcher | None = None
        self.hydra_context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep config and context, and make the launcher that the user chose."""
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run the jobs that the command line asks for."""
        from msh.cli.sweeper import run_sweep

        assert self.config is not None
        assert self.hydra_context is not None
        assert self.launcher is not None
        return run_sweep(self.settings, arguments, self.config, self.hydra_context, self.launcher)


@dataclass
class FleetSweeperConfig:
    """Settings of `msh fleet` below hydra.sweeper."""

    _target_: str = "hydra_plugins.msh_sweeper.FleetSweeper"
    network: str | None = None
    """Network file that the tasks are merged into; null: network.safetensors in the fleet's folder."""
    command: str = MISSING
    """Command line that continues the fleet."""


ConfigStore.instance().store(group="hydra/sweeper", name="fleet", node=FleetSweeperConfig, provider="msh")


class FleetSweeper(MshSweeper):
    """Every task of a plan as a job, merged into one network.

    Args:
        network: see `FleetSweeperConfig`.
        command: see there.
    """

    def __init__(self, network: str | None, command: str) -> None:
        super().__init__()
        self.network, self.command = network, command

    def sweep(self, arguments: list[str]) -> Any:
        """Train and merge the plan's tasks."""
        from msh.cli.fleet import run_fleet

        assert self.config is not None
        assert self.hydra_context is not None
        assert self.launcher is not None
        jobs = self.config, self.hydra_context, self.launcher
        return run_fleet(self.network, self.command, arguments, *jobs)
