"""Find the configs: in the wheel, or at the top of a checkout."""

from __future__ import annotations

from pathlib import Path

import msh


def config_folder() -> str:
    """Return the folder of `config.yaml`."""
    package = Path(msh.__file__).resolve().parent
    for folder in (package / "conf", package.parents[1] / "conf"):
        if (folder / "config.yaml").is_file():
            return str(folder)
    raise FileNotFoundError(f"msh's configs are neither in {package} nor beside its source: install it again")
