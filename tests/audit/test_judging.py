"""When an attack counts against a repair: hand-worked values."""

from __future__ import annotations

import pytest
import torch

from excise.audit.altered import Partly, Perturbed, Shuffled
from excise.audit.attacking import flips, floor_from, floor_of, size_of, working
from excise.audit.existence import cka
from excise.audit.finding import Finding, said
from excise.audit.judging import Steps, decided, fastest, judged, steps_to
from excise.inversion.masked import MaskedTrigger
from excise.rates import Interval, Rate
from excise.types import LabelledImages, RecoveredTrigger

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("count", "n", "beside", "natural", "passed"),
    [
        (5, 9, 0.1, 0.0, False),  # 26.7% to 81.1%
        (2, 9, 0.1, 0.0, None),  # 6.3% to 54.7%: not above, but it may be half
        (1, 9, 0.1, 0.0, True),  # 2.0% to 43.5%
        (0, 4, 0.1, 0.0, True),  # up to 49.0%
        (0, 3, 0.1, 0.0, None),  # up to 56.1%: with 3 images nothing can be told
        (0, 0, 0.1, 0.0, None),
        (5, 9, 0.6, 0.6, True),  # no more than without the trigger
        (5, 9, 0.6, 0.4, None),
        (7, 9, 0.94, 0.78, None),  # 9 of 9 reach down to 70.1%: beside such a control none can fail
        (1, 9, 0.94, 0.78, True),  # but a low rate is low
        (3, 3, 0.1, 0.0, False),  # from 43.9%: enough to fail
    ],
)
def test_a_rate_is_judged_by_its_interval(
    count: int, n: int, beside: float, natural: float, passed: bool | None
) -> None:
    assert judged(Rate(count, n), beside, natural) is passed


def test_wilsons_interval_of_five_in_nine() -> None:
    # (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n) with z = 1.96, p = 5/9
    rate = Rate(5, 9)
    assert (rate.low, rate.high) == pytest.approx((0.2667, 0.8112), abs=1e-4)
    assert said(rate) == "55.6% (26.7% to 81.1%) of 9 images"
    assert said(Rate(0, 1)) == "0.0% (0.0% to 79.3%) of 1 image"


def curve(*counts: int) -> list[Rate]:
    return [Rate(count, 9) for count in counts]


def test_the_step_at_which_a_level_is_reached() -> None:
    # Of 9: 2 reach up to 54.7%, 5 are 55.6%, 8 reach down to 56.5%.
    assert steps_to(0.5, curve(0, 2, 5, 8)) == Steps(value=2, low=1, high=3, most=3)
    assert steps_to(0.9, curve(0, 1)) == Steps(value=None, low=None, high=None, most=1)
    late, never = Steps(3, 1, None, 5), Steps(None, None, None, 5)
    assert fastest([never, late]) == late
    assert late.to_json() == {"value": 3, "low": 1, "high": None, "most": 5}


def test_the_old_trigger_against_the_best_control() -> None:
    slow, fast = curve(0, 0, 1), curve(0, 5, 9)
    assert decided(curve(0, 9, 9), [slow])[:2] == (False, 1)
    assert decided(curve(0, 9, 9), [slow, fast])[:2] == (None, 1)
    # Beside 5 of 9, up to 81 %, not even 9 of 9 could have failed, from 70 % on.
    assert decided(curve(0, 5, 9), [fast])[:2] == (None, 1)
    assert decided(curve(0, 1, 1), [slow])[:2] == (True, 2)
    # At half it cannot be told (5 against 2 of 9), at nine of ten it can.
    passed, step, old, best = decided(curve(0, 5, 9), [curve(0, 2, 2)])
    assert (passed, step, old.count, best.count) == (False, 2, 9, 2)
    # A lesson that ended early stands for what came after.
    assert decided(curve(0, 0, 9), [curve(0)])[:2] == (False, 2)


def test_shuffled_keeps_the_number_of_pixels_and_their_values() -> None:
    mask, pattern = torch.zeros(1, 2, 2), torch.zeros(3, 2, 2)
    mask[0, 0, 1], pattern[:, 0, 1] = 1, torch.tensor([0.2, 0.4, 0.6])
    order = torch.tensor([3, 0, 1, 2])  # place 0 takes pixel 3, place 1 pixel 0, place 2 pixel 1
    images = torch.full((2, 3, 2, 2), 0.5)
    shown = Shuffled(MaskedTrigger(mask, pattern), order)(images)
    wanted = images.clone()
    wanted[:, :, 1, 0] = torch.tensor([0.2, 0.4, 0.6])
    assert torch.equal(shown, wanted)
    assert torch.equal(images, torch.full_like(images, 0.5))


def test_perturbed_adds_after_the_trigger_and_clips() -> None:
    pattern = torch.full((1, 1, 1, 2), 0.3)
    images = torch.tensor([[[[0.1, 0.9]]]])
    assert torch.allclose(Perturbed(None, pattern)(images), torch.tensor([[[[0.4, 1.0]]]]))
    assert torch.allclose(
        Perturbed(lambda x: x / 2, pattern)(images), torch.tensor([[[[0.35, 0.75]]]])
    )


