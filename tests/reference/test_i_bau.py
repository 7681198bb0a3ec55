"""I-BAU's hypergradient against analytic ones and a transcription; the whole method too."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from excise.defenses import IBAU
from excise.seeding import Rng
from excise.training.fit import batches_of
from excise.training.hypergradient import hypergradient
from excise.types import DefenderData, LabelledImages

pytestmark = pytest.mark.fast


def quadratic() -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(4)
    root = torch.randn(3, 3, generator=g).double()
    a = root @ root.T + torch.eye(3).double()
    b = torch.randn(3, 5, generator=g).double()
    c, d = (torch.randn(n, generator=g).double() for n in (3, 5))
    return a, b, c, d, torch.randn(5, generator=g).double().requires_grad_(True)


def test_the_quadratic_toy_has_the_analytic_hypergradient() -> None:
    """L_in = ½ δᵀAδ − δᵀBθ has δ* = A⁻¹Bθ; L_out = ½‖δ − c‖² + d·θ.

    dL_out/dθ = d + BᵀA⁻¹(δ* − c), A being symmetric.
    """
    a, b, c, d, theta = quadratic()
    solution = torch.linalg.solve(a, b @ theta.detach())
    gradients, loss = hypergradient(
        lambda delta: 0.5 * delta @ a @ delta - delta @ b @ theta,
        lambda delta: 0.5 * (delta - c).square().sum() + d @ theta,
        solution, [theta], rate=1 / float(torch.linalg.eigvalsh(a)[-1]), iterations=400,
    )  # fmt: skip
    expected = d + b.T @ torch.linalg.solve(a, solution - c)
    assert torch.allclose(gradients[0], expected, atol=1e-8)
    assert float(loss) == pytest.approx(
        float(0.5 * (solution - c).square().sum() + d @ theta.detach())
    )


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_a_few_iterations_are_a_partial_neumann_series(iterations: int) -> None:
    """v = Σ_{k<K} (I − ηA)ᵏ (δ − c) at any δ, so that K = 1 gives v = ∂L_out/∂δ."""
    a, b, c, d, theta = quadratic()
    delta, eta = torch.tensor([0.3, -0.2, 0.5]).double(), 0.1
    gradients, _ = hypergradient(
        lambda delta: 0.5 * delta @ a @ delta - delta @ b @ theta,
        lambda delta: 0.5 * (delta - c).square().sum() + d @ theta,
        delta, [theta], rate=eta, iterations=iterations,
    )  # fmt: skip
    step = torch.eye(3).double() - eta * a
    v = sum(torch.linalg.matrix_power(step, k) @ (delta - c) for k in range(iterations))
    assert torch.allclose(gradients[0], d + eta * b.T @ v, atol=1e-12)


def test_hand_worked_scalar() -> None:
    """L_in = δ² − δθ, L_out = 3δ + θ², η = .1, θ = 2: v is 3, then 3·.8 + 3 = 5.4.

    ∂Φ/∂θ = .1, so the gradient is 4 + .1·3 = 4.3 for K = 1 and 4.54 for K = 2.
    """
    theta = torch.tensor([2.0], requires_grad=True)
    for iterations, expected in ((1, 4.3), (2, 4.54)):
        (gradient,), _ = hypergradient(
            lambda delta: (delta * delta - delta * theta).sum(),
            lambda delta: (3 * delta + theta * theta).sum(),
            torch.tensor([1.0]), [theta], rate=0.1, iterations=iterations,
        )  # fmt: skip
        assert float(gradient) == pytest.approx(expected)


def test_a_weight_that_the_losses_do_not_know_gets_zeros() -> None:
    idle, theta = torch.ones(2, requires_grad=True), torch.ones(1, requires_grad=True)
    gradients, _ = hypergradient(
        lambda delta: (delta * theta).sum(), lambda delta: delta.sum(), torch.ones(1),
        [idle, theta], rate=0.1, iterations=3,
    )  # fmt: skip
    assert gradients[0].tolist() == [0, 0]
    assert float(gradients[1]) == pytest.approx(-0.1 * 3)


@pytest.mark.parametrize("layer", [nn.Hardsigmoid(), nn.Hardswish(), nn.SiLU(), nn.GELU()])
def test_it_passes_what_torch_cannot_differentiate_twice(layer: nn.Module) -> None:
    """The hard sigmoid of squeeze-excite blocks has no second derivative in torch."""
    theta = torch.tensor([0.7, -1.1]).double().requires_grad_(True)
    delta = torch.tensor([0.3, 0.4]).double()

    def inner(delta: Tensor) -> Tensor:
        total: Tensor = layer(delta * theta).square().sum()
        return total

    (gradient,), _ = hypergradient(
        inner, lambda delta: delta.sum(), delta, [theta], rate=0.1, iterations=1
    )

    def slope(theta: Tensor) -> float:
        at = delta.clone().requires_grad_(True)
        (g,) = torch.autograd.grad(layer(at * theta).square().sum(), at)
        return float(g.sum())

    for i in range(2):
        step = torch.zeros(2).double()
        step[i] = 1e-5
        numeric = (slope(theta.detach() + step) - slope(theta.detach() - step)) / 2e-5
        assert float(gradient[i]) == pytest.approx(-0.1 * numeric, abs=1e-6)


class Small(nn.Module):
    """Smooth, so that small differences mean something; one batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3)
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(torch.tanh(self.bn(self.conv(x))).mean((2, 3)))
        return logits


