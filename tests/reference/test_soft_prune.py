"""Soft-Prune against hand-worked values and a plain restatement of its first step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from excise.defenses import SoftPrune
from excise.seeding import Rng
from excise.training.pairs import led_astray, under_one_of
from excise.types import (
    DefenderData,
    Edit,
    Evidence,
    Inversion,
    LabelledImages,
    RecoveredTrigger,
)

RATE = 0.02


def darker(images):
    return images * 0.5


def inverted(images):
    return 1 - images


class Given:
    """An inverter that hands over what it was given."""

    def __init__(self, *triggers, told=False) -> None:
        self.triggers, self.told = triggers, told

    def fit(self, model, data, rng, *, on_round=lambda row: None):
        return [RecoveredTrigger(t, 0, Evidence(told=self.told)) for t in self.triggers]


@pytest.fixture
def network():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
    )  # fmt: skip
    with torch.no_grad():  # strong enough that no filter is all but dead
        for parameter in net.parameters():
            parameter.mul_(3)
    return net.double().eval()


@pytest.fixture
def data():
    # Images of fewer than 8 rows are not cropped, and these are not mirrored: nothing is random.
    images = torch.rand(6, 1, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    return DefenderData(LabelledImages(images, labels, ("a", "b", "c")), None, "made here")


def test_the_loss_of_a_soft_answer_is_as_worked_by_hand() -> None:
    # softmax(0, ln 3) = (1/4, 3/4); −(ln ¼ + ln ¾) / 2 = .8370
    logits, wanted = torch.tensor([[0.0, 3.0]]), torch.tensor([[0.5, 0.5]])
    logits[0, 1] = torch.tensor(3.0).log()
    assert nn.functional.cross_entropy(logits, wanted).item() == pytest.approx(0.8370, abs=1e-4)


@pytest.mark.parametrize("grain", ["kernel", "filter"])
@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize("penalty", [0.0, 0.0005])
@pytest.mark.parametrize("astray", [0.0, 2.0])
def test_the_first_step_lowers_the_gates_whose_gradient_is_positive(
    network, data, grain, share, penalty, astray
) -> None:
    method = SoftPrune(
        inverter=Given(darker), steps=1, batch_size=6, learning_rate=RATE, label_share=share,
        grain=grain, boost=1.0, clean_weight=4.0, target_weight=astray,
        penalty=penalty,
    )  # fmt: skip
    repaired = method.repair(network, data, Rng(0)).model

    x, y = data.train.images, data.train.labels
    convolutions = [network[0], network[2]]
    inputs = [1, 4] if grain == "kernel" else [1, 1]
    gates = [
        torch.ones(len(c.weight), n, 1, 1, dtype=x.dtype, requires_grad=True)
        for c, n in zip(convolutions, inputs, strict=True)
    ]

    def gated(images):
        one, two = convolutions
        z = nn.functional.conv2d(images, one.weight * gates[0], one.bias, padding=1)
        z = nn.functional.conv2d(z.relu(), two.weight * gates[1], two.bias)
        return network[6](z.relu().mean((2, 3)))

    with torch.no_grad():
        wanted = network(x).softmax(1)
        wanted = (1 - share) * wanted + share * torch.eye(3, dtype=x.dtype)[y]
    total = sum(
        -weight * (wanted * gated(images).log_softmax(1)).sum(1).mean()
        for weight, images in ((4.0, x), (1.0, darker(x)))
    ) + penalty * sum((1 - gate).sum() for gate in gates)
    # Class 0 is where the trigger leads.
    other = 1 - gated(darker(x)).softmax(1)[:, 0]
    total = total - astray * ((1 - wanted[:, 0]) * other.log()).mean()
    for index, gradient in zip((0, 2), torch.autograd.grad(total, gates), strict=True):
        # Adam's first step is the rate, downhill; a gate never exceeds 1.
        sure = gradient.abs() > 1e-5
        expected = torch.where(gradient > 0, 1 - RATE, 1.0).to(x)
        got = repaired[index].weight / network[index].weight
        close = ((got - expected).abs() < 1e-4) | ~sure
        assert close.all()
        assert torch.equal(repaired[index].bias, network[index].bias)
        assert (gradient > 1e-5).any()
    assert torch.equal(repaired[6].weight, network[6].weight)


def test_a_trigger_that_was_found_is_made_stronger_and_one_that_was_told_is_not() -> None:
    images = torch.full((400, 1, 2, 2), 0.8, dtype=torch.float64)
    for told in (False, True):
        triggers = [RecoveredTrigger(darker, 0, Evidence(told=told))]
        generator = torch.Generator().manual_seed(0)
        changed = under_one_of(triggers, images, generator, boost=2.0)[0][:, 0, 0, 0]
        if told:
            assert torch.equal(changed, torch.full_like(changed, 0.4))
        else:  # 0.8 − 0.4 s, s from 1 to 2: evenly from 0.4 down to 0
            assert changed.max() <= 0.4
            assert changed.min() >= 0
            assert changed.mean().item() == pytest.approx(0.2, abs=0.02)


def test_every_image_gets_one_of_the_triggers() -> None:
    images = torch.full((300, 1, 2, 2), 0.8, dtype=torch.float64)
    triggers = [RecoveredTrigger(t, 0, Evidence(told=True)) for t in (darker, inverted)]
    changed = under_one_of(triggers, images, torch.Generator().manual_seed(0))[0][:, 0, 0, 0]
    dark = (changed - 0.4).abs() < 1e-9
    bright = (changed - 0.2).abs() < 1e-9
    assert bool((dark | bright).all())
    assert 120 < int(dark.sum()) < 180


def test_all_gates_together_cost_no_more_than_the_total(network, data) -> None:
    def gates(**fields):
        method = SoftPrune(inverter=Given(inverted), steps=10, batch_size=6, **fields)
        return method.repair(network, data, Rng(0)).model[0].weight

    free, held = gates(penalty=0.0), gates(penalty=0.5)
    assert not torch.equal(free, held)
    # 24 kernels
    assert torch.equal(gates(penalty=0.5, total_penalty=0.0), free)
    assert torch.equal(gates(penalty=9.0, total_penalty=12.0), held)


def test_what_leads_astray_is_as_worked_by_hand() -> None:
    # p = (¾, ¼), q = (½, ½), t = 0: −½ ln ¼ = .6931; t = 1: −½ ln ¾ = .1438; no class: 0
    logits = torch.tensor([[3.0, 1.0]] * 3, dtype=torch.float64).log()
    wanted, leads = torch.full((3, 2), 0.5, dtype=torch.float64), torch.tensor([0, 1, -1])
    found = [led_astray(logits[i : i + 1], wanted[:1], leads[i : i + 1]).item() for i in range(3)]
    assert found == pytest.approx([0.6931, 0.1438, 0.0], abs=1e-4)
    assert led_astray(logits, wanted, leads).item() == pytest.approx(0.8370 / 3, abs=1e-4)


def test_an_image_that_is_certain_to_be_led_astray_still_has_a_slope() -> None:
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    wanted = torch.tensor([[0.0, 1.0, 0.0]])
    led_astray(logits, wanted, torch.tensor([0])).backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[0, 0].item() == pytest.approx(1.0, abs=1e-4)
    nowhere = led_astray(logits, wanted, torch.tensor([-1]))
    assert nowhere.item() == 0


def test_each_image_is_told_where_its_trigger_leads() -> None:
    images = torch.full((50, 1, 2, 2), 0.8)
    triggers = [RecoveredTrigger(darker, 2), RecoveredTrigger(inverted)]
    changed, leads = under_one_of(triggers, images, torch.Generator().manual_seed(0))
    assert set(leads.tolist()) == {-1, 2}
    dark = (changed[:, 0, 0, 0] - 0.4).abs() < 1e-6
    assert torch.equal(leads == 2, dark)


def test_only_the_strongest_triggers_are_unlearned(network, data) -> None:
    def repaired(*triggers, **fields):
        method = SoftPrune(inverter=Given(*triggers), steps=3, batch_size=6, **fields)
        return method.repair(network, data, Rng(0)).model[0].weight

    assert torch.equal(repaired(darker, inverted, max_triggers=1), repaired(darker))
    assert not torch.equal(repaired(darker, inverted), repaired(darker))


def test_without_a_trigger_nothing_is_cut_and_it_says_so(network, data) -> None:
    repair = SoftPrune(inverter=Given()).repair(network, data, Rng(0))
    assert repair.notes == ("No trigger was recovered, so nothing was cut.",)
    assert torch.equal(repair.model(data.train.images), network(data.train.images))


def test_what_the_inverter_has_to_say_is_said(network, data) -> None:
    class Silent:
        def fit(self, model, data, rng, *, on_round=None):
            return Inversion((), ["Class 'a' stands out, but not enough."])

    repair = SoftPrune(inverter=Silent()).repair(network, data, Rng(0))
    assert repair.notes[1:] == ("Class 'a' stands out, but not enough.",)


def test_gates_stay_in_range_and_it_says_how_many_filters_were_cut(network, data) -> None:
    method = SoftPrune(inverter=Given(inverted), steps=30, learning_rate=0.5)
    repair = method.repair(network, data, Rng(0))
    ratios = [(repair.model[k].weight / network[k].weight).detach() for k in (0, 2)]
    assert all(bool(((r >= 0) & (r <= 1)).all()) for r in ratios)
    cut = sum(int((r[:, :, 0, 0] < 0.5).sum()) for r in ratios)
    mean = sum(float(r[:, :, 0, 0].sum()) for r in ratios) / 24
    assert repair.notes == (
        "Unlearned 1 trigger toward 'a'.",
        f"{cut} of 24 kernels lost more than half of their weight; they keep {mean:.1%} on "
        "average.",
    )
    assert cut > 0


def test_a_network_that_diverges_stops_with_the_last_good_state(network, data) -> None:
    def broken(images):
        return images * float("nan")

    repair = SoftPrune(inverter=Given(broken), steps=5).repair(network, data, Rng(0))
    assert any("diverged" in note for note in repair.notes)
    assert torch.equal(repair.model[0].weight, network[0].weight)


def test_channels_whose_statistics_do_not_fit_go_before_all_else(data) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3),
    ).double()  # fmt: skip
    with torch.no_grad():
        seen = net[0](data.train.images).transpose(0, 1).flatten(1)
    net[1].running_mean, net[1].running_var = seen.mean(1), seen.var(1, correction=0)
    net[1].running_mean[3] += 5
    net.eval()
    repair = SoftPrune(inverter=Given(inverted), steps=1).repair(net, data, Rng(0))
    assert repair.edits == (Edit("scale", "1", 3, 1),)
    assert repair.model[1].weight[3] == 0
    assert any(note.startswith("1 of the batch norms' channels") for note in repair.notes)
    whole = SoftPrune(inverter=Given(inverted), steps=1, divergence=None).repair(net, data, Rng(0))
    assert whole.edits == ()
    assert whole.model[1].weight[3] != 0


@pytest.mark.parametrize(("n", "expected"), [(6, 5), (7, 5), (8, 6), (12, 6), (13, 6), (20, 8)])
def test_it_takes_the_steps_it_promises_and_ends_the_epoch(network, n, expected):
    # Batches of 6: a last single image joins the one before; 7 are one batch, 8 are two.
    everything = LabelledImages(torch.rand(n, 1, 6, 6), torch.arange(n) % 3, ("a", "b", "c"))
    half = everything.subset(torch.arange(n // 2)), everything.subset(torch.arange(n // 2, n))
    taken = []

    def counted(images):
        taken.append(len(images))
        return images * 0.5

    method = SoftPrune(inverter=Given(counted), steps=5, batch_size=6)
    method.repair(network, DefenderData(*half, "noise"), Rng(0))
    assert len(taken) == expected
