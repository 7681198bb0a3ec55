"""The sharpness-aware step against a hand-worked value and slow plain restatements."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from excise.training.sam import moved_by, perturbation, sam_step

pytestmark = pytest.mark.fast


def test_hand_worked():
    """w = (1, 2), g = (3, 4), ρ = 2: ‖|w| ⊙ g‖ = √73, e = 2 · (3, 16) / √73."""
    w, g = torch.tensor([1.0, 2]), torch.tensor([3.0, 4])
    (e,) = perturbation([w], [g], 2.0, adaptive=True)
    torch.testing.assert_close(e, torch.tensor([0.7022, 3.7453]), atol=5e-5, rtol=0)
    (plain,) = perturbation([w], [g], 2.0, adaptive=False)
    torch.testing.assert_close(plain, torch.tensor([1.2, 1.6]))
    # The norm is over all tensors together, however they are cut.
    parts = perturbation([w[:1], w[1:]], [g[:1], g[1:]], 2.0, adaptive=True)
    torch.testing.assert_close(torch.cat(parts), e)


def transcribed(weights, gradients, rho, adaptive):
    """The formula, one number at a time, in plain floating point."""
    square = 0.0
    for w, g in zip(weights, gradients, strict=True):
        for a, b in zip(w.flatten().tolist(), g.flatten().tolist(), strict=True):
            square += ((abs(a) if adaptive else 1.0) * b) ** 2
    norm = math.sqrt(square)
    return [
        torch.tensor(
            [
                rho * (a * a if adaptive else 1.0) * b / norm
                for a, b in zip(w.flatten().tolist(), g.flatten().tolist(), strict=True)
            ],
            dtype=w.dtype,
        ).view(w.shape)
        for w, g in zip(weights, gradients, strict=True)
    ]


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-12)], ids=str
)
def test_against_an_independent_transcription(adaptive, seed, dtype, tolerance):
    """The shapes of a small network, weights and gradients of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(8, 3, 3, 3), (8,), (8,), (16, 8, 1, 1), (5, 16), (5,)]

    def draw(scale):
        return [
            torch.randn(shape, generator=generator, dtype=dtype) * scale ** (number - 2)
            for number, shape in enumerate(shapes)
        ]

    weights, gradients = draw(2.0), draw(3.0)
    rho = 0.5 + seed
    ours = perturbation(weights, gradients, rho, adaptive=adaptive)
    for one, other in zip(ours, transcribed(weights, gradients, rho, adaptive), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=1e-30)
    # ‖e / T‖ = ρ, and e never points against the gradient.
    scaled = [e / w.abs() if adaptive else e for e, w in zip(ours, weights, strict=True)]
    length = math.sqrt(sum(float(s.double().square().sum()) for s in scaled))
    assert length == pytest.approx(rho, rel=1e-5)
    assert all((e * g >= 0).all() for e, g in zip(ours, gradients, strict=True))


def test_no_gradient_gives_no_step():
    (e,) = perturbation([torch.ones(3)], [torch.zeros(3)], 2.0, adaptive=True)
    assert torch.equal(e, torch.zeros(3))


@pytest.mark.parametrize("raised", [False, True])
def test_weights_come_back_bit_for_bit(raised):
    """Also after an exception, and where w + e − e is not w."""
    weights = [nn.Parameter(torch.tensor([1e-8, 1.0, -3.0])), nn.Parameter(torch.rand(4, 4))]
    before = [w.detach().clone() for w in weights]
    steps = [torch.full((3,), 1e8), torch.rand(4, 4)]

    def inside():
        with moved_by(weights, steps):
            torch.testing.assert_close(weights[0].detach(), before[0] + steps[0])
            if raised:
                raise KeyError

    if raised:
        with pytest.raises(KeyError):
            inside()
    else:
        inside()
    assert ((before[0] + steps[0]) - steps[0] != before[0]).any()
    assert all(torch.equal(w, old) for w, old in zip(weights, before, strict=True))


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    ).double()


def test_one_step_against_a_plain_restatement():
    """Two models: one is moved by hand, by w − r · g(w + e)."""
    with torch.random.fork_rng():
        ours, plain = network().train(), network().train()
        images, labels = torch.rand(7, 1, 6, 6, dtype=torch.float64), torch.arange(7) % 3
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.05)
    loss = sam_step(ours, optimizer, lambda: F.cross_entropy(ours(images), labels), rho=0.7)

    at_w = F.cross_entropy(plain(images), labels)
    statistics = {name: b.clone() for name, b in plain.named_buffers()}
    parameters = list(plain.parameters())
    g = torch.autograd.grad(at_w, parameters)
    start = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p, e in zip(parameters, transcribed(start, g, 0.7, True), strict=True):
            p.add_(e)
    again = torch.autograd.grad(F.cross_entropy(plain(images), labels), parameters)
    torch.testing.assert_close(loss.detach(), at_w.detach())
    for p, w, g in zip(ours.parameters(), start, again, strict=True):
        torch.testing.assert_close(p.detach(), w - 0.05 * g)
    # Batch norm saw the first pass alone.
    for name, buffer in ours.named_buffers():
        assert torch.equal(buffer, statistics[name]), name
