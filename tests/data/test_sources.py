"""The data sets known by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits

from excise.data import load_data, load_images, read_folder
from excise.data.sources import cifar10, digits, gtsrb
from excise.errors import DataError
from excise.registry import find, rows

needs_real_data = pytest.mark.skipif(
    not os.environ.get("EXCISE_DATA"),
    reason="EXCISE_DATA is not set: no real CIFAR-10 and GTSRB parquet files to read",
)


@pytest.mark.fast
def test_digits_are_those_of_scikit_learn() -> None:
    data = load_data("digits")
    assert data.test is not None
    assert (len(data.train), len(data.test)) == (1262, 535)
    assert data.train.shape == data.test.shape == (1, 8, 8)
    assert data.train.classes == tuple("0123456789")
    assert not data.train.mirror
    # Every pixel of every image is there once, and the share is the same in every class.
    bunch = load_digits()
    ours = torch.cat([data.train.images, data.test.images]).float().sum()
    assert ours == torch.from_numpy(bunch.images).mul(255 / 16).round().sum()
    for train, test in zip(data.train.counts(), data.test.counts(), strict=True):
        assert test / (train + test) == pytest.approx(0.3, abs=0.01)
    # Images 0, 10 and 20 of the file show a 0; the file's fourth 0 is the first for testing.
    zeros = torch.from_numpy(bunch.images[bunch.target == 0]).mul(255 / 16).round()
    assert torch.equal(data.train.images[data.train.labels == 0][0, 0].double(), zeros[0])
    assert torch.equal(data.test.images[data.test.labels == 0][0, 0].double(), zeros[3])


@pytest.mark.fast
def test_digits_are_always_split_the_same() -> None:
    first, second = digits(), load_data("digits")
    assert first.train.fingerprint() == second.train.fingerprint()
    pixels = {tuple(image.flatten().tolist()) for image in first.train.images}
    assert first.test is not None
    assert not pixels & {tuple(image.flatten().tolist()) for image in first.test.images}


@pytest.mark.fast
def test_digits_grow_on_request() -> None:
    data = digits(size=32, channels=3, limit=50)
    assert data.train.shape == (3, 32, 32)
    assert data.train.counts() == [5] * 10
    assert len(data.mean) == len(data.std) == 3


@pytest.mark.fast
def test_mean_and_std_are_those_of_the_training_images() -> None:
    data = load_data("digits")
    pixels = data.train.floats().double()
    assert data.mean == (pytest.approx(float(pixels.mean()), abs=1e-5),)
    assert data.std == (pytest.approx(float(pixels.std(unbiased=False)), abs=1e-5),)


@pytest.mark.fast
def test_images_of_one_color_have_a_std_to_divide_by(
    tree: Callable[..., Path], png: Callable[..., bytes]
) -> None:
    data = load_data(tree({"a": [png((255, 51, 0))] * 2}))
    assert data.mean == (1.0, 0.2, 0.0)
    assert data.std == (1.0, 1.0, 1.0)


@pytest.mark.fast
@pytest.mark.parametrize("name", ["cifar10", "gtsrb"])
def test_named_sets_are_found_under_root_or_the_variable(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    png: Callable[..., bytes],
    write_parquet: Callable[..., None],
) -> None:
    monkeypatch.delenv("EXCISE_DATA", raising=False)
    remedy = (
        f"Set EXCISE_DATA .* holds {name}/, pass parquet:DIR, or use torchvision:{name.upper()}"
    )
    with pytest.raises(DataError, match=f"parquet files of {name}, got no EXCISE_DATA.* {remedy}"):
        load_data(name)
    with pytest.raises(
        DataError, match=f"parquet files of {name}, got none in .*{name}'. {remedy}"
    ):
        load_data(name, root=tmp_path)
    names = ["a", "b"]
    write_parquet(tmp_path / name / "train-0.parquet", [png((51, 51, 51))], [0], names=names)
    write_parquet(tmp_path / name / "test-0.parquet", [png(2)], [1], names=names)
    data = load_data(name, root=str(tmp_path))
    assert data.train.mirror == (name == "cifar10")
    assert data.mean == ((0.4914, 0.4822, 0.4465) if name == "cifar10" else (0.0, 0.0, 0.0))
    monkeypatch.setenv("EXCISE_DATA", str(tmp_path))
    loader = {"cifar10": cifar10, "gtsrb": gtsrb}[name]
    assert loader().train.fingerprint() == data.train.fingerprint()
    # In gray, the constants for three channels do not fit and are measured instead.
    assert loader(channels=1).mean == (0.2,)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("cifr10", "a data source or a folder, got 'cifr10'. Did you mean 'cifar10'?"),
        ("parket:here", "Did you mean 'parquet:DIR'?"),
        ("torchvison:CIFAR10", "Did you mean 'torchvision:NAME'?"),
        ("zzz", "Known: digits, cifar10, gtsrb, parquet:DIR, hub:OWNER/NAME, torchvision:NAME."),
    ],
)
def test_an_unknown_source_draws_a_suggestion(source: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(source)
    with pytest.raises(DataError, match=message):
        load_images(source)


@pytest.mark.fast
def test_every_named_row_of_the_registry_loads() -> None:
    for row in rows("data"):
        if row.target:
            assert find("data", row.name).load().__name__ == row.name


@needs_real_data
def test_real_cifar10() -> None:
    data = load_data("cifar10")
    assert data.test is not None
    assert data.train.counts() == [5000] * 10
    assert data.test.counts() == [1000] * 10
    assert data.train.shape == data.test.shape == (3, 32, 32)
    assert data.train.classes[:2] == ("airplane", "automobile")
    assert data.train.mirror
    mean = torch.stack([data.train.images[:, c].float().mean() for c in range(3)]) / 255
    assert mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)


@pytest.mark.fast
@pytest.mark.parametrize("source", ["~nosuchuser/x", Path("~nosuchuser/x"), "parquet:~nosuchuser"])
def test_a_home_of_nobody_is_explained(source: str | Path) -> None:
    message = r"~NAME stands for that user's home directory, got .*~nosuchuser.*Check the path"
    for load in (load_data, load_images):
        with pytest.raises(DataError, match=message):
            load(source)
    with pytest.raises(DataError, match=message):
        load_data("cifar10", root="~nosuchuser")
    with pytest.raises(DataError, match=message):
        read_folder("~nosuchuser/x")


@needs_real_data
def test_real_gtsrb() -> None:
    data = load_data("gtsrb")
    assert data.test is not None
    assert (len(data.train), len(data.test)) == (14_280, 12_630)
    assert data.train.num_classes == 43
    assert min(data.train.counts()) >= 200
    assert data.train.shape == (3, 32, 32)
    assert not data.train.mirror


@needs_real_data
def test_a_limit_decodes_few_real_pictures() -> None:
    whole = load_images("cifar10", split="test")
    few = load_images("cifar10", split="test", limit=30)
    assert few.counts() == [3] * 10
    first = (whole.labels == 4).nonzero().flatten()[:3]
    assert torch.equal(few.images[few.labels == 4], whole.images[first])
