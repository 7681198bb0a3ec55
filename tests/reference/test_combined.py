"""The five tests and their sum, the calibrated threshold, and what the scanner and inverter say."""

from __future__ import annotations

import json
import math

import pytest
import torch
from tests.reference.test_universal import Pixels, noise
from torch import nn

from excise.detection import CombinedScan
from excise.detection import combined as scanner
from excise.detection.combined import calibration, threshold
from excise.errors import DataError
from excise.inversion import Combined, Smooth, combined
from excise.inversion.margin_climb import MarginClimb
from excise.inversion.outlying import suspicions
from excise.inversion.smooth import AddedSmooth, stretched
from excise.inversion.suspects import MOST, SPREAD, TESTS, Suspects, compare
from excise.seeding import Rng
from excise.types import DefenderData, Evidence, LabelledImages

pytestmark = pytest.mark.fast


def suspects(**numbers) -> Suspects:
    return Suspects(numbers, {}, {})


def test_a_class_is_the_sum_of_its_tests_and_no_test_counts_too_much() -> None:
    far, near = (-9.0, 1.0, 2.0, 3.0, 2.0), (1.0, 1.0, 2.0, 3.0, -1.0)
    both = suspects(a=far, b=near)
    one, two = suspicions(far, SPREAD), suspicions(near, SPREAD)
    assert one[0] > MOST
    assert both.together() == pytest.approx(
        [min(MOST, x) + min(MOST, y) for x, y in zip(one, two, strict=True)]
    )
    assert both.ranked()[0] == 0
    assert both.by_test() == {"a": one, "b": two}


def test_numbers_are_logarithms_of_margins_and_sizes() -> None:
    found = compare(Pixels(), noise(), Rng(0))
    assert tuple(found.numbers) == TESTS
    climb = MarginClimb(**MarginClimb.PRESETS["fast"])
    margins = climb.climb(Pixels(), noise(), Rng(0).child("margin"), lambda row: None)
    expected = [-math.log(m) if m > 0 else None for m in margins]
    assert found.numbers["margin"] == pytest.approx(expected)
    assert set(found.seconds) == set(TESTS)
    # Class 2's last pixel counts nine times: the smallest pattern leads there.
    sizes = found.numbers["pattern"]
    assert min(range(4), key=lambda c: sizes[c] if sizes[c] is not None else math.inf) == 2


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.05, 0.3])
def test_the_threshold_lets_as_few_clean_networks_pass_as_the_rate_says(rate) -> None:
    # Statistics spread as an exponential distribution, a gamma distribution of shape 1, says.
    clean = [-0.5 * math.log(1 - (i + 0.5) / 4000) for i in range(4000)]
    assert threshold(clean, rate) == pytest.approx(-0.5 * math.log(rate), rel=0.05)


def test_networks_that_show_nothing_at_all_still_have_a_threshold() -> None:
    assert 0 < threshold([0.0] * 10 + [0.5] * 20, 0.01) < math.inf


@pytest.mark.parametrize(
    ("suspicion", "memory", "fields", "taken"),
    [
        (0.4, 1.0, {}, False),  # hardly suspicious
        (0.6, 0.1, {}, False),  # suspicious, and nothing remembers it
        (0.6, 0.2, {}, True),
        (0.6, None, {}, True),  # no memory to ask
        (1.9, 0.0, {}, True),  # an alarm by itself
        (1.9, 0.0, {"least": 2.0}, False),
        (0.0, 0.0, {"least": 0.0}, True),
        (0.6, 0.1, {"least_memory": 0.1}, True),
        (1.0, 0.0, {"sure": 1.0}, True),
    ],
)
def test_a_class_is_taken_that_is_sure_or_remembered(
    monkeypatch, suspicion, memory, fields, taken
) -> None:
    shown = suspects(memory=(memory, 0.0))
    monkeypatch.setattr(Suspects, "together", lambda self: [suspicion, 0.0])
    monkeypatch.setattr(combined, "compare", lambda *args, **named: shown)
    monkeypatch.setattr(combined, "triggers_of", lambda s, c, *args, **named: [(Smooth(), 0.5)])
    monkeypatch.setattr(combined, "evidence_of", lambda *args: Evidence())
    found = Combined(**fields).fit(Pixels(), four(), Rng(0))
    assert [one.target for one in found] == ([0] if taken else [])
    assert found.notes if not taken else not found.notes


@pytest.mark.parametrize(
    ("suspicion", "memory", "said"),
    [
        (
            0.2,
            1.0,
            "'a' is the most suspicious class, but only by 0.2: one of less than 0.5 is none",
        ),
        (0.7, 0.11, "leads 11% of the images to it. Below a suspicion of 1.9 that must be 20%"),
    ],
)
def test_it_says_which_class_it_left_alone_and_why(monkeypatch, suspicion, memory, said) -> None:
    monkeypatch.setattr(Suspects, "together", lambda self: [suspicion, 0.0])
    monkeypatch.setattr(combined, "compare", lambda *a, **named: suspects(memory=(memory, 0.0)))
    found = Combined().fit(Pixels(), four(), Rng(0))
    [note] = found.notes
    assert said in note
    assert note.endswith("least=0 takes it all the same.")


@pytest.mark.parametrize(("held", "ranked"), [(0, 8), (7, 8), (8, 16)])
def test_all_images_rank_the_classes_where_half_would_be_held_back(
    monkeypatch, held, ranked
) -> None:
    seen = []

    def watched(model, images, rng, **named):
        seen.append(len(images))
        return suspects(memory=(0.0, 0.0))

    monkeypatch.setattr(combined, "compare", watched)
    data = DefenderData(noise(8), noise(held) if held else None, "made here")
    assert not Combined().fit(Pixels(), data, Rng(0))
    assert seen == [ranked]


