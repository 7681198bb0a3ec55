"""Spectral: a pattern given by its waves, and the search that pays for waves."""

import pytest
import torch
from scipy.fft import idctn

from excise.inversion import Spectral
from excise.inversion.spectral import AddedWaves

pytestmark = pytest.mark.fast


def test_one_coefficient_adds_one_wave() -> None:
    z = torch.zeros(1, 8, 8)
    z[0, 0, 3] = 0.8
    wave = torch.from_numpy(idctn(z[0].double().numpy(), norm="ortho")).float()
    images = torch.full((2, 1, 8, 8), 0.5)
    assert torch.allclose(AddedWaves(z)(images), images + wave, atol=1e-6)


def test_the_constant_wave_of_an_eight_pixel_image_is_an_eighth_of_its_coefficient() -> None:
    z = torch.zeros(1, 8, 8)
    z[0, 0, 0] = 2.0
    assert torch.allclose(AddedWaves(z)(torch.zeros(1, 1, 8, 8)), torch.full((1, 1, 8, 8), 0.25))
    assert torch.equal(AddedWaves(-z)(torch.zeros(1, 1, 8, 8)), torch.zeros(1, 1, 8, 8))


def test_a_wave_costs_its_length_over_the_channels() -> None:
    z = torch.tensor([[[[3.0, -0.25], [0.0, 0.0]], [[4.0, 0.0], [0.0, 0.5]]]], requires_grad=True)
    norm = Spectral().norms(z)
    assert norm.tolist() == [5.75]
    norm.sum().backward()
    assert z.grad is not None
    assert z.grad.flatten().tolist() == pytest.approx([0.6, -1, 0, 0, 0.8, 0, 0, 1])
