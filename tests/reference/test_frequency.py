"""Worked values of the frequency view (Zeng, Park, Mao, Jia, ICCV 2021)."""

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from excise.dct import dct2, idct2
from excise.detection.network import features
from excise.evaluation.spectrum import high_frequency_share, mean_magnitude
from excise.triggers import Patch


def random(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_a_constant_of_10_has_dc_320_and_nothing_else():
    found = dct2(torch.full((32, 32), 10.0, dtype=torch.float64))
    assert float(found[0, 0]) == pytest.approx(320)
    found[0, 0] = 0
    assert float(found.abs().max()) < 1e-10
    assert float(mean_magnitude(torch.full((2, 3, 32, 32), 10 / 255))[0, 0]) == pytest.approx(320)


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 1, 8, 12), (5, 7)])
def test_parseval_the_inverse_and_scipy(shape):
    planes = random(*shape)
    found = dct2(planes)
    assert float((found**2).sum()) == pytest.approx(float((planes**2).sum()))
    assert torch.allclose(idct2(found), planes, atol=1e-12)
    assert np.allclose(found.numpy(), dctn(planes.numpy(), axes=(-2, -1), norm="ortho"))


def test_the_detector_sees_8_bit_values_per_channel_without_logarithm():
    images = random(4, 3, 32, 32).float()
    bytes_ = (255 * images).round().to(torch.uint8)
    expected = dctn(bytes_.numpy().astype(np.float64), axes=(-2, -1), norm="ortho")
    assert np.allclose(features(bytes_).numpy(), expected, atol=2e-3)
    assert torch.equal(features(images), features(bytes_))


def test_a_patch_changes_more_high_frequencies_than_a_smooth_pattern():
    clean = torch.full((1, 3, 32, 32), 0.4)
    patch = Patch(torch.ones(3, 3, 3), torch.ones(3, 3, dtype=torch.bool), -3, -3)(clean) - clean
    line = torch.linspace(-1, 1, 32)
    hill = 0.2 * torch.exp(-(line[:, None] ** 2 + line**2) / 0.3).expand(1, 3, 32, 32)
    # A block of one color is low-pass filtered noise, so most of its energy is not high either.
    assert 0.015 < float(high_frequency_share(patch)) < 0.025
    assert float(high_frequency_share(hill)) < 1e-6
