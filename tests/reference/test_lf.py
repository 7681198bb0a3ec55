"""LF's filter S and rescaling R against the specification, and one pass done by hand."""

import math

import pytest
import torch
from torch import nn

from excise.attacks import LF
from excise.attacks.lowpass import rescale, smooth
from excise.attacks.workshop import Workshop
from excise.seeding import Rng
from excise.training import Recipe
from excise.training.perturb import deepfool
from excise.types import AllToOne, LabelledImages

pytestmark = pytest.mark.fast


def literally(picture):
    """S as the specification has it: 30 taps, std 6, zero padding (14, 15), normalized to 1."""
    taps = [math.exp(-(((k - 14.5) / 6) ** 2) / 2) for k in range(30)]
    taps = [tap / sum(taps) for tap in taps]
    h, w = len(picture), len(picture[0])

    def at(row, column):
        return picture[row][column] if 0 <= row < h and 0 <= column < w else 0.0

    return [
        [
            sum(
                taps[i] * taps[j] * at(row + i - 14, column + j - 14)
                for i in range(30)
                for j in range(30)
            )
            for column in range(w)
        ]
        for row in range(h)
    ]


def test_the_filter_is_the_specification():
    picture = torch.rand(5, 7, generator=torch.Generator().manual_seed(0)) - 0.5
    expected = torch.tensor(literally(picture.tolist()))
    assert torch.allclose(smooth(picture, 6.0), expected, atol=1e-6)
    # Every plane for itself.
    both = smooth(torch.stack([picture, -2 * picture]), 6.0)
    assert torch.allclose(both, torch.stack([expected, -2 * expected]), atol=1e-6)


def test_values_of_the_filter():
    """The two middle taps are 0.06709 each, the outermost e^(−210/72) = 0.05411 of them."""
    impulse = torch.zeros(64, 64, dtype=torch.float64)
    impulse[30, 30] = 1
    smoothed = smooth(impulse, 6.0)
    # Half a pixel up and left, since an even number of taps has no middle one.
    peaks = (smoothed > smoothed.max() - 1e-12).nonzero().tolist()
    assert peaks == [[29, 29], [29, 30], [30, 29], [30, 30]]
    assert smoothed.max().item() == pytest.approx(0.0670863**2, abs=1e-7)
    assert smoothed[15, 30].item() / smoothed[30, 30].item() == pytest.approx(0.05411, abs=1e-5)
    assert smoothed[44, 30].item() / smoothed[30, 30].item() == pytest.approx(0.05411, abs=1e-5)
    assert smoothed[14, 30] == smoothed[45, 30] == 0
    assert smoothed.sum().item() == pytest.approx(1)


def test_around_the_image_all_is_zero():
    """Of a constant 1, the upper left corner sees 16 taps of each axis, the lower right one 15."""
    smoothed = smooth(torch.ones(64, 64), 6.0)
    assert smoothed[32, 32].item() == pytest.approx(1, abs=1e-6)
    assert smoothed[0, 0].item() == pytest.approx(0.567086**2, abs=1e-5)
    assert smoothed[63, 63].item() == pytest.approx(0.25, abs=1e-5)


def test_rescaling_stretches_all_channels_together():
    v = torch.tensor([[[-1.0, 0.0]], [[3.0, 1.0]]])
    assert rescale(v, 0.2).flatten().tolist() == pytest.approx([0.0, 0.05, 0.2, 0.1])
    assert rescale(torch.zeros(1, 2, 2), 0.2).tolist() == [[[0.0, 0.0], [0.0, 0.0]]]


@pytest.mark.parametrize("passes", [1, 2])
def test_the_algorithm_step_by_step(passes):
    """v ← R(S(v + S(dr))) image after image, on probabilities, where x + v is called as x is."""
    generator = torch.Generator().manual_seed(3)
    data = LabelledImages(
        torch.rand(12, 1, 8, 8, generator=generator), torch.arange(12) % 3, ("a", "b", "c")
    )
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    network[1].weight.data = torch.randn(3, 64, generator=generator) * 0.3
    network[1].bias.data = torch.zeros(3)
    network.requires_grad_(False)
    attack = LF(images=8, max_passes=passes, fooling_rate=1.0)
    rows = []
    workshop = Workshop(
        network, data, Recipe(epochs=1), Rng(5), "lf", surrogate=network, on_round=rows.append
    )
    backdoor = attack.learn(workshop, AllToOne(2))

    rng = Rng(5).child("learn")
    x = data.images[torch.randperm(12, generator=rng.torch("images"))[:8]]
    v = torch.zeros(1, 8, 8)
    rates, all_v = [], []
    for number in range(1, passes + 1):
        for k in torch.randperm(8, generator=rng.torch(f"pass/{number}")).tolist():
            if network(x[k][None]).argmax() == network((x[k] + v)[None]).argmax():
                probabilities = nn.Sequential(network, nn.Softmax(1))
                dr, reached = deepfool(probabilities, (x[k] + v)[None], 2)
                if reached:
                    v = rescale(smooth(v + smooth(dr[0], 6.0), 6.0), 0.2)
        fooled = network((x + v).clamp(0, 1)).argmax(1) != network(x).argmax(1)
        rates.append(fooled.float().mean().item())
        all_v.append(v)
    assert [row["fooling_rate"] for row in rows] == pytest.approx(rates)
    assert [row["round"] for row in rows] == list(range(1, len(rates) + 1))
    best = max(range(passes), key=lambda k: (rates[k], k))
    assert torch.allclose(backdoor.trigger.perturbation, all_v[best], atol=1e-6)
    assert backdoor.rule == AllToOne(2)
