"""What poisoning attacks share, and what each alone does: numbers, places, pictures, refusals."""

import dataclasses

import pytest
import torch
from PIL import Image

from excise.attacks import BadNets, Blended, NoAttack, Poisoning
from excise.attacks.blended import seeded_picture
from excise.attacks.poisoning import poison
from excise.errors import DataError, SpecError, TriggerError
from excise.models import build_model
from excise.seeding import Rng
from excise.testing import Interruption, differences, interrupt_at
from excise.training import Recipe
from excise.triggers import Blend, Patch
from excise.types import AllToAll, AllToOne, Backdoor, LabelledImages

pytestmark = pytest.mark.fast

SHAPE = (1, 8, 8)
RECIPE = Recipe(epochs=2, batch_size=8, learning_rate=0.05)


def images(n=40, channels=1):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, channels, 8, 8), generator=generator, dtype=torch.uint8)
    return LabelledImages(pixels, torch.arange(n) % 4, ("a", "b", "c", "d"))


def network(seed=0, arch="excise:preactresnet18,width=2"):
    return build_model(arch, classes=4, in_channels=1, input_size=(8, 8), rng=Rng(seed))


def test_the_fields_badnets():
    """A white 3 × 3 square at rows and columns 29 to 31, target 0."""
    attack = BadNets(**BadNets.PRESETS["field"])
    backdoor = attack.backdoor((3, 32, 32), 10, Rng(5))
    triggered = backdoor.trigger(torch.zeros(1, 3, 32, 32))
    white = (triggered[0] == 1).all(0).nonzero()
    assert white.tolist() == [[r, c] for r in (29, 30, 31) for c in (29, 30, 31)]
    assert backdoor.rule == AllToOne(0)


def test_the_fields_poison_of_cifar10():
    """A tenth of all images, of every class, the target's own included."""
    data = LabelledImages(
        torch.zeros(5000, 1, 1, 1, dtype=torch.uint8), torch.arange(5000) % 10, tuple("0123456789")
    )
    index = BadNets().poison_index(data, AllToOne(0), Rng(0))
    classes = torch.bincount(data.labels[index], minlength=10)
    assert classes.sum() == 500
    assert classes.min() > 25
    changed = (AllToOne(0).wanted(data.labels[index]) != data.labels[index]).sum()
    assert 420 < changed < 475  # about 90 %


def test_an_open_place_is_drawn_from_everywhere_it_fits():
    places = [BadNets(size=6).trigger(SHAPE, Rng(seed)) for seed in range(80)]
    assert {p.row for p in places} == {p.column for p in places} == {0, 1, 2}
    assert len({(p.row, p.column) for p in places}) == 9
    fixed = BadNets(size=6, row=-6).trigger(SHAPE, Rng(0))
    assert fixed.row == -6


def test_size_and_value_of_the_square():
    trigger = BadNets(size=2, value=0.5, row=0, column=0).trigger(SHAPE, Rng(0))
    assert isinstance(trigger, Patch)
    triggered = trigger(torch.zeros(1, *SHAPE))
    assert triggered.unique().tolist() == [0.0, 0.5]
    assert (triggered > 0).sum() == 4


@pytest.mark.parametrize(("size", "shape"), [(9, (1, 8, 8)), (9, (3, 8, 20)), (9, (3, 20, 8))])
def test_a_patch_larger_than_the_image_is_refused(size, shape):
    with pytest.raises(
        TriggerError,
        match=r"expected a patch that fits into \d+ × \d+ pixels, got 9 × 9\. Choose a size of at "
        r"most 8\.",
    ):
        BadNets(size=size).backdoor(shape, 4, Rng(0))
    BadNets(size=8).backdoor(shape, 4, Rng(0))


@pytest.mark.parametrize("place", [{"row": 6}, {"column": 7}, {"row": -2}])
def test_a_place_outside_the_image_is_refused_before_any_training(place):
    with pytest.raises(TriggerError, match="a patch inside the 8 × 8 image"):
        BadNets(size=3, **place).plant(network(), images(), RECIPE, Rng(0))


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "red.png"
    Image.new("RGB", (20, 10), (255, 0, 0)).save(path)
    return path


def test_a_picture_is_scaled_to_the_patch(picture):
    trigger = BadNets(size=4, picture=picture, row=0, column=0).trigger((3, 8, 8), Rng(0))
    triggered = trigger(torch.zeros(1, 3, 8, 8))[0]
    assert (triggered[0] == 1).sum() == 16
    assert triggered[1:].max() == 0


def test_a_picture_is_scaled_to_the_image_and_to_its_color(picture):
    blend = Blended(picture=picture, alpha=0.5).trigger((3, 6, 9), Rng(0))
    assert blend.picture.shape == (3, 6, 9)
    assert blend.alpha == 0.5
    gray = Blended(picture=picture).trigger((1, 6, 9), Rng(0))
    assert gray.picture.shape == (1, 6, 9)


@pytest.mark.parametrize("attack", [BadNets, Blended])
def test_a_picture_that_is_not_there_is_explained(attack, tmp_path):
    with pytest.raises(DataError, match="expected a picture file"):
        attack(picture=tmp_path / "none.png").backdoor((3, 8, 8), 4, Rng(0))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (3, 32, 32), (3, 64, 48), (3, 224, 224)])
def test_the_seeded_picture(shape):
    picture = seeded_picture(shape, Rng(0))
    assert picture.shape == shape
    for channel in picture:
        assert channel.min() == 0
        assert channel.max() == pytest.approx(1)
    # As strong in contrast as a drawn picture: a standard deviation of a fifth at least.
    assert picture.std() > 0.15
    assert torch.equal(picture, seeded_picture(shape, Rng(0)))
    assert not torch.equal(picture, seeded_picture(shape, Rng(1)))


