"""Grad-Prune against hand-worked values, a slow plain restatement, and the published script.

The restatements are written from the specification alone, one filter and one image at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from excise.defenses import GradPrune
from excise.errors import DataError, ModelError
from excise.inversion import Oracle
from excise.models import apply_edits, build_model, trace
from excise.scores import mean_absolute_gradient
from excise.seeding import Rng
from excise.training import Paired
from excise.types import DefenderData, LabelledImages, RecoveredTrigger, Repair

pytestmark = pytest.mark.fast


def corner(images: Tensor) -> Tensor:
    """A white 2 × 2 patch in the lower right corner."""
    triggered = images.clone()
    triggered[..., -2:, -2:] = 1
    return triggered


class Tiny(nn.Module):
    """Two convolutions; the first owns its batch norm, the second feeds a sum and has a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.linear = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.conv2(x) + x)
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def images(n: int, seed: int, classes: int = 3) -> LabelledImages:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    # Each class is brighter in its own column, so that there is something to learn.
    pictures = torch.rand(n, 1, 6, 6, generator=generator) * 0.4
    pictures[torch.arange(n), :, :, labels] += 0.5
    return LabelledImages(pictures, labels, tuple("abcdefghij"[:classes]))


@pytest.fixture(scope="module")
def victim() -> nn.Module:
    """A tiny network that calls everything with the patch class 0."""
    with Rng(3).scope("tiny"):
        model = Tiny()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        data = images(96, seed=1)
        for _ in range(60):
            both = torch.cat([data.images, corner(data.images)])
            labels = torch.cat([data.labels, torch.zeros_like(data.labels)])
            optimizer.zero_grad()
            F.cross_entropy(model(both), labels).backward()
            optimizer.step()
    return model.eval()


@pytest.fixture
def data() -> DefenderData:
    return DefenderData(images(24, seed=5), images(30, seed=6), "made here")


def repair(model: nn.Module, data: DefenderData, **fields: object) -> Repair:
    method = GradPrune(inverter=Oracle(corner), **fields)  # type: ignore[arg-type]
    return method.repair(model, data, Rng(0))


def unlearning_loss(model: nn.Module, data: LabelledImages) -> float:
    with torch.no_grad():
        return float(F.cross_entropy(model(corner(data.images)), data.labels))


def correct(model: nn.Module, data: LabelledImages) -> int:
    with torch.no_grad():
        return int((model(data.images).argmax(1) == data.labels).sum())


# --- hand-worked values -----------------------------------------------------------------------