def four(n: int = 8) -> DefenderData:
    return DefenderData(noise(n), None, "made here")


def test_the_scanner_alarms_from_the_threshold_on_and_says_what_it_rests_on(monkeypatch) -> None:
    for statistic, alarm in ((0.01, True), (9.0, False)):
        known = [
            {"family": "Pixels", "statistic": statistic * (1 + i / 30), "classes": 4,
             "pixels_a_side": 4, "images_a_class": 2}
            for i in range(30)
        ]  # fmt: skip
        monkeypatch.setattr(scanner, "calibration", lambda known=known: known)
        said = CombinedScan(effort=0.9).scan(Pixels(backdoor=40), four(), Rng(0))
        assert said.backdoored is alarm
        assert said.targets == ((2,) if alarm else ())
        assert said.per_class[2] == said.statistic == max(said.per_class)
        assert {one.target for one in said.triggers} == {2}
        assert set(said.tests) == set(TESTS)
        assert ("30 had" in said.notes[0]) is not alarm
        assert not any("not calibrated for this architecture" in note for note in said.notes)
        assert any("effort 1" in note for note in said.notes)


def test_an_architecture_without_calibration_says_so() -> None:
    said = CombinedScan(effort=0.1).scan(Pixels(), four(), Rng(0))
    assert any("not calibrated for this architecture" in note for note in said.notes)


def test_every_round_says_how_far_the_search_is() -> None:
    norm = nn.BatchNorm2d(4, momentum=1.0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.Flatten(), nn.Linear(16, 4))
    net(four().everything().floats())  # its memory is of images like those that are given
    rows: list[dict[str, object]] = []
    CombinedScan(effort=0.02).scan(net.eval(), four(), Rng(0), on_round=rows.append)
    parts = list(dict.fromkeys(str(row["stage"]) for row in rows))
    tests = [part for part in parts if part.startswith("test")]
    assert [part.partition(": ")[2] for part in tests] == [
        "margin, climb", "patch, search", "pattern, search", "smooth, search",
        "memory, pattern, explain", "memory, waves, explain", "memory, warp, explain",
    ]  # fmt: skip
    assert [part[:11] for part in tests[:4]] == [f"test {n} of 5" for n in (1, 2, 3, 4)]
    # Then the triggers of one class: small ones, and such as explain what is remembered.
    assert parts[: len(tests)] == tests
    assert len(parts) == len(tests) + 5
    assert {part[:7] for part in parts[len(tests) :]} < {f"class {c}" for c in range(4)}
    for row in rows:
        assert row["round"] <= row["rounds"] if "round" in row else row["step"] <= row["steps"]


def test_three_classes_are_too_few() -> None:
    images = LabelledImages(torch.rand(6, 1, 4, 4), torch.arange(6) % 3, ("a", "b", "c"))
    with pytest.raises(DataError, match="at least 4 classes"):
        CombinedScan().scan(Pixels(), DefenderData(images, None, "here"), Rng(0))


def test_the_inverter_returns_the_most_suspicious_classes_alone() -> None:
    data = DefenderData(noise(16), noise(8, 1), "made here")
    found = Combined(effort=0.9).fit(Pixels(backdoor=40), data, Rng(0))
    assert {one.target for one in found} == {2}
    assert all(one.evidence.flip_rate is not None for one in found)
    assert not Combined(effort=0.9, least=99).fit(Pixels(backdoor=40), data, Rng(0))
    two = Combined(effort=0.9, classes=2, least=0).fit(Pixels(backdoor=40), data, Rng(0))
    assert len({one.target for one in two}) == 2
    assert two[0].target == 2


def test_the_calibration_is_of_clean_networks_of_even_seeds() -> None:
    names = [one["network"] for one in calibration()]
    assert len(names) == len(set(names)) == 30
    assert all(int(name.rsplit("-", 1)[1]) % 2 == 0 for name in names)
    assert {one["family"] for one in calibration()} == {"excise:preactresnet18", "excise:vgg19_bn"}
    json.dumps(calibration(), allow_nan=False)


# --- a smooth pattern -----------------------------------------------------------------------------


def test_a_smooth_trigger_adds_its_grid_stretched_over_the_image() -> None:
    images = torch.full((2, 1, 8, 8), 0.5)
    flat = AddedSmooth(torch.full((1, 2, 2), 0.25))(images)
    assert torch.allclose(flat, torch.full_like(flat, 0.75))
    dark = AddedSmooth(torch.full((1, 2, 2), -2.0))(images)
    assert torch.equal(dark, torch.zeros_like(dark))
    slope = AddedSmooth(torch.tensor([[[0.0, 0.2], [0.0, 0.2]]]))(images)[0, 0]
    assert bool((slope.diff(dim=1) >= 0).all())
    assert torch.allclose(slope.diff(dim=0), torch.zeros(7, 8), atol=1e-6)


@pytest.mark.parametrize(("pixels", "side"), [(8, 4), (32, 8), (224, 8)])
def test_a_grid_has_at_most_half_as_many_numbers_as_the_image_has_pixels(pixels, side) -> None:
    images = torch.rand(1, 3, pixels, pixels)
    start = Smooth().start(images, 5)
    assert start.shape == (5, 3, side, side)
    assert stretched(start, images).shape == (5, 3, pixels, pixels)


def test_its_norm_counts_every_number_for_sixteen_pixels() -> None:
    grids = torch.tensor([[[[0.5, -0.25], [0.0, 0.25]]]])
    assert Smooth().norms(grids).tolist() == [16.0]
