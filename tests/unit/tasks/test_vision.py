"""Image data sets, with files in MNIST's format that the tests write; nothing is downloaded."""

import bz2
import gzip
import struct

import pytest
import torch
import torchvision.datasets as sets
from scipy.io import savemat

from messages import says
from msh.tasks import build_task
from msh.tasks.vision import vision

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def idx(tensor):
    """Convert a tensor to bytes in the IDX format: magic number, sizes, values."""
    sizes = struct.pack(f">{tensor.dim()}i", *tensor.shape)
    return struct.pack(">HBB", 0, 8, tensor.dim()) + sizes + tensor.to(torch.uint8).numpy().tobytes()


@pytest.fixture
def root(tmp_path):
    """Make a data directory with 30 and 10 28x28 images in place of MNIST's."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", 30), ("t10k", 10)):
        labels = torch.arange(count) % 10
        images = (labels.view(-1, 1, 1) * 25 + torch.arange(28)).expand(count, 28, 28)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(idx(labels))
    return tmp_path


@pytest.fixture(autouse=True)
def network_is_down(monkeypatch):
    """Let any download fail as without internet; return the attempts."""
    attempts = []

    def download(self):
        attempts.append(type(self).__name__)
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    def download_url(*args, **kwargs):
        attempts.append("USPS")
        raise OSError("Error downloading usps.bz2")

    for name in ("MNIST", "EMNIST", "SVHN", "CIFAR10"):
        monkeypatch.setattr(getattr(sets, name), "download", download)
    monkeypatch.setattr(sets.usps, "download_url", download_url)
    return attempts


def test_images_and_labels_are_read(root, network_is_down):
    data = vision("MNIST", str(root))
    assert (data.kind, data.outputs) == ("classification", 10)
    assert data.train.inputs.shape == (30, 1, 28, 28)
    assert data.test.targets.tolist() == list(range(10))
    assert data.train.inputs[3, 0, 0, 2].item() == pytest.approx((3 * 25 + 2) / 255)
    assert data.train.inputs.max() <= 1.0
    assert network_is_down == []


def test_they_become_a_task(root):
    task = build_task("mnist", vision("MNIST", str(root)), normalize="all", val_fraction=0.4)
    assert [len(task.splits[name]) for name in ("train", "val", "test")] == [18, 12, 10]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_named_with_its_directory(file, share, root):
    path = root / "MNIST" / "raw" / file
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="cut short or damaged") as caught:
        vision("MNIST", str(root))
    assert str(root) in str(caught.value)
    assert "MNIST" in str(caught.value)


@pytest.mark.parametrize("file", FILES)
def test_a_file_with_other_contents_is_named_with_its_directory(file, root):
    (root / "MNIST" / "raw" / file).write_bytes(b"<html>404 Not Found</html>" * 40)
    with pytest.raises(ValueError, match="cut short or damaged") as caught:
        vision("MNIST", str(root))
    assert str(root) in str(caught.value)


def test_images_and_labels_must_be_equally_many(root):
    (root / "MNIST" / "raw" / FILES[1]).write_bytes(idx(torch.arange(29) % 10))
    with pytest.raises(ValueError, match="30 inputs and 29 targets"):
        build_task("mnist", vision("MNIST", str(root)))


def test_missing_files_are_named_if_downloading_is_off(tmp_path, network_is_down):
    with pytest.raises(FileNotFoundError) as caught:
        vision("MNIST", str(tmp_path / "nowhere"), download=False)
    message = str(caught.value)
    assert all(file in message for file in FILES)
    assert str(tmp_path / "nowhere") in message
    assert "downloading is switched off" in message
    assert network_is_down == []


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "EMNIST", "SVHN", "USPS", "CIFAR10", "CIFAR100"])
def test_a_failed_download_names_the_folder_for_the_files(name, tmp_path, network_is_down):
    with pytest.raises(FileNotFoundError) as caught:
        vision(name, str(tmp_path))
    message = str(caught.value)
    assert f"{name} is not in the data directory {tmp_path}" in message
    assert "downloading failed (Error downloading" in message
    assert "paths.data_dir=DIR" in message
    assert network_is_down == [name]


def test_one_missing_file_of_four_is_missing(root):
    (root / "MNIST" / "raw" / FILES[2]).unlink()
    with pytest.raises(FileNotFoundError, match="t10k-images-idx3-ubyte"):
        vision("MNIST", str(root), download=False)


def test_packed_files_are_not_data(root):
    path = root / "MNIST" / "raw" / FILES[0]
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte"):
        vision("MNIST", str(root), download=False)


def test_an_unknown_data_set_is_rejected_with_the_nearest(root):
    with pytest.raises(ValueError, match=says("source.name", value="MNITS", meant="MNIST")):
        vision("MNITS", str(root))


# ---- sets of other formats


@pytest.mark.parametrize(("split", "first", "outputs"), [("letters", 1, 26), ("digits", 0, 10), (None, 0, 47)])
def test_emnist_is_upright_and_its_classes_are_numbered_from_0(split, first, outputs, tmp_path):
    raw = tmp_path / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    images = torch.zeros(10, 28, 28)
    images[:, 3, 20] = 255  # row 3 in the file, whose images are stored sideways
    for part in ("train", "test"):
        prefix = raw / f"emnist-{split or 'balanced'}-{part}"
        prefix.with_name(f"{prefix.name}-images-idx3-ubyte").write_bytes(idx(images))
        prefix.with_name(f"{prefix.name}-labels-idx1-ubyte").write_bytes(idx(torch.arange(10) + first))
    data = vision("EMNIST", str(tmp_path), split=split)
    assert (data.outputs, len(data.classes)) == (outputs, outputs)
    assert data.classes[0] == ("a" if split == "letters" else "0")
    assert data.test.targets.tolist() == list(range(10))
    assert data.train.inputs[4].nonzero().tolist() == [[0, 20, 3]]


def test_usps_is_read(tmp_path):
    for name, count in (("usps.bz2", 12), ("usps.t.bz2", 5)):
        rows = [f"{i % 10 + 1} " + " ".join(f"{k + 1}:{1 if k == i else -1}" for k in range(256)) for i in range(count)]
        (tmp_path / name).write_bytes(bz2.compress("\n".join(rows).encode()))
    data = vision("USPS", str(tmp_path))
    assert (data.train.inputs.shape, data.outputs) == ((12, 1, 16, 16), 10)
    assert data.test.targets.tolist() == [0, 1, 2, 3, 4]
    assert data.train.inputs[11].nonzero().tolist() == [[0, 0, 11]]


def test_svhn_is_read(tmp_path, monkeypatch):
    pixels = torch.zeros(32, 32, 3, 4, dtype=torch.uint8)
    pixels[5, 6, 2, 1] = 255
    labels = torch.tensor([[10], [1], [2], [9]], dtype=torch.uint8)
    for name in ("train_32x32.mat", "test_32x32.mat"):
        savemat(tmp_path / name, {"X": pixels.numpy(), "y": labels.numpy()})
    monkeypatch.setattr(sets.SVHN, "_check_integrity", lambda self: True)  # these files are not the real ones
    data = vision("SVHN", str(tmp_path))
    assert data.test.targets.tolist() == [0, 1, 2, 9]
    assert data.train.inputs.shape == (4, 3, 32, 32)
    assert data.train.inputs[1].nonzero().tolist() == [[2, 5, 6]]


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("EMNIST", "leters", says("source.split", value="leters", meant="letters")),
        ("MNIST", "letters", r"source.split = 'letters' .*EMNIST only.* MNIST"),
    ],
)
def test_an_unknown_split_is_rejected(name, split, message, root):
    with pytest.raises(ValueError, match=message):
        vision(name, str(root), split=split)


@pytest.mark.parametrize(
    ("name", "file"), [("EMNIST", "emnist-balanced-"), ("SVHN", "test_32x32.mat"), ("USPS", "usps.t.bz2")]
)
def test_the_error_names_each_data_sets_files(name, file, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        vision(name, str(tmp_path), download=False)
    assert file in str(caught.value)
