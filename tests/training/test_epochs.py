"""Epochs with a step of one's own: what they visit, where they stop, what they leave."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from excise.seeding import Rng
from excise.training import cosine, set_rate, train_epochs
from excise.types import LabelledImages

pytestmark = pytest.mark.fast


def data(n=10, mirror=False):
    images = torch.randint(0, 256, (n, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    return LabelledImages(images.byte(), torch.arange(n) % 3, ("a", "b", "c"), mirror)


def network():
    with Rng(0).scope("network"):
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.3), nn.Linear(144, 3)
        )


def descent(model, rate=0.1):
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)

    def step(images, labels, progress):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


def run(model, step, **how):
    how = {"epochs": 3, "batch_size": 4, "stage": "tune"} | how
    return train_epochs(model, data(), step, Rng(1), **how)


def test_every_image_is_visited_once_an_epoch_in_a_new_order():
    seen = []

    def step(images, labels, progress):
        assert images.dtype == torch.float32
        seen.append((round(progress, 4), [int(v) for v in (images * 255).round().sum((1, 2, 3))]))
        return torch.zeros(())

    run(network(), step, augment=False)
    sums = sorted(int(v) for v in data().images.long().sum((1, 2, 3)))
    epochs = [[s for p, batch in seen if int(p) == e for s in batch] for e in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [sums] * 3
    assert epochs[0] != epochs[1]
    assert [p for p, _ in seen[:3]] == [0.0, 0.3333, 0.6667]
    assert [len(batch) for _, batch in seen[:3]] == [4, 4, 2]


def test_it_trains_in_the_mode_it_was_asked_for_and_ends_in_eval():
    for training in (True, False):
        model, modes = network(), set()

        def step(images, labels, progress, model=model, modes=modes):
            modes.add(model.training)
            return torch.zeros(())

        run(model.train(), step, training=training)
        assert modes == {training}
        assert not model.training


def test_the_same_seed_gives_the_same_weights_whatever_the_caller_s_modes():
    one, other = network(), network()
    rows = []
    first = run(one, descent(one), on_round=rows.append)
    torch.rand(5)
    with torch.no_grad():
        second = run(other.train(), descent(other))
    assert first == second
    assert rows == list(first.history)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert all(p.grad is None for p in one.parameters())
    assert first.notes == ()


def test_it_stops_where_it_is_enough():
    model = network()
    assert len(run(model, descent(model), enough=lambda loss: True).history) == 1


@pytest.mark.parametrize("what", ["loss", "weight", "answer"])
def test_a_divergence_leaves_the_last_good_state(what):
    model = network()
    plain, calls = descent(model), []

    def step(images, labels, progress):
        loss = plain(images, labels, progress)
        calls.append(progress)
        if len(calls) == 6:  # the last of the second epoch
            if what == "loss":
                return loss * math.nan
            with torch.no_grad():
                # Finite, but no longer once multiplied by anything.
                model[0].weight[0] = math.inf if what == "weight" else 3e38
        return loss.clamp(max=1e3)

    kept = []
    result = run(
        model, step, epochs=9,
        on_round=lambda row: kept.append({n: t.clone() for n, t in model.state_dict().items()}),
    )  # fmt: skip
    assert result.diverged
    assert len(result.history) == 2
    assert all(torch.equal(t, kept[0][name]) for name, t in model.state_dict().items())
    json.dumps(result.history, allow_nan=False)
    assert result.notes == ("Stage tune diverged in epoch 2; the last good state was kept.",)


def test_the_cosine_and_the_rate_of_every_group():
    assert [cosine(0.1, p, 10) for p in (0, 5, 10, 12)] == pytest.approx([0.1, 0.05, 0, 0])
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)]}, {"params": [torch.ones(1)]}], lr=1)
    set_rate(optimizer, 0.3)
    assert [group["lr"] for group in optimizer.param_groups] == [0.3, 0.3]
