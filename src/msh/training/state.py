"""What a killed run goes on from, between fits: the network after the last fit that ended."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path

from msh.checked import parsed
from msh.files.sealed import drop_old, is_whole, seal, sealed_files
from msh.files.state_file import StateFile, read_state, save_network
from msh.subnetworks import MultiSubnetwork

log = logging.getLogger(__name__)

PATTERN = "after-*.safetensors"
NUMBER = re.compile(r"after-(\d{4})\.")


class RunState:
    """The `checkpoints` folder of a run: `after-NNNN.CHECKSUM.safetensors` is the network after fit N; `<fit>/` holds
    the checkpoints of the fit that is under way.

    Args:
        folder: the `checkpoints` folder.
        writes: whether this process writes (rank 0).
    """

    def __init__(self, folder: Path, writes: bool) -> None:
        self.folder, self.writes = folder, writes

    def newest(self) -> tuple[int, StateFile | None, dict[str, int]]:
        """(number of fits that ended, the network after the last of them, what was counted until then).

        A file that cannot be read is passed over, with a warning: what came after the one before it is done again.
        """
        for path in sealed_files(self.folder, PATTERN):
            try:
                if not is_whole(path):
                    raise ValueError(f"{path} is damaged: its checksum is not the one in its name")
                file = read_state(path, "network")
                return self._number(path) + 1, file, parsed(file.notes, "counted", dict[str, int])
            except (ValueError, KeyError) as error:
                log.warning("%s; falling back to the one before", error)
                if self.writes:
                    path.unlink()
        return 0, None, {}

    def fit_ended(self, number: int, key: str, network: MultiSubnetwork, counted: dict[str, int]) -> None:
        """Write the network after a fit, and drop the fit's own checkpoints and all but the newest networks.

        Args:
            number: of the fit within the run, from 0.
            key: the fit's.
            network: after it.
            counted: what the run has counted so far; written in the same file, so that the two never disagree.
        """
        if not self.writes:
            return
        path = self.folder / f"after-{number:04d}.safetensors"
        save_network(path, network, {"counted": json.dumps(counted)})
        seal(path)
        drop_old(self.folder, PATTERN)
        shutil.rmtree(self.fit_folder(key), ignore_errors=True)

    def fit_folder(self, key: str) -> Path:
        """Where a fit's checkpoints go."""
        return self.folder / key

    @staticmethod
    def _number(path: Path) -> int:
        match = NUMBER.match(path.name)
        assert match
        return int(match.group(1))