@pytest.fixture
def network() -> nn.Module:
    with Rng(2).scope("small"):
        return Small().double().eval()


@pytest.fixture
def data() -> DefenderData:
    pictures = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    labelled = LabelledImages(pictures * 0.8 + 0.1, torch.arange(6) % 3, ("a", "b", "c"))
    return DefenderData(labelled, None, "made here")


def test_equals_an_independent_transcription(network: nn.Module, data: DefenderData) -> None:
    """One round of one batch: the inner Hessian written out in full, column by column."""
    rng = Rng(0)
    method = IBAU(rounds=1, iterations=4, perturbation_rate=0.5, inner_rate=0.2, portion=0.34)
    result = method.repair(network, data, rng)
    x, y = data.train.images, data.train.labels
    order = batches_of(6, 100, rng.torch("epoch/1"))[0]
    x, y = x[order], y[order]
    names = [name for name, _ in network.named_parameters()]
    w = [p.detach().clone().requires_grad_(True) for p in network.parameters()]

    def f(x: Tensor) -> Tensor:
        named = dict(zip(names, w, strict=True))
        logits: Tensor = torch.func.functional_call(network, named, (x,))
        return logits

    def inner(delta: Tensor, labels: Tensor = y) -> Tensor:
        return 1e-3 * delta.square().sum() - F.cross_entropy(f(x + delta.view(1, 1, 4, 4)), labels)

    start = torch.zeros(16).double().requires_grad_(True)
    (g,) = torch.autograd.grad(inner(start, f(x).argmax(1)), start)
    delta = (start - 0.5 * g).detach().requires_grad_(True)
    chosen = torch.randperm(6, generator=rng.torch("patched"))[:2]
    gets = torch.zeros(6, 1, 1, 1).double()
    gets[chosen] = 1
    outer = F.cross_entropy(f(x + gets * delta.view(1, 1, 4, 4)), y)
    by_delta, *direct = torch.autograd.grad(outer, [delta, *w])
    (slope,) = torch.autograd.grad(inner(delta), delta, create_graph=True)
    rows = [torch.autograd.grad(s, [delta, *w], retain_graph=True, allow_unused=True)
            for s in slope]  # fmt: skip
    hessian = torch.stack([row[0] for row in rows])
    v = torch.zeros(16).double()
    for _ in range(4):
        v = (torch.eye(16).double() - 0.2 * hessian).T @ v + by_delta
    for i, (name, parameter) in enumerate(network.named_parameters()):
        mixed = [row[i + 1] for row in rows]
        through = sum(
            (-0.2 * a * m for a, m in zip(v, mixed, strict=True) if m is not None),
            torch.zeros_like(parameter),
        )
        gradient = direct[i] + through
        # Adam's first step: the sign, but for its ε.
        expected = parameter - 1e-3 * gradient / (gradient.abs() + 1e-8)
        assert torch.allclose(result.model.get_parameter(name), expected, atol=1e-9), name
    assert float(result.history[0]["loss"]) == pytest.approx(float(outer.detach()))


def test_batch_norm_stays_still(network: nn.Module, data: DefenderData) -> None:
    result = IBAU(rounds=2).repair(network, data, Rng(0))
    for name, before in network.named_buffers():
        assert torch.equal(result.model.get_buffer(name), before), name


def test_at_least_one_image_gets_the_perturbation(network: nn.Module, data: DefenderData) -> None:
    """A hundredth of 6 rounds down to none: then the perturbation would not matter at all."""
    with_, without = (
        IBAU(rounds=1, perturbation_rate=rate).repair(network, data, Rng(0)).history[0]["loss"]
        for rate in (50.0, 1e-9)
    )
    assert with_ != without


def test_a_diverging_round_keeps_the_last_good_state(
    network: nn.Module, data: DefenderData
) -> None:
    with torch.no_grad():
        network.get_parameter("linear.weight")[0] = math.inf
    result = IBAU(rounds=3).repair(network, data, Rng(0))
    assert result.notes == ("Stage unlearn diverged in epoch 1; the last good state was kept.",)
    assert torch.equal(result.model.get_parameter("conv.weight"),
                       network.get_parameter("conv.weight"))  # fmt: skip
