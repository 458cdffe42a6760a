"""Read hostile files, and detect crashes, executed code, huge allocations and files elsewhere."""

import os
import resource
import shutil
import signal
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from fuzz.bytewise import Mutator, damaged

ALLOWED = (ValueError, FileNotFoundError)
"""Errors that a reader may raise: for users, naming the file."""
ROOM = 600 << 20
"""Bytes of address space that reading one small file may take."""
SECONDS = 30
"""Processor time after which reading a small file counts as hanging."""
RUNS_CODE = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "pickle.find_class")
REACHES_OUT = ("socket.connect", "socket.getaddrinfo", "urllib.Request")
CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree")


@dataclass(frozen=True)
class Kind:
    """A kind of file that the program reads.

    Attributes:
        name: of the kind.
        files: path within a folder to content: valid, and all that the reader needs.
        target: which of them is damaged.
        mutators: that know its format.
        read: reads it as the program does; gets the folder.
    """

    name: str
    files: Mapping[str, bytes]
    target: str
    mutators: Sequence[Mutator]
    read: Callable[[Path], object]

    def mutated(self, seed: int, number: int) -> bytes:
        """Make an input, the same for the same seed and number."""
        draw = Random(f"{seed}/{self.name}/{number}")
        mutate = damaged if draw.random() < 0.25 or not self.mutators else draw.choice(self.mutators)
        content = mutate(draw, self.files[self.target])
        return damaged(draw, content) if draw.random() < 0.05 else content


@dataclass
class Outcome:
    """Outcome of a kind's inputs.

    Attributes:
        read: number that were read without error.
        refused: number that were refused with an error for users.
        failures: number of an input to what went wrong.
    """

    read: int = 0
    refused: int = 0
    failures: dict[int, str] = field(default_factory=dict)
    messages: Counter[str] = field(default_factory=Counter)


class _Watch:
    """Record forbidden actions of a reader; audit hooks cannot be removed, so there is only one."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.seen: list[str] = []
        self.others: set[int] = set()
        self.installed = False

    def begin(self, folder: Path) -> list[str]:
        """Watch this thread and the ones it starts; earlier threads are not the reader's."""
        self.seen = []
        self.others = {thread.ident for thread in threading.enumerate() if thread.ident} - {threading.get_ident()}
        self.folder = folder
        return self.seen

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None or threading.get_ident() in self.others:
            return
        if event in RUNS_CODE or event in REACHES_OUT:
            self.seen.append(f"{event} {arguments!r:.200}")
        elif event == "open" and _writes(arguments[1], arguments[2]) and not self._inside(arguments[0]):
            self.seen.append(f"writes {arguments[0]!r}")
        elif event in CHANGES and not self._inside(arguments[1 if event == "os.rename" else 0]):
            self.seen.append(f"{event} {arguments!r:.200}")

    def _inside(self, path: object) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return True  # a file that is open already
        found = os.path.realpath(os.fsdecode(path))
        return found == os.devnull or Path(found).is_relative_to(os.path.realpath(str(self.folder)))


def _writes(mode: object, flags: object) -> bool:
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


_WATCH = _Watch()


@contextmanager
def watched(folder: Path) -> Iterator[list[str]]:
    """Record forbidden actions inside: running code, connecting, changing files outside the folder."""
    if not _WATCH.installed:
        sys.addaudithook(_WATCH.hook)
        _WATCH.installed = True
    try:
        yield _WATCH.begin(folder)
    finally:
        _WATCH.folder = None


@contextmanager
def limited() -> Iterator[None]:
    """Limit memory and time inside: raises MemoryError and TimeoutError."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    previous = signal.signal(signal.SIGVTALRM, _late)
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, before[1]))
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.signal(signal.SIGVTALRM, previous)


def _late(*_: object) -> None:
    raise TimeoutError(f"not read within {SECONDS} seconds of processor time")


def problem_of(kind: Kind, folder: Path) -> tuple[str, str]:
    """Read a folder: ("", error message for the user or ""), or (forbidden action, message)."""
    error: BaseException | None = None
    with watched(folder) as seen, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with limited():
                kind.read(folder)
        except Exception as raised:
            error = raised
    message = "" if error is None else str(error)
    if seen:
        return f"did what no file may make it do: {seen[0]}", message
    if error is None:
        return "", ""
    if any(_is_memory(each) for each in _chain(error)):
        return f"allocates more than {ROOM >> 20} MiB: {message:.300}", message
    if not isinstance(error, ALLOWED) or isinstance(error, UnicodeError):
        return f"{type(error).__name__}, {_where(error)}: {message:.300}", message
    names = (folder.name, *(Path(name).name for name in kind.files))
    if not any(name in message for name in names):
        return f"the error does not name the file ({_where(error)}): {message:.300}", message
    return "", message


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or any(
        text in str(error) for text in ("not enough memory", "can't allocate", "Cannot allocate", "Unable to allocate")
    )


def _where(error: BaseException) -> str:
    """Find the last frame in the program's code."""
    place, found = error.__traceback__, ""
    while place is not None:
        code = place.tb_frame.f_code
        if f"{os.sep}msh{os.sep}" in code.co_filename or not found:
            found = f"{Path(code.co_filename).name}:{place.tb_lineno} {code.co_name}"
        place = place.tb_next
    return found


def place_files(kind: Kind, folder: Path) -> None:
    """Reset a folder to a kind's valid files."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in kind.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def fuzz(kind: Kind, numbers: Sequence[int], seed: int, folder: Path) -> Outcome:
    """Read hostile inputs.

    Args:
        kind: of file.
        numbers: of the inputs.
        seed: of all draws.
        folder: an empty one; an input that fails is kept in `failed/` there.
    """
    outcome, place = Outcome(), folder / "input"
    place_files(kind, place)
    problem, message = problem_of(kind, place)
    if problem or message:
        raise AssertionError(f"{kind.name}: the valid file is not read: {problem or message}")
    for number in numbers:
        place_files(kind, place)
        content = kind.mutated(seed, number)
        (place / kind.target).write_bytes(content)
        (folder / "number").write_text(str(number))  # what it was, if reading it ends the process
        problem, message = problem_of(kind, place)
        if problem:
            outcome.failures[number] = problem
            (folder / "failed").mkdir(exist_ok=True)
            (folder / "failed" / f"{number}-{Path(kind.target).name}").write_bytes(content)
        elif message:
            outcome.refused += 1
            outcome.messages[message.splitlines()[0]] += 1
        else:
            outcome.read += 1
    return outcome
