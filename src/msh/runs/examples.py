"""Read the examples in a run folder: inputs of the test splits, and the network's answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from msh.checked import first_problem

FOLDER, INDEX = "examples", "index.json"


class Example(TypedDict):
    """An example of a task.

    Attributes:
        file: name of the file in the folder that has the input, alone or among others; None if there is none.
        input: what a page shows of it: the name of an image's file, a row's cells by column, a text; or None.
        answer: as `Predictions.to_rows`.
        target: the right answer, as text.
    """

    file: str | None
    input: dict[str, str | float | int | bool | None] | str | None
    answer: dict[str, str | float]
    target: str


_INDEX: TypeAdapter[dict[str, list[Example]]] = TypeAdapter(dict[str, list[Example]])


def read_examples(folder: Path) -> dict[str, list[Example]]:
    """Read a run folder's examples by task; none if it has no index.

    Raises:
        ValueError: the index is damaged, or names a file outside its folder.
    """
    path = folder / FOLDER / INDEX
    if not path.is_file():
        return {}
    try:
        index = _INDEX.validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{path} cannot be read: {first_problem(error)}") from error
    for example in (example for examples in index.values() for example in examples):
        if example["file"] is not None and Path(example["file"]).name != example["file"]:
            raise ValueError(f"{path} cannot be read: {example['file']!r} is not a file's name")
    return index


def file_of(examples: list[Example] | None) -> str | None:
    """Return the path of the first example's file in the run folder; None if there is none."""
    file: Any = examples[0]["file"] if examples else None
    return None if file is None else f"{FOLDER}/{file}"