def test_blended_takes_a_fifth():
    trigger = Blended().trigger(SHAPE, Rng(0))
    assert isinstance(trigger, Blend)
    assert trigger.alpha == 0.2


@pytest.mark.parametrize("target", [4, 99])
def test_a_target_that_is_no_class_is_refused_before_any_training(target):
    with pytest.raises(
        SpecError, match=rf"expected a target from 0 to 3, got {target}\. The data has 4 classes\."
    ):
        BadNets(size=2, target=target).plant(network(), images(), RECIPE, Rng(0))


@pytest.mark.parametrize("ratio", [0.001, 0.012])
def test_a_ratio_that_gives_no_image_is_refused_before_any_training(ratio):
    with pytest.raises(
        SpecError,
        match=rf"expected a poison ratio that gives 1 to 40 of 40 images, got {ratio}, which gives "
        r"0\. Choose another poison_ratio\.",
    ):
        BadNets(size=2, poison_ratio=ratio).plant(network(), images(), RECIPE, Rng(0))


def test_all_to_all_leaves_no_class_out():
    attack = BadNets(size=2, rule="all-to-all", poison_ratio=1.0, exclude_target=True)
    assert attack.target_rule(4, Rng(0)) == AllToAll(4)
    assert len(attack.poison_index(images(), AllToAll(4), Rng(0))) == 40


def test_a_trigger_of_the_training_images_may_differ_from_the_one_of_the_test():
    white, gray = (
        BadNets(size=2, row=0, column=0, value=v).trigger(SHAPE, Rng(0)) for v in (1, 0.5)
    )
    backdoor = Backdoor(white, AllToOne(2), train_trigger=gray)
    poisoned = poison(images(), torch.tensor([1, 5]), backdoor)
    assert poisoned.images[[1, 5], 0, :2, :2].unique().tolist() == [128]
    assert poisoned.labels[[1, 5]].tolist() == [2, 2]


def test_poison_is_rounded_to_8_bits_not_cut():
    def trigger(given):
        return torch.full_like(given, 100.6 / 255)

    poisoned = poison(images(), torch.tensor([0]), Backdoor(trigger, AllToOne(0)))
    assert poisoned.images[0].unique().tolist() == [101]
    too_bright = Backdoor(lambda given: given + 2, AllToOne(0))
    assert poison(images(), torch.tensor([0]), too_bright).images[0].unique().tolist() == [255]


def test_poison_keeps_classes_and_mirror():
    data = dataclasses.replace(images(), mirror=True)
    backdoor = BadNets(size=2).backdoor(data.shape, 4, Rng(0))
    poisoned = poison(data, torch.tensor([3]), backdoor)
    assert poisoned.classes == data.classes
    assert poisoned.mirror


def test_floats_are_poisoned_like_the_8_bits_they_stand_for():
    data = images()
    floats = dataclasses.replace(data, images=data.floats())
    backdoor = Blended().backdoor(data.shape, 4, Rng(0))
    index = torch.arange(0, 40, 3)
    one, other = (poison(given, index, backdoor) for given in (data, floats))
    assert torch.equal(one.images, other.images)
    assert one.images.dtype == other.images.dtype == torch.uint8


def test_the_clean_twin_differs_from_the_victim_by_its_poison_alone():
    """Same seed: same first weights, same batches. Poison that changes nothing gives the twin."""

    class Harmless(BadNets):
        def backdoor(self, shape, num_classes, rng):
            class Unchanged:
                def wanted(self, labels):
                    return labels

                def counted(self, labels):
                    return torch.ones_like(labels, dtype=torch.bool)

            return Backdoor(lambda given: given.clone(), Unchanged())

    victim = Harmless(size=2).plant(network(), images(), RECIPE, Rng(0))
    twin = NoAttack().plant(network(), images(), RECIPE, Rng(0))
    assert differences(victim.model, twin.model) == []
    assert twin.backdoor is None
    assert twin.poison_index is None
    assert differences(BadNets(size=2).plant(network(), images(), RECIPE, Rng(0)).model, twin.model)


OTHERS = {
    "settings": {"attack": BadNets(size=3)},
    "attack": {"attack": NoAttack()},
    "data": {"data": images(36)},
    "recipe": {"recipe": dataclasses.replace(RECIPE, momentum=0.8)},
    "seed": {"seed": 1},
    "network": {"model": "excise:preactresnet18,width=3"},
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_checkpoint_of_another_planting_is_refused(tmp_path, other):
    def go(attack=BadNets(size=2), data=None, recipe=RECIPE, seed=0, model=None, **options):  # noqa: B008
        net = network(arch=model) if model else network()
        return attack.plant(
            net, data or images(), recipe, Rng(seed), checkpoints=tmp_path, **options
        )

    with pytest.raises(Interruption):
        go(on_round=interrupt_at(1))
    with pytest.raises(DataError, match="a checkpoint of this very run"):
        go(**OTHERS[other])
    go()


def test_what_all_attacks_share_is_no_attack_by_itself():
    with pytest.raises(TypeError, match="abstract"):
        Poisoning()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_checkerboard_is_black_at_every_other_pixel(size):
    attack = BadNets(size=size, pattern="checkerboard", value=0.5, row=1, column=1)
    triggered = attack.trigger(SHAPE, Rng(0))(torch.ones(1, *SHAPE))[0, 0]
    expected = torch.ones(8, 8)
    for row in range(size):
        for column in range(size):
            expected[1 + row, 1 + column] = 0.5 if (row + column) % 2 == 0 else 0.0
    assert torch.equal(triggered, expected)
