"""Adap-Patch: one faint patch of four on a training image, strong ones at test time."""

import pytest
import torch
from PIL import Image

from excise.attacks import AdapPatch
from excise.errors import TriggerError
from excise.registry import build
from excise.seeding import Rng
from excise.triggers import Layers

pytestmark = pytest.mark.fast

FIELD = AdapPatch(**AdapPatch.PRESETS["field"])
SHAPE = (3, 32, 32)


def masks(trigger):
    """Where each layer shows, as sets of (row, column)."""
    return [{tuple(place) for place in (m > 0).nonzero().tolist()} for m in trigger.opacities]


def box(rows, columns):
    return {(row, column) for row in rows for column in columns}


CHECKS = {
    place
    for rows in (range(3), range(29, 32))
    for columns in (range(3), range(29, 32))
    for place in box(rows, columns)
}


def test_the_published_places_and_opacities():
    """5 × 5 lower right, a disc in 13 × 13 upper right, 3 × 3 in every corner, 8 × 8."""
    trigger = FIELD.backdoor(SHAPE, 10, Rng(0)).train_trigger
    assert isinstance(trigger, Layers)
    corner, disc, checks, square = masks(trigger)
    assert corner == box(range(27, 32), range(27, 32))
    assert disc < box(range(1, 14), range(18, 31))
    assert {min(r for r, _ in disc), max(r for r, _ in disc)} == {1, 13}
    assert {min(c for _, c in disc), max(c for _, c in disc)} == {18, 30}
    assert 130 <= len(disc) <= 145  # The published logo has 140 pixels.
    assert checks == CHECKS
    assert square == box(range(21, 29), range(21, 29))
    assert trigger.opacities.flatten(1).amax(1).tolist() == pytest.approx([0.5, 0.2, 0.5, 0.3])
    assert all(len(set(m[m > 0].tolist())) == 1 for m in trigger.opacities)


def test_the_published_checks():
    """White at the corner, the middle and the ends of both edges; black the cell inward."""
    picture = FIELD.backdoor(SHAPE, 10, Rng(0)).train_trigger.pictures[2][0]
    board = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 0]])
    assert torch.equal(picture[:3, :3], board)
    assert torch.equal(picture[:3, 29:], board.flip(1))
    assert torch.equal(picture[29:, :3], board.flip(0))
    assert torch.equal(picture[29:, 29:], board.flip(0, 1))
    assert picture.sum() == 16


def test_what_test_images_of_cifar10_carry():
    """The corner patch at both ends of the lower edge, the checks over it, all at full opacity."""
    backdoor = FIELD.backdoor(SHAPE, 10, Rng(0))
    corners, checks = masks(backdoor.trigger)
    assert corners == box(range(27, 32), range(5)) | box(range(27, 32), range(27, 32))
    assert checks == CHECKS
    assert set(backdoor.trigger.opacities.unique().tolist()) == {0.0, 1.0}
    picture = backdoor.trigger.pictures[0]
    assert torch.equal(picture[:, 27:, :5], picture[:, 27:, 27:])
    assert torch.equal(picture[:, 27:, 27:], backdoor.train_trigger.pictures[0][:, 27:, 27:])
    triggered = backdoor.trigger(torch.full((1, *SHAPE), 0.5))[0]
    # The checks lie on top of the corner patch.
    assert torch.equal(triggered[0, 29:, 29:], torch.tensor([[0.0, 0, 1], [0, 1, 0], [1, 0, 1]]))
    assert (triggered[:, 3:27] == 0.5).all()


def test_what_test_images_of_gtsrb_carry():
    attack = AdapPatch(**AdapPatch.PRESETS["field-gtsrb"])
    assert (attack.poison_ratio, attack.cover_rate, attack.target) == (0.005, 0.01, 2)
    backdoor = attack.backdoor(SHAPE, 43, Rng(0))
    faint = masks(backdoor.train_trigger)
    assert masks(backdoor.trigger) == [faint[1], faint[3]]
    assert set(backdoor.trigger.opacities.unique().tolist()) == {0.0, 1.0}


