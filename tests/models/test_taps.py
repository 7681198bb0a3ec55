"""The feature maps of a network, found by running it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from excise.errors import ModelError
from excise.models import build_model
from excise.models.taps import feature_maps, tapped
from excise.seeding import Rng
from excise.testing import Snapshot, nothing_global_changes

pytestmark = pytest.mark.fast

PREACT = [f"body.layer{stage}" for stage in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("arch", "names", "sizes", "side"),
    [
        ("excise:preactresnet18,width=2", PREACT, [32, 16, 8, 4], 32),
        (
            "excise:vgg19_bn,width=2",
            [f"body.features.{layer}" for layer in (5, 12, 25, 38, 51)],
            [32, 16, 8, 4, 2],
            32,
        ),
        # Small images: its last map has one pixel, made by a strided convolution, not by pooling.
        ("torchvision:resnet18", ["body.relu", *PREACT], [16, 8, 4, 2, 1], 32),
        # Squeezed factors are 1 × 1 everywhere; its stages stand in one container.
        (
            "torchvision:mobilenet_v3_large",
            [*(f"body.features.{layer}" for layer in (1, 3, 6, 12)), "body.features"],
            [16, 8, 4, 2, 1],
            32,
        ),
        # (n, h, w, c) inside its blocks.
        (
            "timm:convnext_atto",
            ["body.stages.0", "body.stages.1", "body.stages.2", "body.norm_pre"],
            [16, 8, 4, 2],
            64,
        ),
    ],
)
def test_of_the_families(arch, names, sizes, side):
    model = build_model(arch, classes=3, input_size=(side, side), rng=Rng(0)).train()
    images = torch.rand(2, 3, side, side)
    snapshot = Snapshot(model)
    with nothing_global_changes():
        assert feature_maps(model, images) == names
        assert feature_maps(model, images, smallest=5) == [
            name for name, size in zip(names, sizes, strict=True) if size >= 3
        ]
    assert snapshot.changes() == []
    with torch.no_grad(), tapped(model.eval(), names) as seen:
        model(images)
    assert [seen[name].shape[-1] for name in names] == sizes


class Branching(nn.Module):
    """A map that goes into the classifier after a residual sum, a norm that runs twice, a stage
    that begins with a wide layer before it reduces, and pooling without a module."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.stage = nn.Sequential(nn.Conv2d(4, 9, 1), nn.Conv2d(9, 4, 3, stride=2, padding=1))
        self.norm = nn.BatchNorm2d(4)
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 4, 1)

    def forward(self, images):
        x = self.stem(images)
        x = F.max_pool2d(self.norm(x), 2, ceil_mode=True) + self.stage(x)
        return self.head(self.norm(x + self.last(x)).mean((2, 3)))


def test_by_what_runs_not_by_order_or_name():
    assert feature_maps(Branching(), torch.rand(1, 1, 8, 12)) == ["stem", "last"]


@pytest.mark.parametrize("size", [(33, 50), (32, 48), (9, 13)])
def test_images_need_not_be_square(size):
    assert feature_maps(Branching(), torch.rand(1, 1, *size)) == ["stem", "last"]


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(16, 3)),
        nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 3)),
    ],
    ids=["linear", "pooled"],
)
def test_a_network_without_any_is_refused(model):
    snapshot = Snapshot(model)
    message = r"expected a network with feature maps \(n, channels, height, width\) before its pool"
    with pytest.raises(ModelError, match=rf"{message}.* got Sequential without any"):
        feature_maps(model, torch.rand(1, 1, 4, 4))
    assert snapshot.changes() == []


@pytest.mark.parametrize("arch", ["timm:vit_tiny_patch16_224,img_size=32,patch_size=8,depth=1"])
def test_a_transformer_is_refused(arch):
    """Its patches are a map, but what is classified is tokens."""
    model = build_model(arch, classes=3, input_size=(32, 32), rng=Rng(0))
    with pytest.raises(ModelError, match="expected a network with feature maps"):
        feature_maps(model, torch.rand(1, 3, 32, 32))


def test_too_small_maps_are_refused():
    with pytest.raises(ModelError, match=r"height, width\) of at least 200 pixels"):
        feature_maps(Branching(), torch.rand(1, 1, 8, 8), smallest=200)


def test_a_network_that_fails_leaves_no_hook():
    model = Branching()
    snapshot = Snapshot(model)
    with pytest.raises(ModelError, match="expected a network that takes images of shape"):
        feature_maps(model, torch.rand(1, 2, 8, 8))
    assert snapshot.changes() == []


def test_taps_keep_the_graph():
    model = Branching()
    with tapped(model, ["stem", "last"]) as seen:
        model(torch.rand(2, 1, 8, 8))
        seen["last"].sum().backward()
    assert seen["stem"].shape == (2, 4, 8, 8)
    assert model.stem.weight.grad is not None
    assert len(model.stem._forward_hooks) == len(model.last._forward_hooks) == 0


def test_taps_come_off_after_an_exception():
    model = Branching()
    snapshot = Snapshot(model)
    with pytest.raises(RuntimeError), tapped(model, ["stem", "last"]):
        model(torch.rand(2, 9, 8, 8))
    assert snapshot.changes() == []


def test_a_tap_on_nothing_takes_the_others_off():
    model = Branching()
    with pytest.raises(AttributeError), tapped(model, ["stem", "nothing"]):
        pass
    assert len(model.stem._forward_hooks) == 0


def test_what_follows_in_place_does_not_reach_what_was_kept():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(inplace=True))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
        model[0].bias.zero_()
    images = torch.rand(2, 1, 3, 3) + 0.1
    with tapped(model, ["0"]) as seen:
        model(images)
    assert (seen["0"] < 0).any()
    torch.testing.assert_close(seen["0"], model[0](images))
    seen["0"].sum().backward()
    assert model[0].weight.grad is not None
