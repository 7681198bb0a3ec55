"""Crops and mirror images of a batch, against the same thing done image by image."""

import pytest
import torch
import torch.nn.functional as F

from excise.training.augment import crop_and_flip

pytestmark = pytest.mark.fast


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def slowly(images, padding, flip, generator):
    """Each image for itself: pad with black, cut a window out, mirror it."""
    n, _, h, w = images.shape
    mirrored = torch.rand(n, 1, generator=generator) < 0.5 if flip else torch.zeros(n, 1).bool()
    shift = torch.randint(0, 2 * padding + 1, (2, n, 1), generator=generator)
    result = torch.empty_like(images)
    for k in range(n):
        padded = F.pad(images[k], (padding,) * 4)
        top, left = (int(s) for s in shift[:, k, 0])
        window = padded[:, top : top + h, left : left + w]
        result[k] = window.flip(-1) if mirrored[k] else window
    return result


@pytest.mark.parametrize("shape", [(7, 1, 8, 8), (5, 3, 6, 9), (1, 3, 32, 32), (4, 4, 5, 3)])
@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_it_equals_the_plain_restatement(shape, padding, flip, dtype):
    images = torch.randint(0, 256, shape, generator=generator(1)).to(dtype)
    given = images.clone()
    fast = crop_and_flip(images, padding, flip, generator(2))
    assert torch.equal(fast, slowly(images, padding, flip, generator(2)))
    assert torch.equal(images, given)
    assert fast.dtype == dtype


def test_nothing_asked_nothing_done():
    images = torch.rand(3, 2, 5, 6)
    assert torch.equal(crop_and_flip(images, 0, False, generator()), images)


def test_every_shift_and_both_sides_occur():
    images = torch.zeros(4000, 1, 3, 3)
    images[:, 0, 1, 2] = 1  # right of the middle: mirrored, it lies left of it
    places = crop_and_flip(images, 1, True, generator()).flatten(1)
    counts = places.sum(0).view(3, 3)
    # The pixel goes to row 0, 1 or 2 and column 1, 2 or out; mirrored to column 1, 0 or out.
    assert (counts > 0).all()
    assert counts[:, 1].sum() == pytest.approx(4000 / 3, rel=0.1)
    assert counts[:, 0].sum() == pytest.approx(4000 / 6, rel=0.15)
    assert places.sum() == pytest.approx(4000 * 2 / 3, rel=0.05)


def test_what_comes_in_from_outside_is_black():
    images = torch.full((200, 3, 4, 4), 255, dtype=torch.uint8)
    assert set(crop_and_flip(images, 2, True, generator()).unique().tolist()) == {0, 255}


def test_the_same_generator_state_gives_the_same():
    images = torch.rand(9, 1, 8, 8)
    first = crop_and_flip(images, 2, True, generator(3))
    assert torch.equal(first, crop_and_flip(images, 2, True, generator(3)))
    assert not torch.equal(first, crop_and_flip(images, 2, True, generator(4)))


def test_channels_last_is_an_image_like_any_other():
    images = torch.rand(4, 3, 8, 8)
    last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(
        crop_and_flip(images, 2, True, generator()), crop_and_flip(last, 2, True, generator())
    )