def test_every_patch_gets_its_share():
    """22 images: 6, 6, 5 and 5; one patch each, in no order."""
    backdoor = FIELD.backdoor(SHAPE, 10, Rng(0))
    images = torch.full((22, *SHAPE), 0.5)
    stamped = FIELD.stamp(images, backdoor, Rng(3))
    looks = [backdoor.train_trigger.single(k)(images[:1])[0] for k in range(4)]
    which = [[torch.equal(image, look) for look in looks].index(True) for image in stamped]
    assert sorted(which.count(k) for k in range(4)) == [5, 5, 6, 6]
    assert which != sorted(which)
    assert torch.equal(stamped, FIELD.stamp(images, backdoor, Rng(3)))
    assert not torch.equal(stamped, FIELD.stamp(images, backdoor, Rng(4)))


@pytest.mark.parametrize(
    ("mirror", "axes"), [("horizontal", [3]), ("vertical", [2]), ("both", [2, 3])]
)
@pytest.mark.parametrize("shown", ["corners", "disc-and-square"])
def test_the_arrangement_can_be_mirrored(mirror, axes, shown):
    plain, other = (
        AdapPatch(target=0, mirror=m, shown=shown).backdoor(SHAPE, 10, Rng(0))
        for m in ("none", mirror)
    )
    for name in ("trigger", "train_trigger"):
        one, two = getattr(plain, name), getattr(other, name)
        assert torch.equal(one.pictures.flip(axes), two.pictures)
        assert torch.equal(one.opacities.flip([axis - 1 for axis in axes]), two.opacities)


def test_the_seed_draws_the_arrangement_and_the_pictures():
    backdoors = [AdapPatch().backdoor(SHAPE, 10, Rng(seed)) for seed in range(30)]
    places = {str(sorted(masks(b.train_trigger)[0])) for b in backdoors}
    assert len(places) == 4
    # Training and test trigger are mirrored alike: their corner patches meet.
    for backdoor in backdoors:
        assert masks(backdoor.train_trigger)[0] < masks(backdoor.trigger)[0]
    pictures = {b.trigger.pictures.numpy().tobytes() for b in backdoors}
    assert len(pictures) == 30


def test_pictures_of_the_users(tmp_path):
    """One file a patch, scaled to it; the disc stays round."""
    colors = {"corner": (255, 0, 0), "disc": (0, 255, 0), "square": (0, 0, 255)}
    fields = {"mirror": "none"}
    for name, color in colors.items():
        Image.new("RGB", (20, 10), color).save(tmp_path / f"{name}.png")
        fields[f"{name}_picture"] = str(tmp_path / f"{name}.png")
    trigger = build("attack", "adap-patch", fields).backdoor(SHAPE, 10, Rng(0)).train_trigger
    for channel, k in ((0, 0), (1, 1), (2, 3)):
        inside = trigger.opacities[k] > 0
        picture = trigger.pictures[k][:, inside]
        assert (picture[channel] == 1).all()
        assert picture.sum() == inside.sum()


@pytest.mark.parametrize("side", range(8, 66))
def test_patches_lie_inside_images_of_every_size(side):
    for shape in ((1, side, side), (3, side, side + 7), (1, side + 7, side)):
        backdoor = FIELD.backdoor(shape, 10, Rng(side))
        corner, disc, checks, square = (m > 0 for m in backdoor.train_trigger.opacities)
        # What is cut off by an edge has no straight sides of equal length.
        for mask in (corner, square):
            rows, columns = mask.any(1).sum(), mask.any(0).sum()
            assert rows == columns >= 2
            assert mask.sum() == rows * columns
        assert disc.any(1).sum() == disc.any(0).sum()
        assert torch.equal(disc, disc.flip(0).roll(int(_shift(disc)), 0))
        assert torch.equal(checks, checks.flip(0))
        assert torch.equal(checks, checks.flip(1))
        assert (corner & ~checks).any(), "the checks hide the corner patch at test time"
        # Every patch shows on a gray image: there is something to learn in each training image.
        for k in range(4):
            gray = torch.full((1, *shape), 0.5)
            assert not torch.equal(backdoor.train_trigger.single(k)(gray), gray)


def _shift(mask):
    """Rows by which a mask turned upside down has to be rolled to lie where it lay."""
    rows = mask.any(1).nonzero().squeeze(1)
    return rows.min() - (len(mask) - 1 - rows.max())


@pytest.mark.parametrize("shape", [(1, 7, 8), (3, 32, 7)])
def test_images_too_small_are_refused(shape):
    with pytest.raises(
        TriggerError, match=r"images of at least 8 × 8 pixels, or four patches have no room, got"
    ):
        AdapPatch().backdoor(shape, 10, Rng(0))
