"""torchvision's data sets: real files written here, and stand-ins where files are checksummed."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

from excise.data import load_data, load_images
from excise.errors import DataError


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """A very small MNIST in its own file format."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 12), ("t10k", 5)):
        images = np.arange(count, dtype=np.uint8)[:, None, None] * np.ones((28, 28), np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        for kind, head, body in (
            ("images-idx3-ubyte", struct.pack(">IIII", 2051, count, 28, 28), images),
            ("labels-idx1-ubyte", struct.pack(">II", 2049, count), labels),
        ):
            content = head + body.tobytes()
            (raw / f"{part}-{kind}").write_bytes(content)
            (raw / f"{part}-{kind}.gz").write_bytes(gzip.compress(content))
    return tmp_path


def test_mnist_files_are_read_by_torchvision(mnist: Path) -> None:
    data = load_data("torchvision:MNIST", root=mnist)
    assert data.train.shape == (1, 28, 28)
    assert data.train.images[:, 0, 0, 0].tolist() == list(range(12))
    assert data.train.labels.tolist() == [k % 10 for k in range(12)]
    assert data.train.num_classes == 10
    assert not data.train.mirror
    assert data.test is not None
    assert data.test.labels.tolist() == [0, 1, 2, 3, 4]
    assert load_images("torchvision:MNIST", root=mnist, limit=3, channels=3).shape == (3, 28, 28)


def test_traffic_signs_come_in_many_sizes(tmp_path: Path) -> None:
    base = tmp_path / "gtsrb" / "GTSRB"
    for label in (0, 1):
        folder = base / "Training" / f"{label:05d}"
        folder.mkdir(parents=True)
        Image.new("RGB", (30 + label, 29), (label, 0, 0)).save(folder / "00000_00000.ppm")
    (base / "Final_Test" / "Images").mkdir(parents=True)
    Image.new("RGB", (40, 41), (9, 9, 9)).save(base / "Final_Test" / "Images" / "00000.ppm")
    (tmp_path / "gtsrb" / "GT-final_test.csv").write_text("Filename;ClassId\n00000.ppm;1\n")
    with pytest.raises(DataError, match=r"one size, got 29×30 .*size="):
        load_data("torchvision:GTSRB", root=tmp_path)
    data = load_data("torchvision:GTSRB", root=tmp_path, size=32)
    assert data.train.shape == (3, 32, 32)
    assert data.train.labels.tolist() == [0, 1]
    assert (data.mean, data.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert data.test is not None
    assert data.test.labels.tolist() == [1]


class Stand:
    """A data set as torchvision makes them, of two gray pictures."""

    parts: tuple[str, ...] = ("train", "test")

    def __init__(self, root: str, split: str = "train", download: bool = False) -> None:
        assert download
        if split not in self.parts:
            raise ValueError(f"Unknown value '{split}' for argument split.")
        self.folder, self.split = root, split

    def __len__(self) -> int:
        return 2

    def __getitem__(self, k: int) -> tuple[Image.Image, Any]:
        return Image.new(
            "RGB", (4, 4), (k + 10 * (self.split not in ("train", "trainval")), 0, 0)
        ), k


def install(monkeypatch: pytest.MonkeyPatch, name: str, factory: type) -> None:
    monkeypatch.setattr(torchvision.datasets, name, factory, raising=False)
    monkeypatch.setattr(torchvision.datasets, "__all__", (*torchvision.datasets.__all__, name))


@pytest.mark.fast
@pytest.mark.parametrize("parts", [("train", "test"), ("trainval", "test"), ("train", "val")])
def test_parts_are_found_whatever_they_are_called(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, parts: tuple[str, str]
) -> None:
    install(monkeypatch, "Stand", type("Other", (Stand,), {"parts": parts}))
    monkeypatch.setenv("HOME", str(tmp_path))
    data = load_data("torchvision:Stand")
    assert data.train.images[:, 0, 0, 0].tolist() == [0, 1]
    assert data.train.classes == ("0", "1")
    assert data.test is not None
    assert data.test.images[:, 0, 0, 0].tolist() == [10, 11]


@pytest.mark.fast
def test_a_set_may_have_no_test_part_but_not_no_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, "Stand", type("Other", (Stand,), {"parts": ("train",)}))
    assert load_data("torchvision:Stand", root=tmp_path).test is None
    install(monkeypatch, "Stand", type("Other", (Stand,), {"parts": ("letters",)}))
    with pytest.raises(DataError, match=r"a training part of torchvision's Stand, got none called"):
        load_data("torchvision:Stand", root=tmp_path)


@pytest.mark.fast
def test_cifar_pictures_may_be_mirrored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, "CIFAR10", Stand)
    data = load_data("torchvision:CIFAR10", root=tmp_path)
    assert data.train.mirror
    assert data.mean == (0.4914, 0.4822, 0.4465)


@pytest.mark.fast
@pytest.mark.parametrize(
    "error", [OSError("no network"), RuntimeError("no network"), ImportError("no network")]
)
def test_a_failed_download_is_explained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    class Broken:
        def __init__(self, root: str, train: bool = True) -> None:
            raise error

    install(monkeypatch, "Broken", Broken)
    with pytest.raises(DataError, match=r"torchvision's Broken under .*Error: no network. Check"):
        load_data("torchvision:Broken", root=tmp_path)


@pytest.mark.fast
def test_other_kinds_of_data_sets_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Boxes(Stand):
        def __getitem__(self, k: int) -> tuple[Image.Image, Any]:
            return super().__getitem__(k)[0], {"boxes": []}

    install(monkeypatch, "Boxes", Boxes)
    with pytest.raises(
        DataError, match=r"one picture and one class number, got other items in torch"
    ):
        load_data("torchvision:Boxes", root=tmp_path)
    with pytest.raises(
        DataError, match=r"with train and test parts, got 'CIFAR1O'. Did you mean 'CI"
    ):
        load_data("torchvision:CIFAR1O")
    with pytest.raises(DataError, match=r"with train and test parts, got 'CocoDetection'"):
        load_data("torchvision:CocoDetection")


@pytest.mark.fast
def test_labels_are_not_taken_from_a_field_of_another_shape(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Wide(Stand):
        targets = np.zeros((2, 8))  # as QMNIST's: the class is one column of eight

    install(monkeypatch, "Wide", Wide)
    assert load_data("torchvision:Wide", root=tmp_path).train.labels.tolist() == [0, 1]
