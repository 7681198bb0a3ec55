"""Tensors and arrays a user brings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from excise.data import load_images
from excise.errors import DataError

pytestmark = pytest.mark.fast


def test_tensors_arrays_and_lists_are_taken() -> None:
    images = torch.rand(3, 3, 4, 4)
    want = load_images(images, torch.tensor([0, 2, 1]))
    assert torch.equal(want.images, images)
    assert want.classes == ("0", "1", "2")
    assert want.images.data_ptr() != images.data_ptr()  # later changes of theirs are not ours
    for given in (
        load_images((images, torch.tensor([0, 2, 1]))),
        load_images(images.numpy(), np.array([0, 2, 1])),
        load_images(images.double().numpy(), [0, 2, 1]),
        load_images(images, torch.tensor([0, 2, 1], dtype=torch.int32)),
    ):
        assert given.fingerprint() == want.fingerprint()
    bytes_ = load_images(np.zeros((2, 1, 4, 4), np.uint8), [0, 1], classes=["a", "b", "c"])
    assert bytes_.images.dtype == torch.uint8
    assert bytes_.classes == ("a", "b", "c")
    assert load_images(images, [0, 0, 1], limit=2).labels.tolist() == [0, 1]


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64, np.int8, bool])
def test_labels_of_any_whole_numbers_are_taken(dtype: type) -> None:
    given = load_images(torch.rand(3, 3, 4, 4), np.array([0, 1, 1]).astype(dtype))
    assert given.labels.tolist() == [0, 1, 1]
    assert given.labels.dtype == torch.int64
    assert given.classes == ("0", "1")


@pytest.mark.parametrize("size", [16.0, (16.0, 16), "16", (1, 2, 3), 0, object()])
def test_a_size_that_is_none_is_refused(size: Any) -> None:
    with pytest.raises(DataError, match=r"expected size as one number of pixels or \(height"):
        load_images(torch.rand(2, 3, 4, 4), [0, 1], size=size)


def test_tensors_are_resized_in_their_own_type() -> None:
    images = torch.rand(2, 3, 8, 8)
    floats = load_images(images, [0, 1], size=4).images
    want = F.interpolate(images, size=(4, 4), mode="bilinear", antialias=True)
    assert torch.allclose(floats, want)
    small = load_images((images * 255).to(torch.uint8), [0, 1], size=(4, 6)).images
    assert small.dtype == torch.uint8
    assert small.shape == (2, 3, 4, 6)


def test_channels_are_converted() -> None:
    color = torch.zeros(1, 3, 2, 2)
    color[:, 0] = 1
    assert load_images(color, [0], channels=1).images.flatten().tolist() == pytest.approx(
        [0.299] * 4
    )
    gray = load_images(torch.full((1, 1, 2, 2), 7, dtype=torch.uint8), [0], channels=3)
    assert gray.images.flatten().tolist() == [7] * 12
    with pytest.raises(DataError, match=r"images with 1 or 3 channels, got 4 channels"):
        load_images(torch.zeros(1, 4, 2, 2), [0], channels=3)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 4, 4, 3), [0, 1], r"\(n, c, h, w\), got \(2, 4, 4, 3\), channels last"),
        (torch.zeros(2, 3, 4, 4), None, "a label for every image, got images alone"),
        (torch.zeros(2, 3, 4, 4), [0.5, 1], r"whole numbers of shape \(n,\), got torch.float64"),
        (torch.zeros(2, 3, 4, 4), [[0], [1]], r"got torch.int64 of shape \(2, 1\)"),
        (torch.zeros(2, 3, 4, 4), [0], r"\(n, c, h, w\) and n labels, got images \(2, 3, 4, 4\)"),
        (torch.zeros(0, 3, 4, 4), torch.zeros(0).long(), "at least one image, got none"),
        (torch.zeros(2, 3, 4, 4) - 1, [0, 1], r"float images in \[0, 1\] or uint8"),
        (torch.zeros(2, 3, 4, 4).long(), [0, 1], r"got torch.int64 values"),
        (np.zeros((2, 3, 4, 4), np.uint16), [0, 1], r"got torch.uint16 values"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2) + 0j, r"got torch.complex64 of shape \(2,\)"),
        (torch.zeros(2, 3, 4, 4), np.array([0, 2**64 - 1], np.uint64), "got labels from -1 to 0"),
        (object(), [0, 1], "images as a tensor or an array, got object"),
        (torch.zeros(2, 3, 4, 4), ["cat", "dog"], "labels as a tensor or an array, got list"),
        ("digits", [0, 1], "labels only together with image tensors, got labels and the source"),
    ],
)
def test_what_does_not_fit_is_refused(images: object, labels: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_images(images, labels)


def test_a_split_is_train_or_test() -> None:
    with pytest.raises(DataError, match=r"split 'train' or 'test', got 'val'"):
        load_images("digits", split="val")  # type: ignore[arg-type]


def test_any_source_will_do() -> None:
    images = load_images("digits", split="test", channels=3)
    assert len(images) == 535
    assert images.shape == (3, 8, 8)


def test_labels_beyond_the_named_classes_are_refused() -> None:
    with pytest.raises(
        DataError, match=r"labels from 0 to 0 \(1 classes\), got labels from 0 to 1"
    ):
        load_images(torch.zeros(2, 3, 4, 4), [0, 1], classes=["cat"])