def test_the_size_of_a_trigger() -> None:
    # Changes of 1 and 3 pixels: mean 2, Student's interval 2 ± 12.706 · √2 / √2.
    images = torch.zeros(2, 1, 1, 4)
    images[0, 0, 0, :2] = 1
    images[0, 0, 0, 2] = 1
    assert size_of(torch.ones_like, images[:1]) == Interval(1.0, 0.0, 4.0)
    images[1, 0, 0, 0] = 1
    found = size_of(torch.ones_like, images)
    assert (found.value, found.low) == (2.0, 0.0)
    assert found.high == pytest.approx(14.706, abs=1e-3)


class Brightest(torch.nn.Module):
    """Calls an image of three pixels by its brightest one."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)


def three(n: int = 12) -> LabelledImages:
    labels = torch.arange(n) % 3
    images = 0.5 * torch.nn.functional.one_hot(labels, 3).float()
    return LabelledImages(images.view(n, 1, 1, 3), labels, ("a", "b", "c"))


def light(images: torch.Tensor) -> torch.Tensor:
    shown = images.clone()
    shown[..., 2] = 1
    return shown


def test_how_many_images_a_trigger_steers() -> None:
    assert flips(Brightest(), None, 2, three()) == Rate(0, 8)
    assert flips(Brightest(), light, 2, three()) == Rate(8, 8)
    assert flips(Brightest(), light, 2, three().subset(torch.tensor([2, 5]))) == Rate(0, 0)
    assert floor_of(Brightest(), 2, three()) == pytest.approx(1 / 3)


def test_what_is_looked_at_is_what_a_file_carries() -> None:
    # A trigger of a thousandth is lost in 8 bits.
    faint = three()
    faint = LabelledImages(torch.zeros_like(faint.images), faint.labels, faint.classes)
    assert flips(Brightest(), lambda x: x + torch.tensor([0.0, 0.0, 0.001]), 2, faint).count == 0


def test_a_trigger_works_or_is_passed_over() -> None:
    idle = RecoveredTrigger(torch.clone, 1)
    found = working(Brightest(), [idle, RecoveredTrigger(light)], three(), three())
    assert found is not None
    assert found.trigger is light
    assert found.target == 2  # found by what the network says
    assert working(Brightest(), [idle], three(), three()) is None


def test_cka_against_the_formula_of_features() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    y = torch.cat([x[:, :3], torch.randn(9, 4, generator=generator, dtype=torch.float64)], 1)

    def slow(x: torch.Tensor, y: torch.Tensor) -> float:
        x, y = x - x.mean(0), y - y.mean(0)
        return float((x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm()))

    found = cka(x @ x.T, y @ y.T)
    assert float(found[0]) == pytest.approx(slow(x, y))
    for i in range(9):
        rest = [j for j in range(9) if j != i]
        assert float(found[1 + i]) == pytest.approx(slow(x[rest], y[rest]))
    # Turned and scaled features are the same features.
    turn = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64)).Q
    assert float(cka(x @ x.T, 9 * (x @ turn) @ (x @ turn).T)[0]) == pytest.approx(1)
    assert cka(torch.ones(4, 4, dtype=torch.float64), x[:4] @ x[:4].T).isnan().all()


def test_a_finding_as_plain_values() -> None:
    values = {"a": Rate(1, 2), "b": Interval(1.0, 0.5, 2.0), "c": Steps(None, 1, None, 4)}
    plain = Finding("x", None, "Nothing.", values, 0.1, 2.0).to_json()
    assert plain["values"]["a"]["n"] == 2
    assert plain["values"]["b"] == {"value": 1.0, "low": 0.5, "high": 2.0}
    assert plain["values"]["c"]["most"] == 4
    assert (plain["passed"], plain["threshold"], plain["seconds"]) == (None, 0.1, 2.0)


def test_a_part_of_a_trigger_changes_a_part_as_much() -> None:
    images = torch.full((2, 1, 2, 2), 0.5)
    shown = Partly(lambda x: x + torch.tensor([[0.4, -0.2], [0.0, 0.1]]), 0.25)(images)
    torch.testing.assert_close(shown[0, 0] - 0.5, torch.tensor([[0.1, -0.05], [0.0, 0.025]]))


@pytest.mark.parametrize(
    ("count", "n", "classes", "expected"),
    [(0, 0, 10, 0.1), (0, 0, 1000, 0.05), (2, 9, 10, 0.5474), (4, 999, 1000, 0.05)],
)
def test_a_floor_is_chance_what_no_verdict_minds_or_the_upper_end_of_clean_images(
    count: int, n: int, classes: int, expected: float
) -> None:
    assert floor_from(Rate(count, n), classes) == pytest.approx(expected, abs=1e-4)
