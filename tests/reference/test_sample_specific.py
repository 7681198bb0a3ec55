"""Sample-specific against hand-worked values and a plain restatement of its steps and margins."""

from __future__ import annotations

import math

import pytest
import torch
from tests.reference.tuning import pictures, tiny
from torch import Tensor, nn

from excise import registry
from excise.errors import SpecError
from excise.inversion import SampleSpecific
from excise.inversion.anomaly import anomaly_indices
from excise.inversion.sample_specific import Searching
from excise.seeding import Rng
from excise.types import DefenderData, LabelledImages

pytestmark = pytest.mark.fast


class Linear(nn.Module):
    """Logits W x of images of 1 × 1 × 2."""

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(rows, dtype=torch.float64), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T


def test_hand_worked_steps() -> None:
    """Two classes, W = (1, 0), (0, 1), towards class 1: the first pixel falls, the second rises.

    ε = .04 in 4 steps of .025: after two the ball's border is reached; .99 stops at 1.
    """
    trigger = Searching(Linear([[1, 0], [0, 1]]).eval(), 1, 0.04, 4)
    images = torch.tensor([[[[0.5, 0.99]]], [[[0.03, 0.5]]]])
    moved = trigger(images)
    assert moved.flatten().tolist() == pytest.approx([0.46, 1.0, 0.0, 0.54])
    assert moved.dtype == torch.float32
    one = Searching(trigger.network, 1, 0.04, 1)(images)
    assert one.flatten().tolist() == pytest.approx([0.46, 1.0, 0.0, 0.54])


def test_hand_worked_margins() -> None:
    """Classes (0, 0), (1, 0), (0, 3); every image (.4, .1) is class 1's, by .4 to .3 and 0.

    In a ball of .1: towards class 0, (.3, 0) and margin −.3; towards class 2, (.3, .2), .6 − .3.
    """
    net = Linear([[0, 0], [1, 0], [0, 3]]).eval()
    images = torch.tensor([0.4, 0.1], dtype=torch.float64).expand(3, 1, 1, 2)
    rows: list[object] = []
    margins = SampleSpecific(probe_epsilon=0.1, chunk=4).margins(net, images, 3, rows.append)
    assert margins[0] == pytest.approx(-0.3)
    assert margins[1] is None
    assert margins[2] == pytest.approx(0.3)
    assert rows == [{"stage": "probe", "round": 1, "pairs": 4},
                    {"stage": "probe", "round": 2, "pairs": 2}]  # fmt: skip
    # Class 1 has no margin: an index of none, and it is not returned.
    data = DefenderData(
        LabelledImages(images.contiguous(), torch.ones(3, dtype=torch.int64), tuple("abc")),
        None, "made here",
    )  # fmt: skip
    found = SampleSpecific(probe_epsilon=0.1, epsilon=0.02, keep=3).fit(net, data, Rng(0))
    assert [one.target for one in found] == [2, 0]
    assert found[0].evidence.size == pytest.approx(0.04)
    assert found[0].evidence.flip_rate is None
    indices = anomaly_indices([0.3, None, -0.3])
    assert [one.evidence.anomaly for one in found] == pytest.approx([indices[2], indices[0]])


def walk(net: nn.Module, image: Tensor, target: int, epsilon: float, steps: int) -> Tensor:
    """One image alone, its loss written out."""
    x = image.clone()
    for _ in range(steps):
        x.requires_grad_()
        logits = net(x[None])[0]
        loss = -(logits.exp()[target] / logits.exp().sum()).log()
        (gradient,) = torch.autograd.grad(loss, x)
        x = x.detach() - 2.5 * epsilon / steps * gradient.sign()
        x = torch.min(torch.max(x, image - epsilon), image + epsilon).clamp(0, 1)
    return x


def test_it_takes_the_class_of_the_largest_mean_margin() -> None:
    net, data = tiny(), pictures(8)
    inverter = SampleSpecific(epsilon=0.1, probe_epsilon=0.2, steps=4, probe_images=5, keep=3)
    chosen = torch.randperm(8, generator=Rng(3).torch("probe"))[:5]
    expected: dict[int, float] = {}
    for t in range(3):
        margins = []
        for image in data.train.images[chosen].double():
            if int(net(image[None]).argmax()) != t:
                logits = net(walk(net, image, t, 0.2, 4)[None])[0].tolist()
                margins.append(logits[t] - max(v for k, v in enumerate(logits) if k != t))
        if margins:
            expected[t] = sum(margins) / len(margins)
    found = inverter.fit(net, data, Rng(3))
    assert [one.target for one in found] == sorted(expected, key=lambda t: -expected[t])
    indices = anomaly_indices([-expected[t] if t in expected else None for t in range(3)])
    target = found[0].target
    assert target is not None
    assert found[0].evidence.anomaly == pytest.approx(indices[target])
    images = data.train.images.double()
    plain = torch.stack([walk(net, image, target, 0.1, 4) for image in images])
    assert torch.allclose(found[0](images), plain)


def test_the_same_image_gets_the_same_pixels_whoever_asks_and_beside_whom() -> None:
    net, data = tiny(), pictures(8)
    (trigger,) = SampleSpecific(steps=3).fit(net, data, Rng(0))
    images = data.train.images.double()
    together = trigger(images)
    alone = torch.cat([trigger(image[None]) for image in images.flip(0)]).flip(0)
    assert torch.allclose(together, alone)
    with torch.inference_mode():
        inside = trigger(images)
    with torch.no_grad():
        assert torch.equal(trigger(images), together)
    assert torch.equal(inside, together)
    assert trigger(images[:0]).shape == images[:0].shape


def test_its_network_is_its_own() -> None:
    """What happens to the given network later, such as its repair, does not move the trigger."""
    net, data = tiny(), pictures(8)
    (trigger,) = SampleSpecific(steps=3).fit(net, data, Rng(0))
    before = trigger(data.train.images)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert torch.equal(trigger(data.train.images), before)


def test_a_network_of_nan_yields_nothing() -> None:
    net = Linear([[math.nan, 0], [1, 0], [0, 1]]).eval()
    images = LabelledImages(torch.rand(4, 1, 1, 2), torch.zeros(4).long(), tuple("abc"))
    assert SampleSpecific().fit(net, DefenderData(images, None, "here"), Rng(0)) == []


@pytest.mark.parametrize(
    ("field", "value"), [("epsilon", 0), ("probe_epsilon", 2), ("steps", 0), ("keep", 0)]
)
def test_values_out_of_range(field: str, value: float) -> None:
    with pytest.raises(SpecError, match=field):
        registry.build("inverter", "sample-specific", {field: value})
