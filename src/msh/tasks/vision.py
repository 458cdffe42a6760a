"""Load image data sets through torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msh.errors import one_of
from msh.tasks.build import RawData
from msh.tasks.image_step import ReadImages
from msh.tasks.task import Split

CLASSES = {
    "MNIST": 10,
    "FashionMNIST": 10,
    "KMNIST": 10,
    "EMNIST": 47,
    "SVHN": 10,
    "USPS": 10,
    "CIFAR10": 10,
    "CIFAR100": 100,
}
EMNIST_CLASSES = {"byclass": 62, "bymerge": 47, "balanced": 47, "letters": 26, "digits": 10, "mnist": 10}


def vision(name: str, root: str, download: bool = True, split: str | None = None) -> RawData:
    """Load a torchvision data set with its own test split.

    Args:
        name: MNIST, FashionMNIST, KMNIST, EMNIST, SVHN, USPS, CIFAR10 or CIFAR100.
        root: folder for torchvision's files.
        download: download missing files.
        split: EMNIST's: byclass, bymerge, balanced (if None), letters, digits or mnist.
    Returns:
        Inputs as float in [0, 1], (examples, channels, height, width).
    Raises:
        ValueError: the name or the split is invalid, or the files are damaged.
        FileNotFoundError: files are missing and cannot be downloaded.
    """
    one_of("source.name", name, CLASSES)
    if split is not None:
        if name != "EMNIST":
            raise ValueError(f"source.split = {split!r} is for EMNIST only: remove it for {name}")
        one_of("source.split", split, EMNIST_CLASSES)
    elif name == "EMNIST":
        split = "balanced"
    folder = Path(root).expanduser()
    sets = [_open(name, folder, is_train, download, split) for is_train in (True, False)]
    pixels = [_pixels(name, data) for data in sets]  # uint8, (images, height, width) or (images, channels, ...)
    height, width = pixels[0].shape[-2:]
    step = ReadImages("L" if pixels[0].dim() == 3 else "RGB", (height, width), profiles=True)
    train, test = (Split(step(x), _targets(name, data, split)) for x, data in zip(pixels, sets, strict=True))
    outputs = EMNIST_CLASSES[split] if split else CLASSES[name]
    names = tuple(getattr(sets[0], "classes", ()))[-outputs:]  # torchvision puts "N/A" before EMNIST's letters
    return RawData("classification", train, test, outputs, classes=names, steps=(step,))


def _pixels(name: str, data: Any) -> Tensor:
    """Return the images as they look: uint8, (images, height, width) or (images, 3, height, width)."""
    pixels = torch.as_tensor(data.data)
    if name == "EMNIST":
        pixels = pixels.transpose(1, 2)  # its images are stored sideways
    return pixels if pixels.dim() == 3 or pixels.shape[1] == 3 else pixels.permute(0, 3, 1, 2)


def _targets(name: str, data: Any, split: str | None) -> Tensor:
    targets = torch.as_tensor(data.labels if name == "SVHN" else data.targets, dtype=torch.int64)
    return targets - 1 if split == "letters" else targets  # EMNIST's letters are numbered from 1


def _open(name: str, root: Path, train: bool, download: bool, split: str | None) -> Any:
    import torchvision.datasets as sets  # slow to import, and only image tasks need it

    kind = getattr(sets, name)
    part: dict[str, Any] = {"split": "train" if train else "test"} if name == "SVHN" else {"train": train}
    part |= {"split": split} if split else {}
    try:
        return kind(str(root), **part, download=False)
    except FileNotFoundError as error:
        missing = str(error)
    except (RuntimeError, ValueError, AssertionError, EOFError, OSError) as error:
        missing = str(error)
        if not missing.startswith("Dataset not found"):  # torchvision's words for missing files
            raise ValueError(
                f"the {name} files in {root} cannot be read: cut short or damaged "
                f"({str(error) or type(error).__name__}); delete them and download them again"
            ) from error
    reason = "downloading is switched off (download=false)"
    if download:
        try:
            return kind(str(root), **part, download=True)
        except (RuntimeError, OSError) as error:
            reason = f"downloading failed ({error})"
    raise FileNotFoundError(
        f"{name} is not in the data directory {root} ({missing.splitlines()[0]}), and {reason}. "
        f"Put its files where torchvision expects them ({_expected(kind, root, split)}), "
        "or set paths.data_dir=DIR to the directory that has them"
    )


def _expected(kind: Any, root: Path, split: str | None) -> str:
    """Describe the folder and the names of a data set's files."""
    if split:
        return f"{root / kind.__name__ / 'raw'}: emnist-{split}-{{train,test}}-{{images-idx3,labels-idx1}}-ubyte"
    if hasattr(kind, "split_list"):  # SVHN and USPS
        return f"{root}: {', '.join(kind.split_list[part][1] for part in ('train', 'test'))}"
    if hasattr(kind, "mirrors"):
        names = ", ".join(Path(file).stem for file, _ in kind.resources)
        return f"{root / kind.__name__ / 'raw'}: {names}"
    return f"{root / kind.base_folder}"
