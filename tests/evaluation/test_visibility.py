"""How visible a trigger is: hand-worked values, and torchmetrics' SSIM the plain way."""

import math

import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from excise.evaluation import Visibility, visibility
from excise.types import LabelledImages, round_to_8_bits


def images(n=6, c=3, side=32, low=0, high=256, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(low, high, (n, c, side, side), generator=generator, dtype=torch.uint8)
    return LabelledImages(pixels, torch.zeros(n, dtype=torch.int64), ("a", "b"))


def shift(steps):
    return lambda x: x + steps / 255


def patch(x):
    x = x.clone()
    x[..., -3:, -3:] = 1.0
    return x


def smooth(x):
    """A gentle slope from left to right, of the patch's kind of strength."""
    return (x + torch.linspace(0, 0.1, x.shape[-1])).clamp(0, 1)


# By hand: an error of 10 in every value is 20·log10(255 / 10) = 28.1308 dB.
@pytest.mark.parametrize(("steps", "psnr"), [(10, 28.1308), (1, 48.1308), (-10, 28.1308)])
def test_a_constant_shift(steps, psnr):
    seen = visibility(images(low=10, high=246), shift(steps))
    assert seen.mean_change == pytest.approx(abs(steps), abs=1e-5)
    assert seen.pixels_changed == 1
    assert seen.psnr == pytest.approx(psnr, abs=1e-3)
    # A constant has DC and nothing else.
    assert seen.high_frequency_share == pytest.approx(0, abs=1e-6)


def test_nothing_changed():
    seen = visibility(images(), lambda x: x.clone())
    assert seen == Visibility(6, 0.0, 0.0, None, pytest.approx(1.0, abs=1e-6), None)
    assert seen.to_json()["psnr"] is None


def test_less_than_half_a_step_is_no_change_of_an_8_bit_image():
    assert visibility(images(low=1, high=255), shift(0.4)).mean_change == 0
    assert visibility(images(low=1, high=255), shift(0.6)).mean_change == pytest.approx(1, abs=1e-5)


def test_a_patch_on_black():
    # By hand: 9 of 64 pixels go from 0 to 255; mean change 255·9/64, error 9/64.
    seen = visibility(images(side=8, high=1, c=1), patch)
    assert seen.pixels_changed == 9 / 64
    assert seen.mean_change == pytest.approx(255 * 9 / 64, rel=1e-6)
    assert seen.psnr == pytest.approx(-10 * math.log10(9 / 64), rel=1e-6)


def test_a_pixel_counts_once_however_many_channels_change():
    def one_channel(x):
        x = x.clone()
        x[:, 1, 0, 0] = 1.0
        return x

    seen = visibility(images(high=1), one_channel)
    assert seen.pixels_changed == 1 / 1024
    assert seen.mean_change == pytest.approx(255 / 3072, rel=1e-6)


def test_an_image_left_alone_has_no_share_and_does_not_make_psnr_infinite():
    def second_only(x):
        x = x.clone()
        x[1:] = patch(x[1:])
        return x

    pair, one = images(2, high=1), images(1, high=1)
    seen, alone = visibility(pair, second_only), visibility(one, patch)
    assert seen.high_frequency_share == pytest.approx(alone.high_frequency_share, rel=1e-6)
    assert seen.psnr == pytest.approx(alone.psnr + 10 * math.log10(2), rel=1e-6)


def test_a_patch_has_more_high_frequency_energy_than_something_smooth():
    given = images(low=20, high=200)
    sharp, soft = (visibility(given, trigger) for trigger in (patch, smooth))
    assert sharp.high_frequency_share > 10 * soft.high_frequency_share
    assert 0 < soft.high_frequency_share < 0.01


def test_noise_has_about_half_of_its_energy_in_high_frequencies():
    def noise(x):
        draw = torch.randint(-20, 21, x.shape, generator=torch.Generator().manual_seed(1))
        return x + draw / 255

    seen = visibility(images(low=20, high=236), noise)
    assert seen.high_frequency_share == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("side", [6, 8, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_is_that_of_torchmetrics(side, channels):
    # More planes than are handed over at once, and a rest.
    given = images(70, channels, side)
    clean = given.floats()
    expected = structural_similarity_index_measure(
        round_to_8_bits(smooth(clean)), clean, sigma=1.5, data_range=1.0
    )
    seen = visibility(given, smooth, batch_size=64)
    assert seen.ssim == pytest.approx(float(expected), abs=1e-5)
    assert 0 < seen.ssim < 1


def test_images_smaller_than_the_window_have_no_ssim():
    seen = visibility(images(side=5), shift(10))
    assert seen.ssim is None
    assert seen.mean_change > 0


def test_large_images():
    seen = visibility(images(2, side=224, low=10, high=246), shift(10))
    assert seen.psnr == pytest.approx(28.1308, abs=1e-3)
    assert seen.ssim is not None


def test_the_batch_size_changes_nothing():
    given = images(10)
    whole, parts = (visibility(given, patch, batch_size=b).to_json() for b in (10, 3))
    assert parts == pytest.approx(whole, rel=1e-6)


def test_given_images_stay_as_they_are():
    given = images()
    before = given.images.clone()
    visibility(given, shift(3))
    assert torch.equal(given.images, before)


def test_floats_are_rounded_to_8_bits_as_well():
    rounded = images(low=20, high=200)
    floats = LabelledImages(rounded.floats() + 0.3 / 255, rounded.labels, rounded.classes)
    assert visibility(floats, shift(10)).to_json() == pytest.approx(
        visibility(rounded, shift(10)).to_json(), rel=1e-4, abs=1e-9
    )
