"""Neural Cleanse against hand-worked values and a slow plain restatement, one class at a time."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from excise import registry
from excise.defenses import NeuralCleanseUnlearning
from excise.defenses.neural_cleanse import stamped_images
from excise.detection import NeuralCleanseScan
from excise.errors import SpecError
from excise.inversion import NeuralCleanse
from excise.inversion.anomaly import anomaly_indices
from excise.inversion.mask_search import MaskSearch
from excise.inversion.masked import Found, MaskedTrigger, flip_rate, squash
from excise.inversion.penalty import Penalty
from excise.seeding import Rng
from excise.testing import differences
from excise.types import DefenderData, LabelledImages, ignore_round

pytestmark = pytest.mark.fast

CLASSES = 5


class Corner(nn.Module):
    """Each class has three pixels of its own, and the brightest wins; the last pixel is for 3."""

    def __init__(self, backdoor: float = 0.0) -> None:
        super().__init__()
        weight = torch.zeros(CLASSES, 16)
        for target in range(CLASSES):
            weight[target, 3 * target : 3 * target + 3] = 4
        weight[3, 15] = backdoor
        self.linear = nn.Linear(16, CLASSES, bias=False)
        self.linear.weight = nn.Parameter(weight)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images.flatten(1))
        return logits


def pictures(n: int = 20, seed: int = 0) -> LabelledImages:
    images = torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    images[:, :, 3, 3] = 0
    return LabelledImages(images, torch.arange(n) % CLASSES, tuple("abcde"))


def data() -> DefenderData:
    return DefenderData(pictures(20, 0), pictures(10, 1), "noise")


QUICK: dict[str, Any] = {"rounds": 40, "patience": 2, "start_free": False, "penalty": 0.2,
                         "success_rate": 0.9}  # fmt: skip


# --- the rule of the median ---------------------------------------------------------------------


def test_hand_worked_index() -> None:
    """Norms 10, 12, 11, 13, 2: median 11, MAD 1.4826 · 1, index of the last 9 / 1.4826 = 6.07."""
    indices = anomaly_indices([10, 12, 11, 13, 2])
    assert indices[4] == pytest.approx(6.0704, abs=1e-4)
    assert [i is not None and i >= 2 for i in indices] == [False] * 4 + [True]
    assert indices[3] == pytest.approx(-2 / 1.4826)  # large norms are never suspicious


def test_the_median_of_an_even_number_is_the_mean_of_two() -> None:
    """1, 2, 4, 8: median 3, distances 2, 1, 1, 5, their median 1.5."""
    assert anomaly_indices([1, 2, 4, 8])[0] == pytest.approx(2 / (1.4826 * 1.5))


def test_where_more_than_half_are_equal_the_mean_distance_stands_in() -> None:
    indices = anomaly_indices([5, 5, 5, 5, 1])
    assert indices[:4] == [0.0] * 4
    assert indices[4] == pytest.approx(4 / (1.2533 * 0.8))
    assert anomaly_indices([5, 5, 5]) == [0.0] * 3


def test_a_class_without_success_has_no_index_and_moves_no_median() -> None:
    with_none = anomaly_indices([10, None, 12, 11, 13, 2])
    assert with_none[1] is None
    assert [i for i in with_none if i is not None] == anomaly_indices([10, 12, 11, 13, 2])
    assert anomaly_indices([None, None]) == [None, None]


def found(norms: list[float | None]) -> Found:
    triggers = tuple(MaskedTrigger(torch.zeros(1, 4, 4), torch.ones(1, 4, 4)) for _ in norms)
    return Found(triggers, tuple(norms), ())


def test_what_is_flagged_is_the_smallest_first() -> None:
    what = found([10, 12, 2, 11, 13, 1, 10, 12, None])
    assert what.flagged(2.0) == [5, 2]
    assert what.by_size() == [5, 2, 0, 6, 3, 1, 7, 4]
    assert found([None, None]).flagged(2.0) == []


def test_notes_name_the_classes_without_a_mask() -> None:
    assert found([1.0, 2, 3]).notes("abc") == ()
    assert found([1.0, None, 3, 4]).notes("abcd") == ("No mask that works was found for b.",)
    (many, few) = found([*[None] * 7, 1.0]).notes("abcdefgh")
    assert many == "No mask that works was found for a, b, c, d, e and 2 more."
    assert few.startswith("With fewer than three classes to compare")


# --- masks --------------------------------------------------------------------------------------


def test_hand_worked_trigger() -> None:
    trigger = MaskedTrigger(torch.tensor([[[0.0, 0.5], [1, 0.25]]]), torch.full((2, 2, 2), 0.8))
    result = trigger(torch.full((1, 2, 2, 2), 0.4))
    assert torch.allclose(result[0, 1], torch.tensor([[0.4, 0.6], [0.8, 0.5]]))
    assert trigger(torch.ones(1, 2, 2, 2).double()).dtype == torch.float64


def test_masks_stay_between_0_and_1() -> None:
    values = squash(torch.tensor([-50.0, 0, 50], dtype=torch.float64))
    assert values.tolist() == pytest.approx([0, 0.5, 1], abs=1e-7)
    assert values.min() >= 0
    assert values.max() <= 1


def test_the_flip_rate_leaves_out_the_class_itself() -> None:
    net = Corner(backdoor=50).eval()
    mask = torch.zeros(1, 4, 4)
    mask[0, 3, 3] = 1
    white = MaskedTrigger(mask, torch.ones(1, 4, 4))
    assert flip_rate(net, white, 3, pictures()) == 1
    own = pictures().subset(torch.arange(20) % CLASSES == 3)
    assert flip_rate(net, white, 3, own) is None
    assert flip_rate(net, white, 3, None) is None
    black = MaskedTrigger(mask, torch.zeros(1, 4, 4))
    with torch.no_grad():
        others = pictures().subset(torch.arange(20) % CLASSES != 3)
        expected = (net(others.images).argmax(1) == 3).double().mean()
    assert flip_rate(net, black, 3, pictures()) == pytest.approx(float(expected))


# --- λ ------------------------------------------------------------------------------------------


def penalty(**changes: Any) -> Penalty:
    settings = {"start_free": True, "factor": 2.0, "patience": 2, "stop_patience": 3,
                "stop_gain": 0.0, "give_up": 5} | changes  # fmt: skip
    return Penalty(0.001, **settings)


def test_the_weight_begins_after_some_success() -> None:
    """Free until two rounds in a row succeed; the second counts for what follows."""
    one = penalty()
    weights = []
    for success in (True, False, True, True, True, True, True):
        one.update(success, 1.0)
        weights.append(one.weight)
    assert weights == [0, 0, 0, 0.001, 0.002, 0.002, 0.004]


def test_the_weight_grows_by_two_and_falls_by_two_to_the_power_of_one_and_a_half() -> None:
    one = penalty(start_free=False)
    for success in (True, True, False, False):
        one.update(success, 1.0)
    assert one.weight == pytest.approx(0.001 * 2 / 2**1.5)


def test_the_smallest_successful_mask_is_the_best() -> None:
    one = penalty()
    said = [one.update(*round_) for round_ in ((False, 1.0), (True, 5.0), (True, 6.0), (True, 4.0),
                                               (True, math.nan))]  # fmt: skip
    assert said == [False, True, False, True, False]
    assert one.best == 4.0


def test_a_class_is_done_only_after_the_weight_went_both_ways() -> None:
    one = penalty(start_free=False)
    for success in (True, True, True, True, True, False):
        one.update(success, 1.0)
        assert not one.finished
    one.update(False, 1.0)  # down: now it went both ways
    assert not one.finished
    one.update(False, 1.0)
    assert one.finished


def test_a_class_that_never_succeeds_is_given_up() -> None:
    one = penalty()
    for number in range(1, 6):
        one.update(False, 1.0)
        assert one.finished is (number == 5)
    assert one.best is None


# --- the search, against one class at a time ------------------------------------------------------


def alone(net: nn.Module, images: Tensor, target: int, fields: MaskSearch, rng: Rng) -> Any:
    """The published loop for one class, in plain Python; every counter written out."""
    generator = rng.torch("start")
    m0 = torch.rand(CLASSES, 1, 4, 4, generator=generator, dtype=torch.float64)[target]
    p0 = torch.rand(CLASSES, 1, 4, 4, generator=generator, dtype=torch.float64)[target]
    m = torch.atanh((m0 - 0.5) * (2 - 1e-7)).float().requires_grad_()
    p = torch.atanh((p0 - 0.5) * (2 - 1e-7)).float().requires_grad_()
    adam = torch.optim.Adam([p, m], lr=fields.learning_rate, betas=(0.5, 0.9))
    cost = 0.0 if fields.start_free else fields.penalty
    best, best_mask = math.inf, None
    set_counter = up_counter = down_counter = stop_counter = 0
    up_flag = down_flag = False
    stop_best = math.inf
    for number in range(1, fields.rounds + 1):
        order = torch.randperm(len(images), generator=rng.torch(f"round/{number}"))
        hits = 0
        for index in order.split(fields.batch_size):
            mask, pattern = (torch.tanh(v) / (2 + 1e-7) + 0.5 for v in (m, p))
            logits = net((1 - mask) * images[index] + mask * pattern)
            loss = F.cross_entropy(logits, torch.full((len(index),), target))
            adam.zero_grad()
            (loss + cost * mask.abs().sum()).backward()
            adam.step()
            hits += int((logits.argmax(1) == target).sum())
        mask = (torch.tanh(m) / (2 + 1e-7) + 0.5).detach()
        success = hits / len(images) >= fields.success_rate
        if success and float(mask.sum()) < best:
            best, best_mask = float(mask.sum()), mask
        if best < math.inf:
            stop_counter = stop_counter + 1 if best >= stop_best else 0
        stop_best = min(stop_best, best)
        if up_flag and down_flag and stop_counter >= fields.stop_patience:
            break
        if cost == 0 and success:
            set_counter += 1
            if set_counter >= fields.patience:
                cost = fields.penalty
                up_counter = down_counter = 0
                up_flag = down_flag = False
        else:
            set_counter = 0
        if success:
            up_counter, down_counter = up_counter + 1, 0
        else:
            up_counter, down_counter = 0, down_counter + 1
        if up_counter >= fields.patience:
            up_counter, up_flag = 0, True
            cost *= fields.factor
        elif down_counter >= fields.patience:
            down_counter, down_flag = 0, True
            cost /= fields.factor**1.5
    return best, best_mask, number


@pytest.mark.parametrize(("start_free", "chunk"), [(True, 1024), (False, 24)])
def test_all_classes_at_once_find_what_each_finds_alone(start_free: bool, chunk: int) -> None:
    fields = MaskSearch(
        **QUICK | {"start_free": start_free, "stop_patience": 4, "chunk": chunk, "batch_size": 12}
    )
    net, images = Corner(backdoor=6).eval(), pictures()
    batched = fields.search(net, images, Rng(4), on_round=ignore_round)
    numbers = []
    for target in range(CLASSES):
        norm, mask, rounds = alone(net, images.images, target, fields, Rng(4))
        numbers.append(rounds)
        assert batched.norms[target] == pytest.approx(norm, rel=1e-3)
        assert torch.allclose(batched.triggers[target].mask, mask, atol=1e-3)
    # The row of a round says how many go on after it.
    left = [int(row["searching"]) for row in batched.history]
    assert len(left) == max(numbers)
    assert left[:-1] == [sum(n > k for n in numbers) for k in range(1, len(left))]
    assert start_free or len(set(numbers)) > 1, "some class stops before another"


def test_one_pixel_is_found() -> None:
    """A network with a backdoor in one corner pixel: its class stands out, the pixel is white."""
    net = Corner(backdoor=40).eval()
    (recovered,) = NeuralCleanse(**QUICK).fit(net, data(), Rng(1))
    assert recovered.target == 3
    evidence = recovered.evidence
    assert evidence.flip_rate is not None
    assert evidence.flip_rate > 0.8
    assert evidence.anomaly is not None
    assert evidence.anomaly >= 2
    assert evidence.size is not None
    assert evidence.size < 2
    assert not evidence.told
    assert float(recovered(torch.zeros(1, 1, 4, 4))[0, 0, 3, 3]) > 0.05
    said = NeuralCleanseScan(**QUICK).scan(net, data(), Rng(1))
    assert said.backdoored
    assert said.targets[0] == 3
    assert said.statistic == said.per_class[3] == max(said.per_class)
    assert said.notes[0].startswith("Class d: a mask of ")


def test_every_class_is_returned_if_asked_for() -> None:
    every = NeuralCleanse(**QUICK, only_flagged=False).fit(Corner().eval(), data(), Rng(1))
    sizes = [trigger.evidence.size for trigger in every]
    assert len(every) > 1
    assert sizes == sorted(sizes, key=lambda size: size or 0)
    indices = [t.evidence.anomaly for t in every]
    assert statistics.median([i for i in indices if i is not None]) == pytest.approx(0)


def test_classes_out_of_reach_have_no_norm_and_raise_no_alarm() -> None:
    fields = QUICK | {"success_rate": 1.0, "rounds": 3, "learning_rate": 1e-6}
    said = NeuralCleanseScan(**fields).scan(Corner().eval(), data(), Rng(1))
    assert not said.backdoored
    assert said.targets == ()
    assert said.statistic == 0
    assert said.per_class == (0.0,) * CLASSES
    assert said.notes == (
        "No mask that works was found for a, b, c, d, e.",
        "With fewer than three classes to compare, none can stand out.",
    )


def test_a_network_of_nan_raises_no_alarm() -> None:
    net = Corner().eval()
    nn.init.constant_(net.linear.weight, math.nan)
    rows: list[Any] = []
    said = NeuralCleanseScan(**QUICK | {"give_up": 4}).scan(
        net, data(), Rng(1), on_round=rows.append
    )
    assert not said.backdoored
    assert len(rows) == 4


# --- unlearning ---------------------------------------------------------------------------------


def test_without_a_flagged_class_the_network_is_as_it_was_given() -> None:
    net = Corner().eval()
    result = NeuralCleanseUnlearning(**QUICK, threshold=1e9).repair(net, data(), Rng(1))
    assert differences(net, result.model) == []
    assert result.notes[0] == "No class stands out: the network is as it was given."
    assert {row["stage"] for row in result.history} == {"search"}


@pytest.mark.parametrize("flagged", [[3], [3, 1], [3, 1, 0, 2, 4, 3]])
def test_a_fifth_carries_each_trigger_and_its_true_label(flagged: list[int]) -> None:
    """The trigger of class t writes t / 100 into one pixel, which 8 bits round."""
    mask = torch.zeros(1, 4, 4)
    mask[0, 0, 2] = 1
    triggers = tuple(MaskedTrigger(mask, torch.full((1, 4, 4), t / 100)) for t in range(CLASSES))
    images = pictures(30)
    given = images.fingerprint()
    mixed = stamped_images(images, Found(triggers, (1.0,) * CLASSES, ()), flagged, 0.2, Rng(0))
    assert torch.equal(mixed.labels, images.labels)
    assert images.fingerprint() == given
    changed = (mixed.images != images.images).flatten(1).any(1)
    assert int(changed.sum()) == min(30, 6 * len(flagged))
    written = mixed.images[changed, 0, 0, 2]
    shares = {t: int(((written - round(t / 100 * 255) / 255).abs() < 1e-6).sum()) for t in flagged}
    assert shares == dict.fromkeys(flagged, 6)
    rest = mixed.images.clone()
    rest[:, 0, 0, 2] = images.images[:, 0, 0, 2]
    # The other pixels of a stamped picture are those an 8-bit file carries.
    assert (rest - images.images).abs().max() <= 0.5 / 255 + 1e-6


def test_what_is_flagged_is_unlearned() -> None:
    """From 100 % of the images the corner sends to class 3, to those that belong there."""
    net, every = Corner(backdoor=8).eval(), data().everything()
    fields = QUICK | {"threshold": 0.5, "tune_rate": 1.0, "stamped_share": 0.5}
    result = NeuralCleanseUnlearning(**fields).repair(net, data(), Rng(1))
    assert result.notes[0].startswith("Unlearned the triggers found for ")
    assert "d" in result.notes[0].removeprefix("Unlearned the triggers found for ")
    assert [row["stage"] for row in result.history][-1] == "tune"
    white = every.images.clone()
    white[:, 0, 3, 3] = 1
    with torch.no_grad():
        assert (net(white).argmax(1) == 3).all()
        assert (result.model(white).argmax(1) == 3).double().mean() < 0.6


@pytest.mark.parametrize(
    ("kind", "field", "value", "message"),
    [
        ("inverter", "rounds", 0, "rounds of neural-cleanse to be greater than or equal to 1"),
        ("scanner", "success_rate", 1.5, "success_rate of neural-cleanse to be less than or equal"),
        ("scanner", "factor", 1, "factor of neural-cleanse to be greater than 1"),
        ("defense", "stamped_share", 0, "stamped_share of neural-cleanse to be greater than 0"),
    ],
)
def test_values_out_of_range(kind: Any, field: str, value: float, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        registry.build(kind, "neural-cleanse", {field: value})
