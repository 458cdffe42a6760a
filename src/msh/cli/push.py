"""Share a trained network: write its file, its results and a model card to the Hugging Face hub, or to a folder."""

from __future__ import annotations

import tempfile
from argparse import ArgumentParser, Namespace
from pathlib import Path

CARD = "README.md"
HERE = "."
"""Address of a folder in its own card: it may be moved."""


def arguments(parser: ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("source", metavar="SOURCE", help="run folder, network or subnetwork file, or hf://user/name")
    parser.add_argument(
        "repo",
        metavar="REPO",
        help="user/name on the Hugging Face hub, with @BRANCH for another branch than main; or a folder, as ./NAME",
    )
    parser.add_argument(
        "--license", metavar="ID", help="licence of the network, such as mit or cc-by-4.0, for its card"
    )
    parser.add_argument("--private", action="store_true", help="make a new repository private")


def push(given: Namespace) -> None:
    """Write the files, and upload them unless they are for a folder.

    Raises:
        FileNotFoundError: there is no such network.
        ValueError: an argument or a file is invalid, or the hub refuses or cannot be reached.
    """
    from msh.inference.hub import repository

    if _is_folder(given.repo):
        folder = Path(given.repo).expanduser()
        if (folder / ".hydra").exists():
            raise ValueError(f"{folder} is a run folder: choose another one, which gets a copy")
        folder.mkdir(parents=True, exist_ok=True)
        _write(given.source, folder, HERE, folder.resolve().name, given.license)
        print(f"written: {folder}")
        return
    place = repository(given.repo)
    with tempfile.TemporaryDirectory() as name:
        _write(given.source, Path(name), str(place), place.name.partition("/")[2], given.license)
        print(f"uploaded: {_upload(Path(name), place, given.private)}")


def _is_folder(repo: str) -> bool:
    """Return true for a path: one that starts as `./`, `../`, `/` or `~`, or ends with a slash."""
    return repo.startswith((".", "/", "~")) or repo.endswith("/")


def _write(source: str, folder: Path, address: str, name: str, licence: str | None) -> None:
    """Write the network's file, its results if its run has them, and the card."""
    from msh.errors import without_secrets
    from msh.files.atomic import write_bytes, write_text
    from msh.files.state_file import read_state
    from msh.inference.hub import FILE, source_file
    from msh.report.card import write_card
    from msh.runs.results import FILE_NAME, Results

    path = source_file(source)
    state = read_state(path, "network", "subnetwork").state
    results = Results.load(path.parent) if (path.parent / FILE_NAME).is_file() and path.name == FILE else None
    card = write_card(state, results, address, name, licence)
    write_bytes(folder / FILE, path.read_bytes())
    write_text(folder / CARD, card)
    if results is not None:
        write_text(folder / FILE_NAME, without_secrets((path.parent / FILE_NAME).read_text()))


def _upload(folder: Path, place: object, private: bool) -> str:
    from msh.inference.hub import Repository, hub_errors

    assert isinstance(place, Repository)
    with hub_errors(place) as hub:
        api = hub.HfApi(library_name="msh")
        api.create_repo(place.name, private=private or None, exist_ok=True)
        if place.revision is not None:
            api.create_branch(place.name, branch=place.revision, exist_ok=True)
        api.upload_folder(
            repo_id=place.name, folder_path=folder, revision=place.revision, commit_message="Add a network of msh"
        )
        return f"{hub.constants.ENDPOINT}/{place.name}"
