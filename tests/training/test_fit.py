"""The fit loop: the same weights from the same seed, also after an interruption."""

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn

from excise.errors import DataError, DivergedError, SpecError
from excise.registry import spec_error
from excise.seeding import Rng
from excise.testing import Interruption, differences, interrupt_at, nothing_global_changes
from excise.training import Recipe, fit
from excise.training.fit import batches_of, number_of_batches
from excise.types import LabelledImages

pytestmark = pytest.mark.fast

RECIPE = Recipe(epochs=3, batch_size=8, learning_rate=0.05, warmup_epochs=0.5)


class Net(nn.Module):
    """Batch norm and dropout: a network with state and with draws of its own."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.3)
        self.linear = nn.Linear(4, 3)

    def forward(self, images):
        x = self.norm(self.conv(images)).relu().mean((2, 3))
        return self.linear(self.dropout(x))


def network(seed=0):
    with Rng(seed).scope("net"):
        return Net()


def images(n=25, seed=0, **changes):
    generator = torch.Generator().manual_seed(seed)
    made = {
        "images": torch.randint(0, 256, (n, 1, 8, 8), generator=generator, dtype=torch.uint8),
        "labels": torch.arange(n) % 3,
        "classes": ("a", "b", "c"),
    }
    return LabelledImages(**(made | changes))


def trained(recipe=RECIPE, seed=0, data=None, **options):
    model = network()
    fit(model, images() if data is None else data, recipe, Rng(seed), **options)
    return model


def test_it_learns_and_reports():
    rows = []
    model = trained(dataclasses.replace(RECIPE, epochs=20), on_round=rows.append)
    assert [row["epoch"] for row in rows] == list(range(1, 21))
    assert {(row["stage"], row["epochs"]) for row in rows} == {("fit", 20)}
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert all(row["seconds"] > 0 for row in rows)
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_same_seed_gives_the_same_weights():
    with nothing_global_changes():
        one = trained()
    torch.rand(5)
    assert differences(one, trained()) == []
    assert differences(one, trained(seed=1))


def test_the_callers_modes_change_nothing():
    with torch.no_grad():
        model = network().eval()
        fit(model, images(), RECIPE, Rng(0))
    assert differences(model, trained()) == []


def test_the_images_stay_as_they_are():
    data = images()
    before = data.fingerprint()
    trained(data=data)
    assert data.fingerprint() == before


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_it_resumes_bit_for_bit_after_an_interruption(tmp_path, epoch):
    checkpoint = tmp_path / "deep" / "checkpoint.pt"
    with nothing_global_changes(), pytest.raises(Interruption):
        trained(checkpoint=checkpoint, identity="x", on_round=interrupt_at(epoch))
    rows = []
    resumed = trained(checkpoint=checkpoint, identity="x", on_round=rows.append)
    assert [row["epoch"] for row in rows] == list(range(epoch + 1, 4))
    assert differences(resumed, trained()) == []
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == ["checkpoint.pt"]


def test_it_resumes_in_the_middle_of_an_epoch_from_the_end_of_the_one_before(tmp_path):
    checkpoint = tmp_path / "c.pt"
    model, calls = network(), []

    def stop(module, given):
        calls.append(1)
        if len(calls) == 6:  # the third batch of the second epoch
            raise KeyboardInterrupt

    hook = model.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        fit(model, images(), RECIPE, Rng(0), checkpoint=checkpoint)
    hook.remove()
    assert differences(trained(checkpoint=checkpoint), trained()) == []


FOREIGN = {
    "another identity": {"identity": "y"},
    "another recipe": {"recipe": dataclasses.replace(RECIPE, learning_rate=0.06)},
    "another seed": {"seed": 1},
    "other images": {"data": images(seed=1)},
    "other labels": {"data": images(labels=(torch.arange(25) + 1) % 3)},
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, case):
    checkpoint = tmp_path / "c.pt"
    trained(checkpoint=checkpoint, identity="x")
    with pytest.raises(
        DataError,
        match=r"expected a checkpoint of this very run, got .*c\.pt, which belongs to a run with "
        r"other settings\. Delete it, or choose another output directory\.",
    ):
        trained(**({"checkpoint": checkpoint, "identity": "x"} | FOREIGN[case]))


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    trained(checkpoint=tmp_path / "c.pt")
    model = network()
    model.linear = nn.Linear(4, 4)
    with pytest.raises(DataError, match="a checkpoint of this very run"):
        fit(model, images(), RECIPE, Rng(0), checkpoint=tmp_path / "c.pt")


@pytest.mark.parametrize("content", [{}, [1, 2], {"weights": torch.zeros(2)}])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(DataError, match="a checkpoint of this very run"):
        trained(checkpoint=tmp_path / "c.pt")


@pytest.mark.parametrize("left", [0, 1, 100, 0.5, -1])
def test_a_damaged_checkpoint_is_refused(tmp_path, left):
    checkpoint = tmp_path / "c.pt"
    with pytest.raises(Interruption):
        trained(checkpoint=checkpoint, on_round=interrupt_at(1))
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: len(whole) // 2] if left == 0.5 else whole[:left])
    with pytest.raises(DataError, match=r"of this very run, got .*c\.pt, which is damaged \(\w+\)"):
        trained(checkpoint=checkpoint)


@pytest.mark.parametrize("rate", [1e30, 1e12])
def test_divergence_says_what_to_do(tmp_path, rate):
    recipe = dataclasses.replace(RECIPE, learning_rate=rate, epochs=40, warmup_epochs=0)
    rows = []
    with (
        nothing_global_changes(),
        pytest.raises(
            DivergedError,
            match=r"training diverged in epoch \d+: loss (nan|inf)\. Lower learning_rate \(now 1e",
        ) as caught,
    ):
        trained(recipe, checkpoint=tmp_path / "c.pt", on_round=rows.append)
    # What was saved is the last epoch that was still good.
    assert f"in epoch {len(rows) + 1}:" in str(caught.value)
    assert (tmp_path / "c.pt").exists() == bool(rows)


def test_bfloat16_leaves_weights_in_float32():
    recipe = dataclasses.replace(RECIPE, precision="bfloat16")
    model = trained(recipe)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(p.isfinite().all() for p in model.parameters())
    assert differences(model, trained(recipe)) == []
    assert differences(model, trained())


def test_floats_train_like_the_8_bits_they_stand_for():
    data = images()
    floats = dataclasses.replace(data, images=data.floats())
    assert differences(trained(data=data), trained(data=floats)) == []


@pytest.mark.parametrize(
    ("mirror", "flip", "same_as"),
    [(True, None, True), (False, None, False), (True, False, False), (False, True, True)],
)
def test_images_are_mirrored_where_the_data_or_the_recipe_says_so(mirror, flip, same_as):
    recipe = dataclasses.replace(RECIPE, flip=flip)
    expected = dataclasses.replace(RECIPE, flip=same_as)
    model = trained(recipe, data=images(mirror=mirror))
    assert differences(model, trained(expected)) == []


def test_images_shift_by_an_eighth_of_their_height():
    # 8 pixels high: 1; said outright it is the same, and not the same as none.
    one = dataclasses.replace(RECIPE, crop_padding=1)
    none = dataclasses.replace(RECIPE, crop_padding=0)
    assert differences(trained(), trained(one)) == []
    assert differences(trained(), trained(none))


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 9, 16, 17, 33])
@pytest.mark.parametrize("size", [2, 3, 8, 64])
def test_batches_hold_every_image_once_and_no_single_one_comes_last(n, size):
    batches = batches_of(n, size, torch.Generator().manual_seed(n))
    assert torch.cat(batches).sort().values.tolist() == list(range(n))
    assert n == 1 or all(len(batch) > 1 for batch in batches)
    assert all(len(batch) == size for batch in batches[:-1])
    assert len(batches[-1]) <= size + 1
    assert number_of_batches(n, size) == len(batches)


def test_the_order_is_the_generators():
    order = [torch.cat(batches_of(20, 4, torch.Generator().manual_seed(s))) for s in (0, 0, 1)]
    assert torch.equal(order[0], order[1])
    assert not torch.equal(order[0], order[2])


def test_every_epoch_has_an_order_and_shifts_of_its_own():
    seen = []
    model = network()
    model.register_forward_pre_hook(lambda module, given: seen.append(given[0].clone()))
    fit(model, images(), RECIPE, Rng(0))
    epochs = [torch.cat(seen[k : k + 3]) for k in (0, 3, 6)]
    assert [len(epoch) for epoch in epochs] == [25] * 3
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[1], epochs[2])


def test_a_last_single_image_trains_where_batch_norm_sees_one_pixel():
    model = nn.Sequential(nn.Conv2d(1, 2, 8), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3))
    fit(model, images(9), dataclasses.replace(RECIPE, batch_size=8), Rng(0))


def test_the_rate_rises_then_falls_to_zero():
    recipe = Recipe(epochs=10, learning_rate=0.1, warmup_epochs=2)
    assert 0 < recipe.rate(0) < 1e-4
    assert recipe.rate(1) == pytest.approx(0.05, rel=1e-3)
    assert recipe.rate(2) == pytest.approx(0.1)
    assert recipe.rate(6) == pytest.approx(0.05)
    assert recipe.rate(10) == pytest.approx(0, abs=1e-12)
    assert recipe.rate(11) == pytest.approx(0, abs=1e-12)
    rates = [recipe.rate(k / 10) for k in range(101)]
    assert rates[:21] == sorted(rates[:21])
    assert rates[20:] == sorted(rates[20:], reverse=True)


def test_the_rate_without_warm_up_is_the_cosine():
    recipe = Recipe(epochs=4, learning_rate=0.2)
    for progress in (0, 0.5, 1, 2, 3.9, 4):
        cosine = 0.1 * (1 + math.cos(math.pi * progress / 4))
        assert recipe.rate(progress) == pytest.approx(cosine)


def test_a_warm_up_longer_than_the_training_only_rises():
    recipe = Recipe(epochs=2, learning_rate=0.1, warmup_epochs=5)
    assert recipe.rate(0) < recipe.rate(1) < recipe.rate(2) < 0.1


def test_the_rates_are_those_the_optimizer_gets():
    seen = []

    class Spy(torch.optim.SGD):
        def step(self, *given):
            seen.append(self.param_groups[0]["lr"])
            return super().step(*given)

    original, torch.optim.SGD = torch.optim.SGD, Spy
    try:
        trained(dataclasses.replace(RECIPE, epochs=2))
    finally:
        torch.optim.SGD = original
    # 25 images, 8 a step, the last one joined: 3 steps an epoch.
    assert seen == [RECIPE_OF_2.rate(epoch + step / 3) for epoch in range(2) for step in range(3)]


RECIPE_OF_2 = dataclasses.replace(RECIPE, epochs=2)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0), ("batch_size", 1), ("learning_rate", 0), ("momentum", 1),
        ("weight_decay", -1), ("warmup_epochs", -1), ("crop_padding", -1), ("precision", "int8"),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_explained(field, value):
    from pydantic import ValidationError

    with pytest.raises(ValidationError) as caught:
        Recipe(**{field: value})
    error = spec_error("the recipe", caught.value)
    assert isinstance(error, SpecError)
    assert str(error).startswith(f"expected {field} of the recipe to be ")


@pytest.mark.parametrize("preset", Recipe.PRESETS)
def test_presets_are_recipes(preset):
    assert Recipe(**Recipe.PRESETS[preset]).epochs >= 1


def test_one_step_is_sgd_with_momentum_and_weight_decay():
    """One batch, written out: v = g + λw, w ← w − η·v; second step v ← μv + g + λw."""
    data = images(6)
    recipe = Recipe(epochs=2, batch_size=6, learning_rate=0.1, crop_padding=0, flip=False)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double()
    slow = copy.deepcopy(model)
    floats = dataclasses.replace(data, images=data.floats().double())
    fit(model, floats, recipe, Rng(0))
    velocity = [torch.zeros_like(p) for p in slow.parameters()]
    for rate in (recipe.rate(0), recipe.rate(1)):
        loss = nn.functional.cross_entropy(slow(floats.images).float(), data.labels)
        gradients = torch.autograd.grad(loss, list(slow.parameters()))
        with torch.no_grad():
            for p, v, g in zip(slow.parameters(), velocity, gradients, strict=True):
                v.mul_(recipe.momentum).add_(g + recipe.weight_decay * p)
                p -= rate * v
    for p, q in zip(model.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-5)
