"""What Adap-Blend and Adap-Patch share: payload, cover, a trigger of its own for each image."""

import pytest
import torch

from excise.attacks import AdapBlend, AdapPatch, load_victim, save_victim
from excise.errors import SpecError
from excise.models import build_model
from excise.seeding import Rng
from excise.training import Recipe
from excise.types import AllToAll, AllToOne, Backdoor, LabelledImages

pytestmark = pytest.mark.fast

ATTACKS = [AdapBlend, AdapPatch]


def images(n=200, classes=4):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return LabelledImages(pixels, torch.arange(n) % classes, tuple("abcdefghij")[:classes])


def poisoned(attack, data, seed=0):
    backdoor = attack.backdoor(data.shape, data.num_classes, Rng(seed).child("backdoor"))
    return attack.poison(data, backdoor, Rng(seed)), backdoor


@pytest.mark.parametrize(
    ("attack", "rates"), [(AdapBlend, (0.003, 0.003)), (AdapPatch, (0.003, 0.006))]
)
def test_published_rates_are_the_defaults(attack, rates):
    """150 payload images of 50,000, and as many or twice as many covers."""
    made = attack()
    assert (made.poison_ratio, made.cover_rate) == rates
    data = LabelledImages(
        torch.zeros(50_000, 1, 1, 1, dtype=torch.uint8),
        torch.arange(50_000) % 10,
        tuple("0123456789"),
    )
    index = made.poison_index(data, AllToOne(0), Rng(0))
    cover = made.cover_index(data, AllToOne(0), index, Rng(0))
    assert (len(index), len(cover)) == (150, round(50_000 * rates[1]))


@pytest.mark.parametrize("attack", ATTACKS)
def test_payload_is_relabeled_and_covers_keep_their_label(attack):
    data = images()
    made = attack(target=2, poison_ratio=0.1, cover_rate=0.2)
    result, _ = poisoned(made, data)
    index, cover = result.index, result.cover_index
    assert (len(index), len(cover)) == (20, 40)
    assert not set(index.tolist()) & set(cover.tolist())
    assert (result.data.labels[index] == 2).all()
    assert torch.equal(result.data.labels[cover], data.labels[cover])
    assert 2 not in data.labels[cover].tolist()
    assert 2 in data.labels[index].tolist()
    changed = (result.data.images != data.images).flatten(1).any(1)
    assert changed[index].all()
    assert changed[cover].all()
    rest = torch.ones(len(data), dtype=torch.bool)
    rest[index] = rest[cover] = False
    assert not changed[rest].any()


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_image_draws_its_own_trigger(attack):
    """Equal images are triggered differently, in payload and cover alike, and not in one order."""
    same = LabelledImages(
        torch.full((100, 1, 16, 16), 128, dtype=torch.uint8), torch.arange(100) % 2, ("a", "b")
    )
    made = attack(target=0, poison_ratio=0.2, cover_rate=0.2)
    result, _ = poisoned(made, same)
    looks = [
        [image.numpy().tobytes() for image in result.data.images[index]]
        for index in (result.index, result.cover_index)
    ]
    kinds = 4 if attack is AdapPatch else 15
    assert all(len(set(look)) >= kinds for look in looks)
    assert looks[0] != looks[1]


@pytest.mark.parametrize("attack", ATTACKS)
def test_all_to_all_covers_every_class(attack):
    made = attack(rule="all-to-all", poison_ratio=0.1, cover_rate=0.5)
    data = images()
    result, backdoor = poisoned(made, data)
    assert backdoor.rule == AllToAll(4)
    index = result.index
    assert torch.equal(result.data.labels[index], (data.labels[index] + 1) % 4)
    assert set(data.labels[result.cover_index].tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_cover_at_all(attack):
    data = images()
    result, _ = poisoned(attack(poison_ratio=0.1, cover_rate=0.0), data)
    assert len(result.cover_index) == 0
    assert (result.data.images != data.images).flatten(1).any(1).sum() == 20


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize(
    ("rate", "got"), [(0.001, "0.001, which gives 0"), (0.9, "0.9, which gives 180")]
)
def test_a_cover_rate_that_does_not_fit_is_refused(attack, rate, got):
    with pytest.raises(
        SpecError,
        match=rf"a cover rate that gives 1 to \d+ of 200 images, or 0, got {got}\. Choose another",
    ):
        poisoned(attack(target=0, poison_ratio=0.1, cover_rate=rate), images())


@pytest.mark.parametrize("attack", ATTACKS)
def test_float_images_are_planted_like_the_8_bits_they_stand_for(attack):
    data = images()
    floats = LabelledImages(data.floats(), data.labels, data.classes)
    made = attack(poison_ratio=0.1, cover_rate=0.1)
    one, other = (poisoned(made, given)[0] for given in (data, floats))
    assert torch.equal(one.data.images, other.data.images)


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_bundle_says_what_was_poisoned_and_what_was_cover(attack, tmp_path):
    data = images()
    net = build_model(
        "excise:preactresnet18,width=2", classes=4, in_channels=1, input_size=(8, 8), rng=Rng(0)
    )
    made = attack(poison_ratio=0.1, cover_rate=0.2)
    victim = made.plant(net, data, Recipe(epochs=1, batch_size=50, learning_rate=0.05), Rng(0))
    save_victim(tmp_path / "v", victim, {})
    loaded, _ = load_victim(tmp_path / "v")
    assert torch.equal(loaded.poison_index, victim.poison_index)
    assert torch.equal(loaded.cover_index, victim.cover_index)
    assert len(loaded.cover_index) == 40
    expected, backdoor = poisoned(made, data)
    assert torch.equal(expected.index, loaded.poison_index)
    shown = data.floats()
    # Evaluation sees the test trigger, not the training one.
    assert torch.equal(loaded.backdoor.trigger(shown), backdoor.trigger(shown))
    assert not torch.equal(backdoor.train_trigger(shown), backdoor.trigger(shown))


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_empty_batch_can_be_stamped(attack):
    made = attack()
    backdoor = made.backdoor((1, 8, 8), 4, Rng(0))
    assert isinstance(backdoor, Backdoor)
    assert made.stamp(torch.rand(0, 1, 8, 8), backdoor, Rng(0)).shape == (0, 1, 8, 8)
