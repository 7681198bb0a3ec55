"""What is said of a network that does not know the images it is given."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from excise.experiments.doubts import FOLD, doubts, unlike_training
from excise.models import build_model
from excise.seeding import Rng
from excise.testing.planted import Planted
from excise.types import LabelledImages

pytestmark = pytest.mark.fast


def pictures(scale: float = 1.0) -> LabelledImages:
    images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * scale
    return LabelledImages(images, torch.arange(40) % 4, ("a", "b", "c", "d"))


def remembering_network() -> nn.Module:
    """A batch norm that remembers :func:`pictures`, before one that does not fit anything."""
    with Rng(0).scope("network"):
        net = nn.Sequential(
            nn.BatchNorm2d(1, momentum=None), nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 4)
        )
    net[0](pictures().images)
    return net.eval()


def test_images_as_in_training_raise_no_doubt() -> None:
    net = remembering_network()
    assert unlike_training(net, pictures()) == ()
    assert unlike_training(net, pictures(1.1 / FOLD**0.5)) == ()


@pytest.mark.parametrize(
    ("scale", "shift", "said"),
    [
        (0.25, 0.0, "varies 16 times less"),
        (4.0, 0.0, "varies 16 times more"),
        (1e-4, 0.0, "varies over 1000 times less"),
        (0.0, 0.0, "varies over 1000 times less"),  # images that are all one color
        (1.0, -0.5, "lies 1.7 standard deviations from"),
    ],
)
def test_the_first_batch_norm_tells_of_a_wrong_normalization(
    scale: float, shift: float, said: str
) -> None:
    net = nn.Sequential(Normalized(scale, shift), remembering_network())
    (found,) = unlike_training(net, pictures())
    assert found.level == "problem"
    assert said in found.message
    assert "--mean and --std" in found.message


class Normalized(nn.Module):
    def __init__(self, scale: float, shift: float) -> None:
        super().__init__()
        self.scale, self.shift = scale, shift

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images * self.scale + self.shift


def test_dead_channels_and_networks_without_memory_say_nothing() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).eval()
    assert unlike_training(net, pictures()) == ()
    net = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.Flatten()).eval()
    assert unlike_training(net, pictures()) == ()


def test_a_trained_network_has_none_and_the_same_without_normalization_has(
    planted: Planted,
) -> None:
    model = planted.network()
    assert doubts(model, planted.data.everything()) == ()
    model.normalize.mean.zero_()
    model.normalize.std.fill_(8.0)
    assert [one.name for one in doubts(model, planted.data.everything())][-1] == "unlike-training"


def test_a_network_of_doubles_is_asked_in_doubles() -> None:
    model = build_model(
        "excise:preactresnet18,width=8", classes=4, in_channels=1, input_size=(8, 8)
    )
    doubts(model.double(), pictures())
