"""The contract of a trigger: a pure function images → images, each image for itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from excise.testing.guards import nothing_global_changes
from excise.triggers import load_trigger, save_trigger
from excise.types import Images, Trigger, round_to_8_bits

__all__ = ["MakeTrigger", "TriggerContract"]

#: From the shape of an image (channels, height, width) to a trigger for such images.
MakeTrigger = Callable[[tuple[int, int, int]], Trigger]

SHAPES = (
    (1, 8, 8),
    (3, 8, 8),
    (1, 28, 28),
    (3, 32, 32),
    (3, 24, 40),
    (3, 64, 64),
    (3, 224, 224),
)


class TriggerContract:
    """What every trigger promises. Override :meth:`make`; the rest is tests."""

    @pytest.fixture
    def make(self) -> MakeTrigger:
        """Return a function from the shape of an image to the trigger for it."""
        pytest.fail("override the fixture `make`: from (channels, height, width) to your trigger")

    @pytest.fixture(params=SHAPES, ids=lambda shape: "x".join(map(str, shape)))
    def images(self, request: pytest.FixtureRequest) -> Images:
        """Return four images: two random ones, a black one and a white one."""
        images = torch.rand(4, *request.param, generator=torch.Generator().manual_seed(0))
        images[2], images[3] = 0, 1
        return images

    @pytest.fixture
    def trigger(self, make: MakeTrigger, images: Images) -> Trigger:
        """Return the trigger for images of this size."""
        _, c, h, w = images.shape
        return make((c, h, w))

    def test_it_keeps_shape_type_device_and_range(self, trigger: Trigger, images: Images) -> None:
        """Images in, images out."""
        for dtype in (torch.float32, torch.float64):
            result = trigger(images.to(dtype))
            assert result.shape == images.shape
            assert result.dtype == dtype
            assert result.device == images.device
            low, high = torch.aminmax(result)
            assert low >= 0
            assert high <= 1

    def test_it_leaves_the_given_images_alone(self, trigger: Trigger, images: Images) -> None:
        """A caller's images stay as they are, also when what comes back is written to."""
        given = images.clone()
        trigger(given).zero_()
        assert torch.equal(given, images)

    def test_it_is_pure(self, trigger: Trigger, images: Images) -> None:
        """The same images give the same result, and no generator moves."""
        with nothing_global_changes():
            first = trigger(images)
        assert torch.equal(first, trigger(images))

    def test_each_image_for_itself(self, trigger: Trigger, images: Images) -> None:
        """What happens to an image does not depend on the batch it is in."""
        together = trigger(images)
        for k in range(len(images)):
            assert torch.equal(together[k], trigger(images[k : k + 1])[0])
        assert torch.equal(together.flip(0), trigger(images.flip(0)))

    def test_it_takes_any_layout(self, trigger: Trigger, images: Images) -> None:
        """Channels last, or a slice of a larger batch, are images like any others."""
        together = trigger(images)
        last = images.contiguous(memory_format=torch.channels_last)
        assert torch.equal(together, trigger(last))
        assert torch.equal(together[::2], trigger(images[::2]))
        assert trigger(images[:0]).shape == images[:0].shape

    def test_a_picture_file_carries_it(self, trigger: Trigger, images: Images) -> None:
        """Some pixel still differs after rounding to 8 bits, or there would be no backdoor."""
        assert not torch.equal(round_to_8_bits(trigger(images)), round_to_8_bits(images))

    def test_it_goes_to_disk_and_back(
        self, trigger: Trigger, images: Images, tmp_path: Path
    ) -> None:
        """A victim's bundle holds its trigger, to the last bit."""
        save_trigger(tmp_path, trigger)
        loaded = load_trigger(tmp_path)
        assert type(loaded) is type(trigger)
        assert torch.equal(loaded(images), trigger(images))
