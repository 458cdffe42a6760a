"""Show how a task of a trained network is used: code and commands that run as they stand."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from msh.inference.requests import example_input
from msh.inference.router import TEXTS
from msh.recipes import Recipe, own_names
from msh.runs.words import listed, shape_of
from msh.tasks.outputs import Outputs, outputs_from_data
from msh.tasks.preprocessing import steps_from_data
from msh.tasks.steps import Steps

ADDRESS = "http://127.0.0.1:8000"
SHORT = 64
"""Most numbers of an array that a command has in it."""


@dataclass(frozen=True)
class Usage:
    """A task, as others use it.

    Attributes:
        task: its name.
        steps: its preprocessing; the first step reads raw inputs.
        outputs: its answers.
        file: path of a file with inputs, where the code runs; None: the code makes an input.
        own: dotted names of the classes of other code that the network is built with.
    """

    task: str
    steps: Steps
    outputs: Outputs
    file: str | None = None
    own: Sequence[str] = ()

    @property
    def reads(self) -> str:
        """Name of the first step: "images", "table", "tokenize", "next_tokens", "tagged_words", "arrays" or
        "named"."""
        return self.steps[0].step

    @property
    def reads_what(self) -> str:
        """Describe an input for people: columns, texts, or a shape."""
        first: Any = self.steps[0]
        if self.reads == "table":
            return listed(first.inputs)
        if self.reads in TEXTS:
            return "texts"
        if self.reads == "named":
            return listed(first.parts)
        return f"{self.reads}, {shape_of(first.shape)}"

    def python(self, source: str) -> str:
        """Write a program that loads the network and answers inputs.

        Args:
            source: as `msh.load` takes it.
        """
        imports, inputs = self._inputs()
        modules = dict.fromkeys(name.rpartition(".")[0] for name in self.own)
        imports += "".join(f"import {module}\n" for module in modules)
        classes = f", classes={{{', '.join(f'{name!r}: {name}' for name in self.own)}}}" if self.own else ""
        return (
            f"{imports}import msh\n\npredictor = msh.load({source!r}{classes})\n"
            f"answers = predictor.predict({self.task!r}, {inputs})\nprint(answers.to_pandas())\n"
        )

    def _inputs(self) -> tuple[str, str]:
        """Return (imports, the expression of the inputs)."""
        first: Any = self.steps[0]
        if self.reads == "images":
            if self.file is not None:
                return "", repr([self.file])
            return "from PIL import Image\n\n", f'Image.new("{first.mode}", {tuple(first.size[::-1])})'
        if self.reads == "table":
            if self.file is not None:
                return "import pandas as pd\n\n", f"pd.read_csv({self.file!r}, dtype=str)"
            return "", repr(example_input(self.steps))
        if self.reads in TEXTS:
            if self.file is not None:
                texts = f"Path({self.file!r}).read_text()"
                return "from pathlib import Path\n\n", f"[{texts}]" if getattr(
                    first, "files", False
                ) else f"{texts}.splitlines()"
            return "", repr(example_input(self.steps))
        if self.reads == "named":
            arrays = (f"{n!r}: np.zeros({(1, *p.shape)}, dtype={p.dtype!r})" for n, p in first.parts.items())
            return "import numpy as np\n\n", f"{{{', '.join(arrays)}}}"
        if self.file is not None:
            return "import numpy as np\n\n", f"np.load({self.file!r})"
        return "import numpy as np\n\n", f"np.zeros({(1, *first.shape)}, dtype={first.dtype!r})"

    def command(self, source: str) -> str:
        """Write the command that answers the inputs of the file; without one, INPUT stands for it."""
        file = "INPUT ..." if self.file is None else shlex.quote(self.file)
        return f"msh predict {shlex.quote(source)} --task {self.task} {file}{self.allowed}"

    @property
    def allowed(self) -> str:
        """Write the end of a command that lets it build the classes of other code."""
        return "".join(f" --allow {name}" for name in self.own)

    def request(self) -> str | None:
        """Write the command that asks a server of `msh serve`; None where an input is too long for one."""
        address = f"{ADDRESS}/predict/{self.task}"
        if self.reads == "images" and self.file is not None:
            return f"curl {address} -F files=@{shlex.quote(self.file)}"
        if self.reads == "images":
            return None
        if self.reads in ("arrays", "named") and len(str(example_input(self.steps)).split(",")) > SHORT:
            return None
        body = json.dumps({"inputs": [example_input(self.steps)]})
        return f"curl {address} -H 'content-type: application/json' -d {shlex.quote(body)}"


def usage_of(task: str, recipe: Recipe, file: str | None = None, own: Sequence[str] = ()) -> Usage | None:
    """Read how a task is used from its recipe; None for a task of an earlier release, without preprocessing.

    Args:
        task, file: as in `Usage`.
        recipe: the task's.
        own: classes of other code that the backbone is built with; the recipe may name more.
    Raises:
        ValueError: the recipe is damaged.
    """
    if not {"preprocessing", "outputs"} <= recipe.keys():
        return None
    names = [*dict.fromkeys([*own, *own_names(recipe)])]
    return Usage(task, steps_from_data(recipe["preprocessing"]), outputs_from_data(recipe["outputs"]), file, names)
