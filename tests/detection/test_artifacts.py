"""Synthetic artifacts: what each family does to an image, and that all keep the rules."""

import pytest
import torch

from excise.detection import artifacts
from excise.detection.artifacts import FAMILIES, SMOOTH, make
from excise.testing import nothing_global_changes

SHAPES = [(3, 32, 32), (1, 8, 8), (3, 9, 40)]


def pictures(n, shape=(3, 32, 32), seed=0):
    return torch.rand((n, *shape), generator=torch.Generator().manual_seed(seed))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def put(family, images, seed=0):
    return SMOOTH[family](images, pictures(5, images.shape[1:], seed=9), generator(seed))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("family", SMOOTH)
def test_every_family_keeps_the_rules(family, shape):
    images = pictures(20, shape)
    before = images.clone()
    with nothing_global_changes():
        made = put(family, images)
    assert torch.equal(images, before)
    assert made.shape == images.shape
    assert made.dtype == images.dtype
    assert float(made.min()) >= 0
    assert float(made.max()) <= 1
    assert torch.equal(made, put(family, images))
    assert not torch.equal(made, put(family, images, seed=1))
    assert put(family, images[:0]).shape == (0, *shape)


@pytest.mark.parametrize("family", ["white block", "color block"])
def test_blocks_have_the_published_sides_and_margins(family):
    black = torch.zeros(1000, 3, 32, 32)
    touched = put(family, black).amax(1) > 0
    sizes, places = set(), set()
    for where in touched:
        rows, columns = where.any(1).nonzero().flatten(), where.any(0).nonzero().flatten()
        height, width = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
        assert int(where.sum()) == height * width, "a filled rectangle"
        sizes |= {height, width}
        top, left = int(rows[0]), int(columns[0])
        edge = min(top, 31 - int(rows[-1])), min(left, 31 - int(columns[-1]))
        assert edge[0] == edge[1], "one margin to both edges"
        places.add((edge[0], top < 16, left < 16))
    assert sizes == {2, 3, 4, 5, 6, 7}
    assert len(places) == 6 * 4
    assert {margin for margin, _, _ in places} == set(range(6))


def test_a_white_block_is_white_and_a_color_block_is_not():
    black = torch.zeros(500, 3, 32, 32)
    white, colors = put("white block", black), put("color block", black)
    assert set(white.unique().tolist()) == {0.0, 1.0}
    inside = colors[colors > 0]
    assert 0.45 < float(inside.mean()) < 0.55
    assert float(inside.std()) > 0.25


def test_blocks_grow_with_the_image_and_fit_into_small_ones():
    large = put("white block", torch.zeros(100, 1, 224, 224)).amax(1) > 0
    sides = large.any(2).sum(1)
    assert (int(sides.min()), int(sides.max())) == (14, 49)
    small = put("white block", torch.zeros(500, 1, 8, 8)).amax(1) > 0
    sides = small.any(2).sum(1)
    assert (int(sides.min()), int(sides.max())) == (2, 4)


def test_noise_has_the_published_mean_and_variance():
    gray = torch.full((400, 3, 32, 32), 0.4)
    change = 255 * (put("noise", gray) - gray)
    assert abs(float(change.mean()) - 25) < 0.1
    variance = change.var((1, 2, 3))
    assert 9 < float(variance.min()) < 14
    assert 66 < float(variance.max()) < 75
    assert abs(float(variance.mean()) - 40) < 3


def test_a_shadow_halves_the_lightness_of_the_lower_half_and_keeps_the_hue():
    images = pictures(300)
    shaded = put("shadow", images)
    assert torch.equal(shaded[:, :, :15], images[:, :, :15])
    changed = (shaded != images).any(1)
    assert changed.flatten(1).any(1).float().mean() > 0.99
    assert 0.05 < float(changed[:, 16:].float().mean()) < 0.6

    def lightness(x):
        return (x.amax(1) + x.amin(1)) / 2

    ratio = lightness(shaded)[changed] / lightness(images)[changed]
    assert torch.allclose(ratio, torch.full_like(ratio, 0.5), atol=1e-5)
    order = images.argsort(1) == shaded.argsort(1)
    assert order.all(1)[changed].float().mean() > 0.999


