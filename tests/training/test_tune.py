"""Fine-tuning: patience, the cap, the best weights, and what happens when it diverges."""

import copy
import json
import weakref

import pytest
import torch
from torch import nn

from excise.seeding import Rng
from excise.testing import (
    Interruption,
    differences,
    interrupt_at,
    nothing_global_changes,
)
from excise.training import tune

pytestmark = pytest.mark.fast


class Bench:
    """A model of one number that moves by one a step, and a judge that says what it is told.

    ``figures`` are the validation losses after 0, 1, 2… epochs; the last one stays.
    """

    def __init__(self, figures, n=4, batch_size=4):
        self.model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.model.weight)
        self.model.register_buffer("epochs_seen", torch.zeros(()))
        self.figures = list(figures)
        self.asked = 0
        self.n, self.batch_size = n, batch_size
        self.batches = []
        self.flags = []

    def losses(self, index):
        self.flags.append(self.model.training)
        self.batches.append(index.tolist())
        self.model.epochs_seen += 1
        yield -self.model.weight.sum()

    def validate(self):
        assert not self.model.training
        figure = self.figures[min(self.asked, len(self.figures) - 1)]
        self.asked += 1
        return figure

    def tune(self, *, rate=1.0, patience=3, max_epochs=50, **options):
        optimizer = torch.optim.SGD(self.model.parameters(), lr=rate)
        return tune(
            self.model, self.n, self.losses, self.validate, optimizer, Rng(0),
            batch_size=self.batch_size, patience=patience, max_epochs=max_epochs, **options,
        )  # fmt: skip


def test_it_stops_when_patience_is_out_and_keeps_the_best():
    bench = Bench([5, 4, 3, 3.5, 2, 2, 2.5, 9])
    tuned = bench.tune(patience=3)
    assert tuned.best_epoch == 4
    assert len(tuned.history) == 7
    assert [row["waited"] for row in tuned.history] == [0, 0, 1, 0, 1, 2, 3]
    assert [row["validation_loss"] for row in tuned.history] == [4, 3, 3.5, 2, 2, 2.5, 9]
    assert [row["epoch"] for row in tuned.history] == [1, 2, 3, 4, 5, 6, 7]
    assert {row["stage"] for row in tuned.history} == {"tune"}
    assert (tuned.capped, tuned.diverged) == (False, False)
    # One step an epoch: the weight counts them, and so does the buffer.
    assert bench.model.weight.item() == 4
    assert bench.model.epochs_seen.item() == 4
    assert not bench.model.training


def test_equal_is_not_better():
    bench = Bench([2, 2])
    tuned = bench.tune(patience=2)
    assert (tuned.best_epoch, len(tuned.history)) == (0, 2)
    assert bench.model.weight.item() == 0


def test_the_start_may_be_the_best():
    bench = Bench([1, 2, 3])
    assert bench.tune(patience=5).best_epoch == 0
    assert bench.model.weight.item() == 0


@pytest.mark.parametrize(("patience", "max_epochs"), [(0, 9), (9, 0), (0, 0)])
def test_no_patience_or_no_epochs_tune_nothing(patience, max_epochs):
    bench = Bench([1, 0])
    tuned = bench.tune(patience=patience, max_epochs=max_epochs)
    assert (tuned.best_epoch, tuned.history, tuned.diverged) == (0, (), False)
    assert bench.model.weight.item() == 0
    assert tuned.capped == (patience > 0)


def test_the_cap_is_said_when_it_was_hit():
    bench = Bench([9, 8, 7, 6, 5, 4])
    tuned = bench.tune(max_epochs=4)
    assert (tuned.capped, tuned.best_epoch, len(tuned.history)) == (True, 4, 4)
    # Out of patience in the very last epoch: that is why it stopped.
    tuned = Bench([1, 2, 2, 2]).tune(patience=3, max_epochs=3)
    assert (tuned.capped, len(tuned.history)) == (False, 3)


def test_without_a_rate_the_weights_stay():
    bench = Bench([3, 2, 1, 1, 1, 1])
    tuned = bench.tune(rate=0.0)
    assert tuned.best_epoch == 2
    assert bench.model.weight.item() == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_run_that_diverges_keeps_the_last_good_state(bad):
    bench = Bench([3, 2, bad, 1])
    tuned = bench.tune()
    assert (tuned.diverged, tuned.capped) == (True, False)
    assert len(tuned.history) == 2
    assert tuned.best_epoch == 1
    assert bench.model.weight.item() == 1
    text = json.dumps([dict(row) for row in tuned.history], allow_nan=False)
    assert json.loads(text)[1]["validation_loss"] == str(bad)


