import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from excise.errors import DataError, ModelError, SpecError, TriggerError
from excise.evaluation import Rate, evaluate
from excise.evaluation.evaluate import eval_mode
from excise.types import AllToAll, AllToOne, LabelledImages, RecoveredTrigger

pytestmark = pytest.mark.fast

LABELS = [0, 1, 2, 3, 0, 1, 2, 3]
CLEAN = [0, 1, 2, 3, 1, 1, 2, 0]
TRIGGERED = [3, 0, 0, 0, 3, 1, 2, 1]


def test_all_to_one_by_hand(hand):
    model = hand.Told(CLEAN, TRIGGERED)
    e = evaluate(model, hand.numbered(LABELS), trigger=hand.mark, target=0)
    assert e.acc == Rate(6, 8)
    # Images 0 and 4 are of the target class and do not count; 1, 2, 3 go to it, 5 and 6 do not.
    assert e.asr == Rate(3, 6)
    assert e.ra == Rate(2, 6)
    assert e.target_recall == Rate(1, 2)
    assert e.outcomes.triggered.tolist() == [-1, 0, 0, 0, -1, 1, 2, 1]
    assert e.outcomes.counted.tolist() == [label != 0 for label in LABELS]
    assert e.outcomes.labels.tolist() == LABELS
    assert e.outcomes.clean.tolist() == CLEAN
    assert e.triggered_confusion[0].sum() == 0
    assert e.classes == ("class 0", "class 1", "class 2", "class 3")


def test_images_that_do_not_count_are_not_shown(hand):
    model = hand.Told(CLEAN, TRIGGERED)
    evaluate(model, hand.numbered(LABELS), trigger=hand.mark, target=0, batch_size=5)
    assert model.batches == [5, 3, 5, 1]


def test_all_to_all_counts_every_image(hand):
    triggered = [1, 2, 3, 0, 0, 1, 3, 2]
    model = hand.Told(CLEAN, triggered)
    e = evaluate(model, hand.numbered(LABELS), trigger=hand.mark, rule=AllToAll(4))
    assert e.asr == Rate(5, 8)
    assert e.ra == Rate(2, 8)
    assert e.target is e.target_recall is None
    assert e.outcomes.wanted.tolist() == [1, 2, 3, 0] * 2


def test_clean_images_only(hand):
    e = evaluate(hand.Told(CLEAN), hand.numbered(LABELS))
    assert e.acc == Rate(6, 8)
    assert e.asr is e.ra is e.target_recall is e.outcomes.triggered is None


def test_a_target_without_a_trigger_gives_its_recall(hand):
    e = evaluate(hand.Told(CLEAN), hand.numbered(LABELS), target=3)
    assert e.target_recall == Rate(1, 2)
    assert e.asr is None


def test_a_recovered_trigger_brings_its_target(hand):
    model, test = hand.Told(CLEAN, TRIGGERED), hand.numbered(LABELS)
    e = evaluate(model, test, trigger=RecoveredTrigger(hand.mark, target=0))
    assert (e.target, e.asr) == (0, Rate(3, 6))
    other = evaluate(model, test, trigger=RecoveredTrigger(hand.mark, target=0), target=3)
    assert other.target == 3


def test_only_target_images_give_no_rate(hand):
    e = evaluate(hand.Told([0, 0]), hand.numbered([0, 0]), trigger=hand.mark, target=0)
    assert e.asr == e.ra == Rate(0, 0)
    assert e.asr.value is None


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_rates_hold_together_whatever_the_batch_size_and_order(hand, data):
    n = data.draw(st.integers(1, 30))
    g = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    labels, clean, triggered = torch.from_numpy(g.integers(0, 4, (3, n)))
    target = data.draw(st.sampled_from([None, 0, 1, 2, 3]))
    rule = AllToAll(4) if target is None else AllToOne(target)
    test, model = hand.numbered(labels), hand.Told(clean, triggered)
    one = evaluate(model, test, trigger=hand.mark, rule=rule)
    assert (one.asr.value or 0) + (one.ra.value or 0) <= 1
    size = data.draw(st.integers(1, n + 1))
    assert evaluate(model, test, trigger=hand.mark, rule=rule, batch_size=size).to_json() == (
        one.to_json()
    )
    mixed = test.subset(torch.from_numpy(g.permutation(n)))
    assert evaluate(model, mixed, trigger=hand.mark, rule=rule).to_json() == one.to_json()