@pytest.mark.parametrize(
    ("color", "dark"),
    [
        # Lightness up to ½: every channel is halved.
        ((0.6, 0.2, 0.4), (0.3, 0.1, 0.2)),
        ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        # colorsys: rgb_to_hls(1, .6, .8) = (.9167, .8, 1); hls_to_rgb(.9167, .4, 1) = (.8, 0, .4)
        ((1.0, 0.6, 0.8), (0.8, 0.0, 0.4)),
        ((1.0, 1.0, 1.0), (0.5, 0.5, 0.5)),
        ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
    ],
)
def test_half_the_lightness_of_hls(color, dark):
    pixel = torch.tensor(color).view(1, 3, 1, 1)
    found = artifacts._darkened(pixel).flatten()
    assert torch.allclose(found, torch.tensor(dark), atol=1e-6)


def test_a_polygon_covers_what_lies_inside_and_its_outline():
    square = torch.tensor([[[1, 1], [4, 1], [4, 4], [1, 4], [1, 1]]]).float()
    found = artifacts._inside(square, 6, 6)[0]
    expected = torch.zeros(6, 6, dtype=torch.bool)
    expected[1:5, 1:5] = True
    assert torch.equal(found, expected)
    point = torch.full((1, 5, 2), 3.0)
    assert artifacts._inside(point, 6, 6)[0].nonzero().tolist() == [[3, 3]]


def test_an_overlay_adds_three_tenths_of_an_image_of_the_pool():
    images = torch.full((50, 1, 8, 8), 0.5)
    pool = torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)])
    made = artifacts.overlay(images, pool, generator())
    assert {round(float(m.unique()), 4) for m in made} == {0.5, 0.8}
    eight_bit = artifacts.overlay(images, (255 * pool).to(torch.uint8), generator())
    assert torch.equal(made, eight_bit)


def test_smooth_patterns_are_smooth():
    from excise.evaluation.spectrum import high_frequency_share

    images = torch.full((30, 3, 32, 32), 0.2)
    change = put("smooth", images) - images
    assert float(high_frequency_share(change).max()) < 1e-3
    strength = change.amax((1, 2, 3))
    assert float(strength.min()) >= 0.1
    assert float(strength.max()) <= 0.3
    sharp = high_frequency_share(put("white block", images) - images)
    assert float(sharp.min()) > 5 * float(high_frequency_share(change).max())


def test_make_draws_every_family_equally_often_and_returns_8_bits():
    gray = torch.full((5000, 1, 8, 8), 100, dtype=torch.uint8)
    made = make(gray, generator(), {"same": lambda x, p, g: x, "half": lambda x, p, g: x / 2})
    assert made.dtype == torch.uint8
    share = (made.flatten(1)[:, 0] == 50).float().mean()
    assert 0.47 < float(share) < 0.53
    assert set(made.unique().tolist()) == {50, 100}
    assert torch.equal(gray, torch.full_like(gray, 100))


def test_make_does_not_depend_on_chunks_of_memory(monkeypatch):
    images = pictures(64, (1, 8, 8))
    # Chunks draw one after the other from the generator: same seed and chunk, same artifacts.
    assert torch.equal(make(images, generator()), make(images, generator()))
    monkeypatch.setattr(artifacts, "_CHUNK_VALUES", 640)
    made = make(images, generator())
    assert made.shape == images.shape
    assert (made != (images * 255).round().to(torch.uint8)).flatten(1).any(1).float().mean() > 0.9
    assert make(images[:0], generator()).shape == (0, 1, 8, 8)


def test_the_published_five_and_a_sixth():
    assert list(FAMILIES) == ["white block", "color block", "noise", "shadow", "overlay"]
    assert set(SMOOTH) - set(FAMILIES) == {"smooth"}