def test_a_real_run_that_diverges_ends_with_finite_weights():
    with Rng(0).scope("net"):
        model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        x, y = torch.rand(16, 3), torch.arange(16) % 2
    before = copy.deepcopy(model).eval()
    tuned = tune(
        model, 16,
        lambda index: iter([nn.functional.cross_entropy(model(x[index]), y[index])]),
        lambda: nn.functional.cross_entropy(model(x), y).item(),
        torch.optim.SGD(model.parameters(), lr=1e30), Rng(0),
        batch_size=4, patience=5, max_epochs=20,
    )  # fmt: skip
    assert tuned.diverged
    assert all(t.isfinite().all() for t in model.state_dict().values())
    assert tuned.best_epoch > 0 or differences(model, before) == []
    json.dumps([dict(row) for row in tuned.history], allow_nan=False)


def test_every_epoch_sees_every_image_once_in_an_order_of_its_own():
    bench = Bench([9, 8, 7, 6], n=9, batch_size=4)
    bench.tune(max_epochs=3)
    epochs = [[*bench.batches[k], *bench.batches[k + 1]] for k in (0, 2, 4)]
    assert [len(batch) for batch in bench.batches] == [4, 5] * 3
    assert all(sorted(order) == list(range(9)) for order in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert all(bench.flags)


def test_the_gradients_of_all_losses_make_one_step():
    bench = Bench([9, 8])
    bench.losses = lambda index: iter([-bench.model.weight.sum(), -2 * bench.model.weight.sum()])
    bench.tune(max_epochs=1)
    assert bench.model.weight.item() == 3


def test_each_loss_is_freed_before_the_next_is_computed():
    bench, alive = Bench([9, 8]), []

    def losses(index):
        for _ in range(3):
            alive.append(sum(1 for made in held if made() is not None))
            loss = -(bench.model.weight * torch.ones(1)).sum()
            held.append(weakref.ref(loss))
            yield loss
            del loss

    held = []
    bench.losses = losses
    bench.tune(max_epochs=1)
    # The loop of tune holds the loss before last at most.
    assert max(alive) <= 1


def test_what_is_held_is_held_after_every_update():
    bench, weights = Bench([9, 8, 7], n=4, batch_size=2), []

    def hold():
        weights.append(bench.model.weight.item())
        with torch.no_grad():
            bench.model.weight.zero_()

    bench.tune(max_epochs=2, hold=hold)
    assert weights == [1, 1, 1, 1]
    assert bench.model.weight.item() == 0


def test_every_epoch_is_reported():
    bench, rows = Bench([3, 2, 1]), []
    tuned = bench.tune(on_round=rows.append, max_epochs=2)
    assert tuple(rows) == tuned.history


def test_no_gradients_are_left_and_nothing_global_changes():
    bench = Bench([3, 2, 1])
    with nothing_global_changes(), pytest.raises(Interruption):
        bench.tune(on_round=interrupt_at(2))
    bench.tune()
    assert bench.model.weight.grad is None


def with_dropout(seed=0, *, grad=True):
    with Rng(3).scope("net"):
        model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 2))
        x, y = torch.rand(12, 4), torch.arange(12) % 2
    with torch.set_grad_enabled(grad):
        tune(
            model, 12,
            lambda index: iter([nn.functional.cross_entropy(model(x[index]), y[index])]),
            lambda: nn.functional.cross_entropy(model(x), y).item(),
            torch.optim.SGD(model.parameters(), lr=0.1), Rng(seed),
            batch_size=4, patience=5, max_epochs=5,
        )  # fmt: skip
    return model


def test_the_same_seed_gives_the_same_weights_also_with_dropout():
    with nothing_global_changes():
        one = with_dropout()
    torch.rand(3)
    assert differences(one, with_dropout()) == []
    assert differences(one, with_dropout(grad=False)) == []
    assert differences(one, with_dropout(1))


@pytest.mark.parametrize("start", [float("nan"), float("inf")])
def test_any_figure_is_better_than_none(start):
    bench = Bench([start, 2.0, 1.0, 1.5])
    tuned = bench.tune(patience=2, max_epochs=3)
    assert tuned.best_epoch == 2
    assert bench.model.weight.item() == 2
