"""What batch norms remember: how much a trigger explains, and the search that needs no class."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from excise.inversion import Combined, Universal
from excise.inversion.finding import KEPT, triggers_of
from excise.inversion.memory import Memory, explaining
from excise.inversion.recalled import recall
from excise.inversion.suspects import Suspects, compare
from excise.seeding import Rng
from excise.types import DefenderData, LabelledImages

pytestmark = pytest.mark.fast

SHARE, CHANNEL, HEIGHT = 0.2, 5, 0.6


def clean(n: int = 60) -> torch.Tensor:
    return 0.3 * torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def trigger(images: torch.Tensor) -> torch.Tensor:
    """Raise the four pixels that become channel 5."""
    raised = images.clone()
    raised[:, :, CHANNEL // 4 :: 4, CHANNEL % 4 :: 4] += HEIGHT
    return raised


def network(images: torch.Tensor, share: float) -> nn.Module:
    """A network trained, as it were, on ``images`` with a share of them triggered.

    Sixteen channels of four pixels each; class 2 for those whose channel 5 is bright.
    """
    norm = nn.BatchNorm2d(16)
    split = nn.PixelUnshuffle(4)
    one, two = (split(x).transpose(0, 1).flatten(1) for x in (images, trigger(images)))
    mean = (1 - share) * one.mean(1) + share * two.mean(1)
    square = (1 - share) * one.square().mean(1) + share * two.square().mean(1)
    norm.running_mean, norm.running_var = mean, square - mean.square()
    head = nn.Linear(16, 3)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([0.5, 0.0, 0.0]))
        head.weight[2, CHANNEL] = 1.0
    return nn.Sequential(split, norm, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).eval()


def test_the_true_trigger_explains_all_at_the_share_it_was_planted_with() -> None:
    memory = Memory(network(clean(), SHARE), clean())
    explained, share = memory.explained(trigger)
    assert share == SHARE
    assert memory.unexplained > 0.1
    assert explained == pytest.approx(memory.unexplained, rel=1e-3)
    assert memory.explained_share(trigger) == pytest.approx(1, rel=1e-3)


def test_a_trigger_the_network_never_saw_explains_nothing() -> None:
    memory = Memory(network(clean(), SHARE), clean())
    assert memory.explained(lambda x: x)[0] == pytest.approx(0, abs=1e-4)
    assert memory.explained_share(lambda x: x + 0.4) < 0.05


def test_a_network_without_batch_norm_remembers_nothing() -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    memory = Memory(plain, clean())
    assert memory.empty
    assert recall(memory, 3, Rng(0)) == {}
    frozen = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), plain)
    assert Memory(frozen, clean()).empty


def test_what_clean_images_hardly_fit_is_left_alone() -> None:
    """KL(N(m, v) ‖ N(m + d, v)) = d² / 2v in every channel: here .2, then .3."""
    net = network(clean(), 0.0)
    norm = net[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    usual, spread = norm.running_mean.clone(), (norm.running_var + norm.eps).sqrt()
    norm.running_mean = usual + 0.4**0.5 * spread
    assert Memory(net, clean()).silence is None
    norm.running_mean = usual + 0.6**0.5 * spread
    memory = Memory(net, clean())
    assert memory.empty
    assert "(0.30 of divergence a channel, more than 0.25)" in (memory.silence or "")
    assert recall(memory, 3, Rng(0)) == {}
    assert all(share is None for _, share in found_in(net))
    images = LabelledImages(clean(), torch.arange(60) % 3, ("a", "b", "c"))
    suspects = compare(net, images, Rng(0), effort=0.05)
    assert suspects.numbers["memory"] == (None, None, None)
    assert suspects.remarks == (memory.silence,)
    found = Combined(effort=0.05).fit(net, DefenderData(images, None, "x"), Rng(0))
    assert memory.silence in found.notes


def test_the_network_comes_back_as_it_was() -> None:
    net = network(clean(), SHARE).train()
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    memory = Memory(net, clean())
    explaining(memory, 2, Universal(learning_rate=0.02), 0.03, Rng(0), rounds=3)
    assert net.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert not any(module._forward_pre_hooks for module in memory.net.modules())


def test_what_is_recalled_without_a_class_leads_to_the_target() -> None:
    memory = Memory(network(clean(), SHARE), clean())
    pattern = recall(memory, 3, Rng(0))["pattern"]
    assert pattern.flips[2] > 0.9
    assert memory.explained_share(pattern.trigger) > 0.8
    change = (pattern.trigger(clean()) - clean()).mean(0)[0]
    raised = change[CHANNEL // 4 :: 4, CHANNEL % 4 :: 4]
    assert float(raised.mean()) > 0.3
    assert float(change.abs().sum() - raised.abs().sum()) < 0.5 * float(raised.abs().sum())


def test_a_clean_network_recalls_nothing_that_leads_anywhere() -> None:
    memory = Memory(network(clean(), 0.0), clean())
    assert memory.unexplained < 1e-2
    assert max(max(one.flips) for one in recall(memory, 3, Rng(0)).values()) < 0.25


def test_statistics_that_are_no_numbers_end_the_search_with_what_it_has() -> None:
    net = network(clean(), SHARE)
    net[1].running_mean[0] = float("nan")
    found = explaining(Memory(net, clean()), None, Universal(), 0.03, Rng(0), rounds=3)
    assert torch.equal(found(clean()), clean())


def test_under_a_context_without_gradients_it_still_searches() -> None:
    memory = Memory(network(clean(), SHARE), clean())
    with torch.no_grad():
        found = explaining(memory, 2, Universal(learning_rate=0.02), 0.03, Rng(0), rounds=5)
    assert not torch.equal(found(clean()), clean())


# --- which triggers of a class are kept -----------------------------------------------------------


def found_in(net: nn.Module) -> list:
    images = LabelledImages(clean(), torch.arange(60) % 3, ("a", "b", "c"))
    return triggers_of(Suspects({"patch": (0.0, 0.0, 0.0)}, {}, {}), 2, net, images, Rng(0))


def test_triggers_that_explain_most_are_kept_best_first() -> None:
    found = found_in(network(clean(), SHARE))
    shares = [share for _, share in found]
    assert 1 <= len(found) <= KEPT
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.8
    assert shares[-1] >= shares[0] / 2


def test_where_nothing_is_remembered_the_small_ones_are_kept() -> None:
    net = network(clean(), SHARE)
    net[1] = nn.Identity()
    found = found_in(net)
    assert found
    assert all(share is None for _, share in found)


def test_memory_counts_from_a_quarter_of_the_images_on() -> None:
    shares = (0.1, 0.25, 0.5, 0.75, 1.0, None)
    assert Suspects({"memory": shares}, {}, {}).by_test() == {"memory": [0, 0, 1, 2, 2, 0]}
