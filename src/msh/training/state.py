"""Save the network after each fit, so that a killed run can resume there."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from msh.checked import parsed
from msh.files.atomic import write_text
from msh.files.sealed import drop_old, is_whole, seal, sealed_files
from msh.files.state_file import StateFile, read_state, save_network
from msh.subnetworks import MultiSubnetwork

log = logging.getLogger(__name__)

PATTERN, DATA = "after-*.safetensors", "data.json"
Counted = dict[str, int | float]
"""The run's counts: its steps, and those of the guarantee."""
NUMBER = re.compile(r"after-(\d{4})\.")


class RunState:
    """A run's `checkpoints` folder.

    `after-NNNN.CHECKSUM.safetensors` is the network after fit N; `<fit>/` holds the checkpoints of the fit under way;
    `data.json` describes the data of the tasks that have begun.

    Args:
        folder: the `checkpoints` folder.
        writes: true in the process that writes (rank 0).
    """

    def __init__(self, folder: Path, writes: bool) -> None:
        self.folder, self.writes = folder, writes

    def newest(self) -> tuple[int, StateFile | None, Counted]:
        """Read the newest network.

        Returns:
            (number of fits that ended, the network after the last of them, the run's counts at that time). A damaged
            file is skipped with a warning, and the run repeats the fit.
        """
        for path in sealed_files(self.folder, PATTERN):
            try:
                if not is_whole(path):
                    raise ValueError(f"{path} is damaged: its checksum is not the one in its name")
                file = read_state(path, "network")
                match = NUMBER.match(path.name)
                assert match
                return int(match[1]) + 1, file, parsed(file.notes, "counted", Counted)
            except (ValueError, KeyError) as error:
                log.warning("%s; falling back to the one before", error)
                if self.writes:
                    path.unlink()
        return 0, None, {}

    def fit_ended(self, number: int, key: str, network: MultiSubnetwork, counted: Counted) -> None:
        """Write the network after a fit; delete the fit's checkpoints and all but the newest networks.

        Weights that no task owns are not written: they are those that the network is built with.

        Args:
            number: index of the fit within the run, from 0.
            key: the fit's.
            network: after the fit.
            counted: the run's counts so far; written in the same file, so that the two never disagree.
        """
        if not self.writes:
            return
        path = self.folder / f"after-{number:04d}.safetensors"
        save_network(path, network, {"counted": json.dumps(counted)}, free_weights=False)
        seal(path)
        drop_old(self.folder, PATTERN)
        shutil.rmtree(self.fit_folder(key), ignore_errors=True)

    def record_data(self, records: Mapping[str, Mapping[str, Any]]) -> None:
        """Write the records of the data of all tasks that have begun (`same_data.data_record`)."""
        if self.writes:
            write_text(self.data_file, json.dumps(records))

    def data(self, file: StateFile | None = None) -> dict[str, dict[str, Any]]:
        """Read the records of data, by task.

        Args:
            file: the run's network; its tasks without a record, as of earlier releases, have their recipe there.
        Raises:
            ValueError: the file of the records is damaged.
        """
        recipes = {} if file is None else {task: entry.recipe for task, entry in file.state.tasks.items()}
        if not self.data_file.exists():
            return recipes
        kind = dict[str, dict[str, Any]]
        try:
            return recipes | cast(kind, parsed({DATA: self.data_file.read_text()}, DATA, kind))
        except ValueError as error:
            cure = "delete it to resume without comparing the data"
            raise ValueError(f"{self.data_file.parent}/{error}: {cure}") from error

    @property
    def data_file(self) -> Path:
        """The file of `data`."""
        return self.folder / DATA

    def fit_folder(self, key: str) -> Path:
        """Return the folder for a fit's checkpoints."""
        return self.folder / key
