"""Image data sets through torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msh.names import one_of
from msh.tasks.build import RawData
from msh.tasks.task import Split

CLASSES = {"MNIST": 10, "FashionMNIST": 10, "KMNIST": 10, "CIFAR10": 10, "CIFAR100": 100}


def vision(name: str, root: str, download: bool = True) -> RawData:
    """Load a torchvision data set with its own test split.

    Args:
        name: MNIST, FashionMNIST, KMNIST, CIFAR10 or CIFAR100.
        root: folder in which torchvision keeps (or is to put) the files.
        download: get what is missing from the internet.
    Returns:
        Inputs as float in [0, 1], (examples, channels, height, width).
    Raises:
        ValueError: the name is not allowed, or the files are damaged.
        FileNotFoundError: files are missing and cannot be downloaded.
    """
    one_of("source.name", name, CLASSES)
    train, test = (_load(name, Path(root).expanduser(), is_train, download) for is_train in (True, False))
    return RawData("classification", train, test, CLASSES[name])


def _load(name: str, root: Path, train: bool, download: bool) -> Split:
    data: Any = _open(name, root, train, download)
    pixels = torch.as_tensor(data.data)
    targets = torch.as_tensor(data.targets, dtype=torch.int64)
    images = _channels_first(pixels).float() / 255.0
    return Split(images, targets)


def _open(name: str, root: Path, train: bool, download: bool) -> Any:
    import torchvision.datasets as sets  # takes long to import, and only image tasks need it

    kind = getattr(sets, name)
    try:
        return kind(str(root), train=train, download=False)
    except (RuntimeError, ValueError, AssertionError, EOFError, OSError) as error:
        missing = str(error)
        if not missing.startswith("Dataset not found"):  # what torchvision says of missing files
            raise _damaged(name, root, error) from error
    reason = "downloading is switched off (download=false)"
    if download:
        try:
            return kind(str(root), train=train, download=True)
        except (RuntimeError, OSError) as error:
            reason = f"downloading failed ({error})"
    raise FileNotFoundError(
        f"{name} is not in the data directory {root} ({missing.splitlines()[0]}), and {reason}. "
        f"Put its files where torchvision expects them ({_expected(kind, root)}), "
        "or name the directory that has them with paths.data_dir=DIR"
    )


def _damaged(name: str, root: Path, error: Exception) -> ValueError:
    return ValueError(
        f"the {name} files in {root} cannot be read: cut short or damaged ({str(error) or type(error).__name__}); "
        "delete them and get them again"
    )


def _expected(kind: Any, root: Path) -> str:
    if hasattr(kind, "mirrors"):
        names = ", ".join(Path(file).stem for file, _ in kind.resources)
        return f"{root / kind.__name__ / 'raw'}: {names}"
    return f"{root / kind.base_folder}"


def _channels_first(pixels: Tensor) -> Tensor:
    return pixels[:, None] if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2).contiguous()