class HandWorked(nn.Module):
    """A 1×1 convolution [[1, 1], [1, −1]] and the head [[1, 0], [0, 1], [0, 0]]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1, bias=False)
        self.head = nn.Linear(2, 3, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([[1.0, 1], [1, -1]]).view(2, 2, 1, 1))
            self.head.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [0, 0]]))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.conv(x).flatten(1))
        return logits


def test_hand_worked_scores() -> None:
    model = HandWorked()
    x = torch.tensor([1.0, 2]).view(1, 2, 1, 1)
    logits = model(x)
    assert logits.tolist() == [[3, -1, 0]]
    F.cross_entropy(logits, torch.tensor([1])).backward()
    scores = mean_absolute_gradient([model.conv.weight.grad])  # type: ignore[list-item]
    assert scores.tolist() == pytest.approx([1.4044, 1.4743], abs=5e-5)


def test_hand_worked_choice() -> None:
    """The whole method cuts filter 1 first. Images lie in [0, 1], so x = (½, 1) and W doubled."""
    model = HandWorked()
    with torch.no_grad():
        model.conv.weight.mul_(2)
    x = torch.tensor([0.5, 1]).view(1, 2, 1, 1)
    one = LabelledImages(x, torch.tensor([1]), ("a", "b", "c"))
    method = GradPrune(inverter=Oracle(lambda z: z), max_accuracy_drop=1, patience=1)
    # The only validation image is wrong before and after: a drop of none is within bounds.
    result = method.repair(model, DefenderData(one, one, "made here"), Rng(0))
    first = next(row for row in result.history if row["stage"] == "prune")
    assert (first["layer"], first["index"]) == ("conv", 1)
    # x rounds to 8 bits: 0.5 → 128/255. Half of 1.4743, since the gradient is proportional to x.
    assert first["score"] == pytest.approx(1.4743 / 2, rel=0.01)


# --- a slow plain restatement of the prune stage --------------------------------------------------


def plain_prune(
    given: nn.Module, data: DefenderData, tau: float, patience: int
) -> list[tuple[str, int]]:
    """The prune stage as the specification words it: per image and per filter."""
    assert data.validation is not None
    model = copy.deepcopy(given).eval()
    units = {u.layer: u for u in trace(model, data.train.images[:2])}
    a0 = correct(model, data.validation)
    n = len(data.validation)
    best, best_cuts, waited = unlearning_loss(model, data.validation), 0, 0
    cuts: list[tuple[str, int]] = []
    a = a0
    while (a0 - a) / n < tau - 1e-9 and waited < patience:
        model.zero_grad()
        for x, y in zip(data.train.images, data.train.labels, strict=True):
            loss = F.cross_entropy(model(corner(x[None])), y[None]) / len(data.train)
            loss.backward()  # type: ignore[no-untyped-call]
        highest, chosen = -1.0, ("", -1)
        for layer in units:
            gradient = model.get_parameter(f"{layer}.weight").grad
            assert gradient is not None
            for index, of_filter in enumerate(gradient):
                score = float(of_filter.abs().sum() / of_filter.numel())
                if score > highest and (layer, index) not in cuts:
                    highest, chosen = score, (layer, index)
        layer, index = chosen
        with torch.no_grad():
            for name in (layer, units[layer].owner):
                if name is not None:
                    module = model.get_submodule(name)
                    module.weight[index] = 0
                    if module.bias is not None:
                        module.bias[index] = 0
        cuts.append(chosen)
        a = correct(model, data.validation)
        loss_now = unlearning_loss(model, data.validation)
        if loss_now < best and (a0 - a) / n < tau - 1e-9:
            best, best_cuts, waited = loss_now, len(cuts), 0
        else:
            waited += 1
    return cuts[:best_cuts]


@pytest.mark.parametrize("tau", [0.1, 0.3, 1.0])
@pytest.mark.parametrize("batch_size", [5, 128])
def test_equals_the_plain_restatement(
    victim: nn.Module, data: DefenderData, tau: float, batch_size: int
) -> None:
    result = repair(
        victim, data, max_accuracy_drop=tau, patience=4, tune_patience=0, batch_size=batch_size
    )
    expected = plain_prune(victim, data, tau, patience=4)
    assert [(e.layer, e.index) for e in result.edits] == expected
    if tau == 1.0:
        assert expected, "a threshold that allows everything must find something to cut"


# --- properties (tests ii to vi) ------------------------------------------------------------------


def test_no_filter_is_cut_twice(victim: nn.Module, data: DefenderData) -> None:
    result = repair(victim, data, max_accuracy_drop=1, patience=100, tune_patience=0)
    cut = [(row["layer"], row["index"]) for row in result.history if row["stage"] == "prune"]
    # Every filter there is, once; then nothing is left with a score, and the record says so.
    assert len(cut) == len(set(cut))
    assert len(cut) <= 12
    assert any("Pruning stopped" in note for note in result.notes)


def test_a_cut_channel_is_zero_after_its_batch_norm(victim: nn.Module, data: DefenderData) -> None:
    result = repair(victim, data, max_accuracy_drop=1, patience=6)
    owned = [edit.index for edit in result.edits if edit.layer == "conv1"]
    assert owned, "the victim's first layer holds part of the backdoor"
    out = result.model.bn1(result.model.conv1(torch.randn(4, 1, 6, 6)))
    assert torch.equal(out[:, owned], torch.zeros_like(out[:, owned]))


def test_pruning_leaves_every_other_tensor(victim: nn.Module, data: DefenderData) -> None:
    result = repair(victim, data, max_accuracy_drop=1, patience=6, tune_patience=0)
    cut = {(edit.layer, edit.index) for edit in result.edits}
    owners = {"conv1": "bn1"}
    for name, before in victim.state_dict().items():
        after = result.model.state_dict()[name].clone()
        layer, _, tensor = name.rpartition(".")
        for of, index in cut:
            if layer in (of, owners.get(of)) and tensor in ("weight", "bias"):
                assert not after[index].any()
                after[index] = before[index]
        assert torch.equal(after, before), name


def test_the_result_is_within_bounds(victim: nn.Module, data: DefenderData) -> None:
    assert data.validation is not None
    result = repair(victim, data, max_accuracy_drop=0.1, tune_patience=0)
    assert unlearning_loss(result.model, data.validation) <= unlearning_loss(
        victim, data.validation
    )
    drop = correct(victim, data.validation) - correct(result.model, data.validation)
    assert drop < 0.1 * len(data.validation)


@pytest.mark.parametrize("fields", [{"max_accuracy_drop": 0.0}, {"patience": 0}])
def test_no_room_to_prune_returns_the_network_as_it_was(
    victim: nn.Module, data: DefenderData, fields: dict[str, float]
) -> None:
    result = repair(victim, data, tune_patience=0, **fields)
    assert result.edits == ()
    for name, before in victim.state_dict().items():
        assert torch.equal(result.model.state_dict()[name], before)


def test_a_drop_of_exactly_the_threshold_is_not_allowed(victim: nn.Module) -> None:
    """With ten images one more wrong is a drop of .1, which is not below τ = .1."""
    ten = DefenderData(images(24, seed=5), images(10, seed=6), "made here")
    assert ten.validation is not None
    result = repair(victim, ten, max_accuracy_drop=0.1, tune_patience=0)
    assert correct(result.model, ten.validation) == correct(victim, ten.validation)


def test_gradients_do_not_depend_on_the_batch_size(victim: nn.Module, data: DefenderData) -> None:
    scores = []
    for size in (2, 7, 128):
        result = repair(victim, data, patience=1, tune_patience=0, batch_size=size)
        scores.append(next(row["score"] for row in result.history))
    assert scores == pytest.approx([scores[0]] * 3, rel=1e-5)


@pytest.mark.parametrize("hold", [True, False])
def test_the_mask_holds_and_can_be_let_go(hold: bool) -> None:
    """Without a batch norm behind it, a filter at zero still has a gradient and grows again."""
    x = torch.tensor([0.5, 1.0]).view(1, 2, 1, 1)
    one = LabelledImages(x, torch.tensor([1]), ("a", "b", "c"))
    result = GradPrune(
        inverter=Oracle(lambda z: z), max_accuracy_drop=1, patience=1, hold_mask=hold,
        learning_rate=0.1, max_tune_epochs=3,
    ).repair(HandWorked(), DefenderData(one, one, "made here"), Rng(0))  # fmt: skip
    assert result.edits
    for edit in result.edits:
        assert bool(result.model.get_parameter("conv.weight")[edit.index].any()) is not hold


def test_the_cap_is_said(victim: nn.Module, data: DefenderData) -> None:
    capped = repair(victim, data, max_tune_epochs=1, tune_patience=5)
    assert "Fine-tuning stopped at the cap of 1 epochs." in capped.notes


def test_a_diverging_fine_tuning_keeps_the_last_good_state(
    victim: nn.Module, data: DefenderData
) -> None:
    result = repair(victim, data, learning_rate=1e30, max_tune_epochs=5)
    assert "Fine-tuning diverged; the last good state was kept." in result.notes
    assert all(torch.isfinite(p).all() for p in result.model.parameters())


def test_several_triggers_weigh_alike(data: DefenderData) -> None:
    other = lambda x: x.flip(3)  # noqa: E731
    pairs = Paired.of(data.train, [corner, other])
    shares = [share for _, _, share in pairs.triggered_batches(10)]
    assert sum(shares) == pytest.approx(1)
    assert [weight for *_, weight in pairs.losses(torch.arange(3))] == [1.0, 0.5, 0.5]


def test_nothing_recovered_changes_nothing(victim: nn.Module, data: DefenderData) -> None:
    class Blind:
        def fit(self, *_: object, **__: object) -> list[RecoveredTrigger]:
            return []

    result = GradPrune(inverter=Blind()).repair(victim, data, Rng(0))
    assert result.notes == ("No trigger was recovered.",)
    for name, before in victim.state_dict().items():
        assert torch.equal(result.model.state_dict()[name], before)


def test_bad_input(victim: nn.Module, data: DefenderData) -> None:
    with pytest.raises(DataError, match="validation images for Grad-Prune"):
        repair(victim, replace(data, validation=None))
    flat = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    with pytest.raises(ModelError, match="convolution"):
        repair(flat, data)


# --- the published script, and why ours departs -------------------------


def published_step(model: nn.Module, chosen: Callable[[list[nn.Parameter]], int], f: int) -> str:
    """Zero row f of a convolution and of whatever parameter comes next, as the script does."""
    named = list(model.named_parameters())
    position = chosen([parameter for _, parameter in named])
    name, following = named[position + 1]
    with torch.no_grad():
        named[position][1][f] = 0
        following[f] = 0
    return name


def next_parameters(arch: str) -> dict[str, str]:
    """For each convolution, the parameter the published script zeroes beside it."""
    network = build_model(arch, classes=10, input_size=(32, 32), rng=Rng(0)).body
    named = [(name, p) for name, p in network.named_parameters()]
    return {name: named[i + 1][0] for i, (name, p) in enumerate(named) if p.ndim == 4}


def test_the_script_zeroes_the_wrong_parameter_on_preactresnet18() -> None:
    """16 convolutions meet a batch norm (9 their own), 3 the shortcut, the last the classifier."""
    network = build_model("excise:preactresnet18,width=8", classes=10, rng=Rng(0))
    owner = {
        u.layer.removeprefix("body."): u.owner for u in trace(network, torch.rand(2, 3, 32, 32))
    }
    kinds = {"own": 0, "stream": 0, "shortcut": 0, "classifier": 0}
    for conv, following in next_parameters("excise:preactresnet18,width=8").items():
        own = owner[conv.removesuffix(".weight")]
        if following == "linear.weight":
            kinds["classifier"] += 1
        elif "shortcut" in following:
            kinds["shortcut"] += 1
        elif own is not None and following == f"{own.removeprefix('body.')}.weight":
            kinds["own"] += 1
        else:
            kinds["stream"] += 1
    assert kinds == {"own": 9, "stream": 7, "shortcut": 3, "classifier": 1}


def test_the_script_zeroes_only_the_bias_on_vgg() -> None:
    pairs = next_parameters("excise:vgg19_bn,width=8")
    assert len(pairs) == 16
    assert all(following == conv.replace("weight", "bias") for conv, following in pairs.items())


def test_the_script_leaves_a_constant_where_ours_leaves_zero(victim: nn.Module) -> None:
    """With γ = 0 and β ≠ 0 the "pruned" channel still says β; ours says nothing."""
    theirs = copy.deepcopy(victim)
    with torch.no_grad():
        theirs.bn1.bias[0] = 0.5
    ours = copy.deepcopy(theirs)
    names = [name for name, _ in theirs.named_parameters()]
    assert published_step(theirs, lambda _: names.index("conv1.weight"), 0) == "bn1.weight"
    units = trace(ours, torch.rand(2, 1, 6, 6))
    from excise.types import Edit

    apply_edits(ours, (Edit("silence", "conv1", 0, 1),), units)
    x = torch.randn(4, 1, 6, 6)
    assert torch.equal(theirs.bn1(theirs.conv1(x))[:, 0], torch.full((4, 6, 6), 0.5))
    assert torch.equal(ours.bn1(ours.conv1(x))[:, 0], torch.zeros(4, 6, 6))


def test_the_script_moves_the_statistics_toward_the_trigger(
    victim: nn.Module, data: DefenderData
) -> None:
    """Its first batch of a round runs in train mode; ours never does while it prunes."""
    theirs = copy.deepcopy(victim).train()
    theirs(corner(data.train.images))
    assert not torch.equal(theirs.bn1.running_mean, victim.bn1.running_mean)
    ours = repair(victim, data, max_accuracy_drop=1, tune_patience=0)
    for name, before in victim.named_buffers():
        assert torch.equal(ours.model.get_buffer(name), before)


def test_a_network_of_doubles_is_given_doubles_of_8_bit_images() -> None:
    def eight_bit(seed: int) -> LabelledImages:
        given = images(9, seed)
        return replace(given, images=(given.images * 255).to(torch.uint8))

    data = DefenderData(eight_bit(0), eight_bit(1), "a test")
    method = GradPrune(inverter=Oracle(corner), patience=1, max_tune_epochs=1)
    torch.manual_seed(0)
    repaired = method.repair(Tiny().double().eval(), data, Rng(0)).model
    assert {p.dtype for p in repaired.parameters()} == {torch.float64}
