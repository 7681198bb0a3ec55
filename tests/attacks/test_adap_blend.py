"""Adap-Blend: pieces at training time, the whole picture at test time."""

import pytest
import torch
from PIL import Image

from excise.attacks import AdapBlend
from excise.errors import TriggerError
from excise.registry import build
from excise.seeding import Rng
from excise.triggers import Blend

pytestmark = pytest.mark.fast


def stamped(attack, images, seed=0):
    backdoor = attack.backdoor(tuple(images.shape[1:]), 10, Rng(seed).child("backdoor"))
    return attack.stamp(images, backdoor, Rng(seed)), backdoor


def test_published_settings_are_the_defaults():
    """Half of sixteen pieces; 0.15 at training time, 0.2 at test time."""
    attack = AdapBlend()
    assert (attack.grid**2, attack.mask_rate) == (16, 0.5)
    assert (attack.train_alpha, attack.alpha) == (0.15, 0.2)
    backdoor = attack.backdoor((3, 32, 32), 10, Rng(0))
    assert isinstance(backdoor.trigger, Blend)
    assert backdoor.trigger.alpha == 0.2
    assert backdoor.train_trigger.alpha == 0.15
    assert torch.equal(backdoor.trigger.picture, backdoor.train_trigger.picture)


def test_each_image_shows_8_of_16_pieces():
    """Pieces of 8 × 8 pixels of a 32 × 32 image, whole or not at all."""
    shown = AdapBlend().pieces(500, 32, 32, Rng(0))
    pieces = shown.unfold(1, 8, 8).unfold(2, 8, 8).flatten(3)
    assert torch.equal(pieces.all(3), pieces.any(3))
    counts = pieces.all(3).flatten(1)
    assert set(counts.sum(1).tolist()) == {8}
    # Every piece is shown by about half of the images: 250, give or take four standard errors.
    assert (counts.sum(0) - 250).abs().max() < 4 * (500 * 0.25) ** 0.5
    assert len({tuple(row.tolist()) for row in counts}) > 450


@pytest.mark.parametrize(
    ("grid", "rate", "showing"),
    [
        (4, 0.5, 8),
        (4, 0.0, 16),
        (4, 0.25, 12),
        (4, 0.999, 1),
        (2, 0.5, 2),
        (1, 0.9, 1),
        (3, 0.4, 5),
    ],
)
def test_how_many_pieces_show(grid, rate, showing):
    shown = AdapBlend(grid=grid, mask_rate=rate).pieces(20, grid, grid, Rng(0))
    assert set(shown.flatten(1).sum(1).tolist()) == {showing}


def test_against_the_formula():
    """x + 0.15 · mask · (picture − x)."""
    attack = AdapBlend()
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    result, backdoor = stamped(attack, images)
    mask = attack.pieces(6, 32, 32, Rng(0)).float().unsqueeze(1)
    expected = images + 0.15 * mask * (backdoor.trigger.picture - images)
    torch.testing.assert_close(result, expected)
    assert torch.equal(result[mask.expand_as(images) == 0], images[mask.expand_as(images) == 0])


def test_images_that_the_grid_does_not_divide():
    """10 rows in 4 pieces: 3, 2, 3, 2; nothing is left over."""
    shown = AdapBlend(mask_rate=0.0).pieces(3, 10, 30, Rng(0))
    assert shown.all()
    one = AdapBlend(mask_rate=0.99).pieces(200, 10, 30, Rng(0)).float()
    assert {int(x) for x in one.amax(2).sum(1)} == {2, 3}
    assert {int(x) for x in one.amax(1).sum(1)} == {7, 8}
    assert one.amax(0).all()


@pytest.mark.parametrize("shape", [(1, 3, 8), (3, 8, 3)])
def test_images_smaller_than_the_grid_are_refused(shape):
    with pytest.raises(
        TriggerError,
        match=r"images of at least 4 × 4 pixels, one for every piece, got \d × \d\. Choose a grid "
        r"of at most 3\.",
    ):
        AdapBlend().backdoor(shape, 10, Rng(0))
    AdapBlend(grid=3).backdoor(shape, 10, Rng(0))


def test_the_seed_draws_picture_and_pieces():
    images = torch.full((5, 1, 8, 8), 0.5)
    first, backdoor = stamped(AdapBlend(), images)
    again, _ = stamped(AdapBlend(), images)
    other, another = stamped(AdapBlend(), images, seed=1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(backdoor.trigger.picture, another.trigger.picture)


def test_a_picture_of_the_users(tmp_path):
    path = tmp_path / "red.png"
    Image.new("RGB", (20, 10), (255, 0, 0)).save(path)
    attack = build("attack", "adap-blend", {"picture": str(path), "train_alpha": "0.3"})
    backdoor = attack.backdoor((3, 8, 12), 10, Rng(0))
    red = torch.tensor([1.0, 0, 0]).view(3, 1, 1).expand(3, 8, 12)
    torch.testing.assert_close(backdoor.trigger(torch.zeros(1, 3, 8, 12))[0], 0.2 * red)
    torch.testing.assert_close(backdoor.train_trigger(torch.zeros(1, 3, 8, 12))[0], 0.3 * red)
