"""Name networks on the Hugging Face hub, `hf://user/name@revision`, and download them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msh.errors import invalid, without_secrets
from msh.files.header import network_file

SCHEME = "hf://"
FILE = "network.safetensors"
ADDRESS = re.compile(r"(?:hf://)?([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", re.ASCII)


@dataclass(frozen=True)
class Repository:
    """A repository on the hub.

    Attributes:
        name: "user/name".
        revision: branch, tag or commit; None: the main branch.
    """

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{SCHEME}{self.name}" + (f"@{self.revision}" if self.revision else "")


def repository(address: str) -> Repository:
    """Read an address on the hub, with or without its scheme.

    Raises:
        ValueError: it is none.
    """
    parts = ADDRESS.fullmatch(address)
    if parts is None or ".." in address:
        raise invalid("the address", "hf://user/name or hf://user/name@revision", address)
    return Repository(parts[1], parts[2])


def source_file(source: str | os.PathLike[str]) -> Path:
    """Return the file of a network: of a run folder, a file itself, or downloaded from the hub into its cache.

    Raises:
        ValueError: an address on the hub cannot be read; the message says why.
    """
    if not str(source).startswith(SCHEME):
        return network_file(Path(source))
    place = repository(str(source))
    with hub_errors(place) as hub:
        return Path(hub.hf_hub_download(place.name, FILE, revision=place.revision, library_name="msh"))


def hub_package(what: str) -> Any:
    """Import `huggingface_hub`.

    Args:
        what: needs it, for the message.
    Raises:
        ValueError: it is not installed.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise ValueError(f"{what} needs the package huggingface_hub: pip install 'msh[hub]'") from error
    return huggingface_hub


@contextmanager
def hub_errors(place: Repository) -> Iterator[Any]:
    """Give the block the package `huggingface_hub`, and turn its errors into ones that say what to do.

    Raises:
        ValueError: the package is missing, the repository or what is asked of it is not there, the token is missing or
            does not allow it, or the hub cannot be reached.
    """
    hub = hub_package(str(place))
    from huggingface_hub import errors

    signed_in = "set HF_TOKEN, or run `hf auth login`"
    try:
        yield hub
    except errors.GatedRepoError as error:
        raise ValueError(f"{place}: its owner has to grant you access first; then {signed_in}") from error
    except errors.LocalTokenNotFoundError as error:
        raise ValueError(f"{place} needs a token that may write there: {signed_in}") from error
    except errors.RepositoryNotFoundError as error:
        raise ValueError(
            f"{place}: there is no such repository; if it is private, {signed_in}, with a token that may read it"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{place}: the repository has no branch, tag or commit {place.revision!r}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise _unreachable(place, hub, error) from error
    except errors.EntryNotFoundError as error:
        raise ValueError(f"{place} holds no network of msh: it has no {FILE}, which `msh push` writes") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401:
            raise ValueError(f"{place} needs a valid token: {signed_in}") from error
        if status == 403:
            raise ValueError(f"{place}: your token does not allow this; make one that may write there") from error
        raise ValueError(f"{place}: the hub answered {status}: {_cause(error)}") from error
    except Exception as error:
        if not isinstance(error, errors.HfHubHTTPError.__mro__[1]):  # HTTPError of httpx or httpx2: it uses either
            raise
        raise _unreachable(place, hub, error) from error


def _unreachable(place: Repository, hub: Any, error: BaseException) -> ValueError:
    endpoint = without_secrets(hub.constants.ENDPOINT)
    return ValueError(f"{place}: the hub at {endpoint} cannot be reached: {_cause(error.__cause__ or error)}")


def _cause(error: BaseException) -> str:
    lines = without_secrets(str(error)).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