def test_float_and_8_bit_images_are_the_same_images(hand):
    test = hand.numbered(LABELS)
    floats = LabelledImages(test.floats(), test.labels, test.classes)
    model = hand.Told(CLEAN, TRIGGERED)
    a, b = (evaluate(model, t, trigger=hand.mark, target=0) for t in (test, floats))
    assert a.to_json() == b.to_json()
    assert a.outcomes.images == b.outcomes.images != ""


class Sees(nn.Module):
    """Keeps what it was shown."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))
        self.seen = []

    def forward(self, images):
        self.seen.append(images.clone())
        return self.weight.expand(len(images), 4)


def test_the_trigger_is_rounded_to_8_bits_and_the_data_left_alone(hand):
    test = LabelledImages(torch.full((3, 1, 2, 2), 0.5), torch.tensor([1, 2, 3]), tuple("abcd"))
    given_pixels = test.images.clone()

    def writes_into_its_input(images):
        return images.add_(0.3).clamp_(max=1)

    model = Sees()
    evaluate(model, test, trigger=writes_into_its_input, target=0)
    clean, triggered = model.seen
    assert torch.equal(clean, given_pixels)
    assert torch.equal(test.images, given_pixels)
    assert torch.equal(triggered, torch.full((3, 1, 2, 2), 204 / 255))


def test_the_network_runs_in_eval_and_inference_mode_in_its_own_type(hand):
    class Strict(Sees):
        def forward(self, images):
            assert not self.training
            assert torch.is_inference_mode_enabled()
            assert images.dtype == torch.float64
            return super().forward(images)

    model = Strict().double()
    evaluate(model, hand.numbered(LABELS), trigger=hand.mark, target=0)
    assert len(model.seen) == 2
    assert model.training


def test_a_trigger_may_optimize(hand):
    def optimizing(images):
        step = torch.zeros_like(images, requires_grad=True)
        (gradient,) = torch.autograd.grad((images + step)[:, :, 1, 0].sum(), step)
        return images + step + gradient

    model = hand.Told(CLEAN, TRIGGERED)
    e = evaluate(model, hand.numbered(LABELS), trigger=optimizing, target=0)
    assert e.asr == Rate(3, 6)


def test_a_network_without_weights_runs(hand):
    class Constant(nn.Module):
        def forward(self, images):
            return torch.tensor([1.0, 0, 0, 0]).expand(len(images), 4)

    assert evaluate(Constant(), hand.numbered(LABELS)).acc == Rate(2, 8)


def modes(model):
    return [m.training for m in model.modules()]


@pytest.mark.parametrize("fails", [False, True])
def test_modes_and_hooks_are_restored(hand, fails):
    model = nn.Sequential(hand.Told(CLEAN, TRIGGERED), nn.Identity())
    model.train()
    model[1].eval()  # a mixture: .train() afterwards would not restore it
    calls = []

    def hook(module, args, result):
        calls.append(1)
        if fails and len(calls) > 1:
            raise RuntimeError("in the middle")

    model.register_forward_hook(hook)
    before = modes(model)
    hooks = dict(model._forward_hooks)
    if fails:
        with pytest.raises(RuntimeError, match="in the middle"):
            evaluate(model, hand.numbered(LABELS), trigger=hand.mark, target=0)
    else:
        evaluate(model, hand.numbered(LABELS), trigger=hand.mark, target=0)
    assert len(calls) == 2
    assert modes(model) == before == [True, True, True, False]
    assert dict(model._forward_hooks) == hooks
    assert not torch.is_inference_mode_enabled()


def test_eval_mode_restores_mixtures():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm2d(1)))
    model[1].eval()
    with eval_mode(model):
        assert not any(modes(model))
    assert modes(model) == [True, True, False, False]


def test_the_network_is_not_changed(hand):
    model = nn.Sequential(nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4), nn.Flatten())
    state = {name: t.clone() for name, t in model.state_dict().items()}
    evaluate(model, hand.numbered(LABELS), trigger=hand.mark, target=0)
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


# --- refusals


@pytest.mark.parametrize("target", [-1, 4])
def test_a_target_out_of_range(hand, target):
    with pytest.raises(
        DataError, match=rf"expected a target from 0 to 3 \(4 classes\), got {target}"
    ):
        evaluate(hand.Told(CLEAN), hand.numbered(LABELS), trigger=hand.mark, target=target)


def test_a_trigger_without_a_target(hand):
    for trigger in (hand.mark, RecoveredTrigger(hand.mark)):
        with pytest.raises(TriggerError, match="expected a target class or a target rule"):
            evaluate(hand.Told(CLEAN), hand.numbered(LABELS), trigger=trigger)


def test_a_target_and_another_rule(hand):
    model, test = hand.Told(CLEAN), hand.numbered(LABELS)
    with pytest.raises(SpecError, match="expected a target or a rule, got target 0"):
        evaluate(model, test, trigger=hand.mark, target=0, rule=AllToAll(4))
    assert evaluate(model, test, trigger=hand.mark, target=0, rule=AllToOne(0)).target == 0


def test_all_to_all_over_other_classes(hand):
    with pytest.raises(DataError, match=r"over 4 classes.*got one over 3\. Use AllToAll\(4\)"):
        evaluate(hand.Told(CLEAN), hand.numbered(LABELS), trigger=hand.mark, rule=AllToAll(3))


class Rule:
    def __init__(self, counted, wanted):
        self.counted, self.wanted = counted, wanted


def everything(labels):
    return torch.ones_like(labels, dtype=torch.bool)


@pytest.mark.parametrize(
    "rule",
    [
        Rule(lambda labels: labels, lambda labels: 3 - labels),
        Rule(lambda labels: everything(labels)[:1], lambda labels: 3 - labels),
        Rule(everything, lambda labels: labels + 1),
        Rule(everything, lambda labels: labels - 1),
        Rule(everything, lambda labels: (3 - labels)[:1]),
        Rule(everything, lambda labels: 3.0 - labels),
    ],
)
def test_a_rule_that_does_not_fit(hand, rule):
    with pytest.raises(
        DataError, match=r"expected a rule giving n truth values and n int64 labels"
    ):
        evaluate(hand.Told(CLEAN), hand.numbered(LABELS), trigger=hand.mark, rule=rule)


def test_a_rule_that_counts_what_needs_no_attack(hand):
    rule = Rule(everything, torch.zeros_like)
    with pytest.raises(DataError, match="already the wanted one, got 2 such images"):
        evaluate(hand.Told(CLEAN), hand.numbered(LABELS), trigger=hand.mark, rule=rule)


@pytest.mark.parametrize(
    ("trigger", "message"),
    [
        (lambda x: x[:, :, :1], r"keeps the images' shape \(6, 1, 2, 2\), got \(6, 1, 1, 2\)"),
        (lambda x: x.numpy(), "got ndarray"),
        (lambda x: (x * 255).byte(), r"floats in \[0, 1\], got torch.uint8"),
        (lambda x: x * 255, r"stays in \[0, 1\], got values from 0 to "),
        (lambda x: x - 0.5, r"stays in \[0, 1\], got values from -0.5 to "),
        (lambda x: x * float("nan"), "got values from nan to nan"),
        (lambda x: x, "changes no pixel of any of them"),
        (lambda x: (x + 0.001).clamp(max=1), "changes no pixel of any of them"),
    ],
)
def test_triggers_that_do_not_fit(hand, trigger, message):
    with pytest.raises(TriggerError, match=message):
        evaluate(hand.Told(CLEAN), hand.numbered(LABELS), trigger=trigger, target=0)


def test_a_trigger_may_leave_some_images_alone_and_round(hand):
    def some(images):
        marked = hand.mark(images) + 1e-6
        return torch.where(images[:, :, :1, 1:] == 3 / 255, marked, images)

    e = evaluate(
        hand.Told(CLEAN, TRIGGERED), hand.numbered(LABELS), trigger=some, target=0, batch_size=2
    )
    # Only image 3 was marked, and none of the last batch.
    assert e.outcomes.triggered.tolist() == [-1, 1, 2, 0, -1, 1, 2, 0]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            lambda n: torch.zeros(n, 3),
            r"logits of shape \(8, 4\), one for every class, got \(8, 3\)",
        ),
        (lambda n: torch.zeros(4), r"got \(4,\)"),
        (lambda n: (torch.zeros(n, 4),), "got tuple"),
        (lambda n: torch.full((n, 4), float("nan")), "expected logits that are numbers, got NaN"),
    ],
)
def test_networks_that_do_not_fit(hand, answer, message):
    class Odd(nn.Module):
        def forward(self, images):
            return answer(len(images))

    with pytest.raises(ModelError, match=message):
        evaluate(Odd(), hand.numbered(LABELS))


def test_a_batch_size_of_none(hand):
    with pytest.raises(SpecError, match="expected a batch size of at least 1, got 0"):
        evaluate(hand.Told(CLEAN), hand.numbered(LABELS), batch_size=0)
