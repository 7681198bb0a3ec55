"""Universal, and the search it shares, against hand-worked values and a plain restatement."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.reference.tuning import pictures, tiny
from torch import Tensor, nn

from excise import registry
from excise.errors import SpecError
from excise.inversion import Universal
from excise.inversion.anomaly import anomaly_indices
from excise.inversion.chunks import at_once
from excise.inversion.halving import Halving
from excise.inversion.measure import evidence_of, mean_change
from excise.inversion.penalty import Penalty
from excise.inversion.universal import Added
from excise.seeding import Rng
from excise.types import DefenderData, LabelledImages

pytestmark = pytest.mark.fast


class Pixels(nn.Module):
    """Class k's logit is ``gain`` · the sum of the k-th row of pixels; 2's last pixel counts 9."""

    def __init__(self, gain: float = 2.0, backdoor: float = 9.0) -> None:
        super().__init__()
        weight = torch.eye(4).repeat_interleave(4, 1) * gain
        weight[2, 11] *= backdoor
        self.linear = nn.Linear(16, 4, bias=False)
        self.linear.weight = nn.Parameter(weight)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images.flatten(1))
        return logits


def noise(n: int = 24, seed: int = 0) -> LabelledImages:
    images = torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed)) / 2
    images[:, 0, 2, 3] = 0
    with torch.no_grad():
        labels = Pixels()(images).argmax(1)
    return LabelledImages(images, labels, tuple("abcd"))


def penalty(best: float | None) -> Penalty:
    made = Penalty(1.0, start_free=True, factor=2.0, patience=9, stop_patience=9, stop_gain=0.0,
                   give_up=99)  # fmt: skip
    if best is not None:
        made.update(True, best)
    return made


# --- hand-worked values ---------------------------------------------------------------------------


def test_the_pattern_is_added_and_clipped() -> None:
    pattern = torch.tensor([[[0.5, -0.5], [0.25, 0.0]]])
    images = torch.tensor([[[[0.75, 0.25], [0.5, 1.0]]]], dtype=torch.float64)
    changed = Added(pattern)(images)
    assert changed.tolist() == [[[[1.0, 0.0], [0.75, 1.0]]]]
    assert changed.dtype == torch.float64
    # |.25| + |.25| + |.25| + 0: what clipping takes away does not count.
    assert mean_change(Added(pattern), images) == 0.75


def test_norms() -> None:
    numbers = torch.tensor([[[[0.5, -1.0]]], [[[0.0, 2.0]]]])
    assert Universal().norms(numbers).tolist() == [1.5, 2.0]
    assert Universal(norm="squares").norms(numbers).tolist() == [1.25, 4.0]


def test_the_smaller_half_stays_then_who_came_nearest() -> None:
    race = Halving([penalty(b) for b in (5.0, None, 1.0, None, 3.0)], success_rate=1, memory=0)
    race.shares = [0.0, 0.2, 0.0, 0.7, 0.0]
    race.drop(1)
    assert race.left == [0, 2, 4]
    race.drop(3)
    assert race.left == [0, 2, 4]
    race.drop(1)
    assert race.left == [2, 4]
    assert race.found() == race.searching() == [2, 4]
    none = Halving([penalty(None) for _ in range(4)], success_rate=1, memory=0)
    none.shares = [0.2, 0.7, 0.1, 0.3]
    none.drop(1)
    assert none.left == [1, 3]
    assert none.found() == []


def test_success_is_averaged_over_rounds() -> None:
    """Shares 1, 0, 1 with memory .75: means 1, ½, ⅔ (equal weights at first), then .75."""
    race = Halving([penalty(None)], success_rate=0.7, memory=0.75)
    said = [race.update(0, share, 1.0 / number, number)
            for number, share in enumerate((1.0, 0.0, 1.0, 1.0), 1)]  # fmt: skip
    assert said == [True, False, False, True]
    assert race.shares[0] == pytest.approx(0.75)
    race.update(0, 0.0, 1.0, 5)
    assert race.shares[0] == pytest.approx(0.5625)


def test_evidence_is_of_images_of_other_classes() -> None:
    """One pixel of .5 for class 2, weighing 18: 9, more than four halves at 2 reach."""
    pattern = torch.zeros(1, 4, 4)
    pattern[0, 2, 3] = 0.5
    data = DefenderData(noise(12), noise(12, 1), "noise")
    evidence = evidence_of(Pixels().eval(), Added(pattern), 2, data, 1.5)
    assert (evidence.flip_rate, evidence.size, evidence.anomaly) == (1.0, 0.5, 1.5)
    without = evidence_of(Pixels().eval(), Added(pattern), 2, DefenderData(noise(), None, ""), None)
    assert without.flip_rate is None


# --- the search -----------------------------------------------------------------------------------

FIELDS: dict[str, Any] = {
    "rounds": 14, "batch_size": 4, "learning_rate": 0.2, "success_rate": 0.6, "penalty": 0.05,
    "patience": 2, "drop_after": 5, "keep": 1, "memory": 0.5, "confidence": 0.8,
}  # fmt: skip


def plain(net: nn.Module, images: Tensor, target: int, norm: str, rng: Rng) -> list[Any]:
    """One class alone: for every round the pattern, whether it is the best, and its norm."""
    v, m, s = (torch.zeros(images.shape[1:], dtype=torch.float64) for _ in range(3))
    rule = Penalty(0.05, start_free=True, factor=1.5, patience=2, stop_patience=100, stop_gain=0.0,
                   give_up=14)  # fmt: skip
    rows, share = [], 0.0
    for number in range(1, 15):
        order = torch.randperm(len(images), generator=rng.torch(f"round/{number}"))[:4]
        v = v.clone().requires_grad_()
        size = v.abs().sum() if norm == "sum" else (v**2).sum()
        loss, hits = rule.weight * size, 0
        for i in order:
            logits = net((images[i] + v).clamp(0, 1)[None])[0]
            p = logits.exp()[target] / logits.exp().sum()
            if p.item() < 0.8:
                loss = loss + (math.log(0.8) - p.log()) / 4
            hits += int(logits.argmax()) == target
        (g,) = torch.autograd.grad(loss, v)
        stays = min(0.5, (number - 1) / number)
        share = stays * share + (1 - stays) * hits / 4
        better = rule.update(share >= 0.6, float(size.detach()))
        rows.append((v.detach().clone(), better, rule.best, share))
        m, s = 0.9 * m + 0.1 * g, 0.999 * s + 0.001 * g * g
        v = v.detach() - 0.2 * (m / (1 - 0.9**number)) / ((s / (1 - 0.999**number)).sqrt() + 1e-8)
    return rows


@pytest.mark.parametrize(("norm", "chunk"), [("sum", 1024), ("squares", 4)])
def test_all_classes_at_once_find_what_each_finds_alone(norm: str, chunk: int) -> None:
    """Three classes; after 5 rounds the better 2 stay, after 10 the better 1."""
    net, data, rng = tiny(), pictures(), Rng(5)
    inverter = Universal(**FIELDS, norm=norm, chunk=chunk)  # type: ignore[arg-type]
    rows: list[Any] = []
    (found,) = inverter.fit(net, data, rng, on_round=rows.append)
    alone = [plain(net, data.train.images.double(), t, norm, rng) for t in range(3)]

    def rank(t: int, number: int) -> tuple[float, float]:
        _, _, best, share = alone[t][number - 1]
        return (math.inf if best is None else best, -share)

    def kept(t: int, number: int) -> Tensor | None:
        tried = [v for v, better, *_ in alone[t][:number] if better]
        return tried[-1] if tried else None

    two = sorted(range(3), key=lambda t: rank(t, 5))[:2]
    (one,) = sorted(two, key=lambda t: rank(t, 10))[:1]
    assert found.target == one
    assert torch.allclose(found.trigger.pattern, kept(one, 14), atol=1e-6)  # type: ignore[attr-defined, arg-type]
    assert [row["searching"] for row in rows] == [3] * 5 + [2] * 5 + [1] * 4
    sizes = [
        None if (v := kept(t, 5)) is None else mean_change(Added(v), data.train.images)
        for t in range(3)
    ]
    index = anomaly_indices(sizes)[one]
    assert found.evidence.anomaly == (None if index is None else pytest.approx(index, abs=1e-5))


def test_black_and_white_pixels_can_be_changed() -> None:
    """Where a gradient may begin: at 0 and 1, but not beyond."""
    images = torch.tensor([0.0, 1.0, 0.5, 0.0]).view(1, 1, 2, 2)
    numbers = torch.tensor([0.0, 0.0, 0.6, -0.1]).view(1, 1, 2, 2).requires_grad_()
    changed = Universal().changed(images, numbers)
    assert changed.flatten().tolist() == [0, 1, 1, 0]
    changed.sum().backward()  # type: ignore[no-untyped-call]
    assert numbers.grad is not None
    assert numbers.grad.flatten().tolist() == [1, 1, 0, 0]


def test_a_network_of_nan_yields_nothing() -> None:
    net = Pixels(math.nan)
    assert Universal(rounds=3).fit(net, DefenderData(noise(), None, "noise"), Rng(0)) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [("norm", "max"), ("rounds", 0), ("confidence", 1.5), ("memory", 1), ("keep", 0),
     ("factor", 1)],
)  # fmt: skip
def test_values_out_of_range(field: str, value: object) -> None:
    with pytest.raises(SpecError, match=field):
        registry.build("inverter", "universal", {field: value})


@pytest.mark.parametrize(
    ("side", "expected"), [(8, 1024), (32, 1024), (64, 256), (224, 20), (5000, 1)]
)
def test_larger_images_go_through_the_network_in_smaller_chunks(side: int, expected: int) -> None:
    assert at_once(1024, torch.empty(2, 3, side, side, device="meta")) == expected
