"""Read the header of a state file: its kind, tasks, and how many weights each owns; needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, cast, get_args

from pydantic import Field
from safetensors import SafetensorError, safe_open
from typing_extensions import TypedDict

from msh.checked import check_promised, parsed
from msh.subnetworks.description import PARTS, Families, Holdings, read_description, read_holdings

FORMAT, VERSION = "msh", "2"
Kind = Literal["network", "subnetwork", "plan"]
"""Kinds of state file: a whole network; one frozen task; planned tasks, which have no values."""
KIND_OF_FORMAT: dict[str | None, Kind] = {
    "msh-network-1": "network",
    "msh-subnetwork-2": "subnetwork",  # tasks that read all weights of the tasks that they read
    "msh-subnetwork-3": "subnetwork",
    "msh-plan-1": "plan",
}
"""Version 1 formats: see `version1`."""
HEADER = ("format", "version", "kind", "state", "layout", "recipe", "counts")
"""Metadata that describes the content; the rest are notes on its origin."""
FLOATS = ("F64", "F32", "F16", "BF16")

Size = Annotated[int, Field(ge=0, lt=2**48)]
Shapes = dict[str, list[Size]]
"""Tensor name to shape."""


class Layout(TypedDict):
    """Layout of a file's tensors."""

    shapes: Shapes
    tied: dict[str, str]
    padding: dict[str, int]
    buffers: tuple[str, ...]
    shared: tuple[str, ...]
    draws: NotRequired[Families]
    free_weights: bool


@contextmanager
def opened(path: Path, framework: str = "numpy") -> Iterator[Any]:
    """Open a safetensors file; "pt" loads torch, for its tensors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or not a safetensors file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, framework=framework, device="cpu") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file, or is damaged: {error}") from error


@contextmanager
def damages(path: Path) -> Iterator[None]:
    """Turn any error from a file's content into one that names the file."""
    try:
        yield
    except (ValueError, KeyError, TypeError, IndexError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def read_metadata(path: Path, *kinds: Kind) -> dict[str, str]:
    """Read a state file's metadata alone; arguments and errors of `read_state`."""
    with opened(path) as file:
        metadata: dict[str, str] = file.metadata() or {}
    check_kind(metadata, path, kinds)
    return metadata


def task_names(path: Path, *kinds: Kind) -> list[str]:
    """List a network or subnetwork file's tasks, from its metadata alone; arguments and errors of `read_state`."""
    metadata = read_metadata(path, *kinds)
    with damages(path):
        if "state" not in metadata and "task" in metadata:
            return [metadata["task"]]
        return list(read_description(metadata.get("state"))[0])


def network_file(path: Path) -> Path:
    """Return the network file of a run folder; a file itself."""
    return path / "network.safetensors" if path.is_dir() else path


def check_kind(metadata: Mapping[str, str], path: Path, kinds: Sequence[Kind]) -> Kind:
    """Return the kind of a state file.

    Raises:
        ValueError: it is no state file, or has another kind.
    """
    form = metadata.get("format")
    kind = metadata.get("kind") if form == FORMAT else KIND_OF_FORMAT.get(form)
    if kind not in (kinds or get_args(Kind)):
        actual = f"a {kind} file" if kind else f"its format is {form!r}"
        raise ValueError(f"{path} is not a {' or '.join(kinds or ('state',))} file: {actual}")
    return cast(Kind, kind)


def check_sizes(shapes: Mapping[str, Sequence[int]], held: int) -> None:
    """Raise where a header promises more weights than its file can hold: see `check_promised`."""
    check_promised(sum(prod(shape) for shape in shapes.values()), held, "weights")


def holdings_in(path: Path, *kinds: Kind) -> tuple[Kind, Holdings]:
    """Count what the tasks of a state file own: from its header, or from its tensors where the header has no counts.

    Args:
        path: the file.
        kinds: accepted kinds; all when none is named.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, from a later release, or has another kind.
    """
    with opened(path) as file:
        metadata = file.metadata() or {}
        kind = check_kind(metadata, path, kinds)
        # A plan's content has a digest, which needs its tensors.
        if "counts" in metadata and metadata.get("version") == VERSION and kind != "plan":
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: (part.get_shape(), part.get_dtype()) for name, part in slices.items()}
            try:
                return kind, _counted(metadata, shapes, path.stat().st_size)
            except (ValueError, KeyError, TypeError):  # an earlier release has changed the file: tensors decide
                pass
    if kind == "plan":
        from msh.files.plans import read_plan

        return kind, read_plan(path).state.holdings()
    from msh.files.state_file import read_state

    return kind, read_state(path).state.holdings()


def _counted(metadata: Mapping[str, str], tensors: Mapping[str, tuple[list[int], str]], held: int) -> Holdings:
    """Read the counts in a header, and compare them with the shapes of the file's tensors."""
    layout = parsed(metadata, "layout", Layout)
    shapes: Shapes = layout["shapes"]
    check_sizes(shapes, held)
    tasks, _ = read_description(metadata.get("state"))
    sizes = {name: (tuple(shape), prod(shape)) for name, shape in shapes.items()}
    for name in layout["padding"]:
        shape, size = sizes[name]
        sizes[name] = shape, size - size // shape[0]
    private: dict[str, int | None] = {}
    for task, entry in tasks.items():
        own = [tensors[key] for key in tensors if key.startswith(tuple(f"tasks.{task}.{part}." for part in PARTS))]
        numbers = sum(prod(shape) for shape, dtype in own if dtype in FLOATS)
        private[task] = None if entry.phase == "planned" else numbers
    found = read_holdings(metadata["counts"], tasks, sizes, private)
    for layer in found.layers:
        values = sum(layer.owned[task] for task, entry in tasks.items() if entry.phase != "planned")
        key = f"{'weights' if layout['free_weights'] else 'values'}.{layer.name}"
        if tensors[key][0] != ([*layer.shape] if layout["free_weights"] else [values]):
            raise ValueError(f"counts: {key} has another shape")
    selective = {task for task in tasks if any(f"tasks.{task}.reading.{name}" in tensors for name in shapes)}
    if found.read.keys() != selective:
        raise ValueError("counts: other tasks select the weights they read")
    return found
