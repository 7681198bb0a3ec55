"""The last linear layer, found by running the network, and what goes into it."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from excise.errors import ModelError
from excise.models import build_model
from excise.models.last_layer import inputs_of, last_layer, most_connected
from excise.seeding import Rng
from excise.testing import Snapshot

pytestmark = pytest.mark.fast


class Misordered(nn.Module):
    """Registers its layers in another order than it runs them, and one that it never runs."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(3, 2)
        self.first = nn.Linear(4, 3)
        self.never = nn.Linear(3, 2)

    def forward(self, images):
        return self.last(self.first(images.flatten(1)).relu())


def test_it_is_found_by_what_it_gives():
    network = Misordered()
    snapshot = Snapshot(network)
    assert last_layer(network, torch.zeros(1, 1, 2, 2)) is network.last
    assert snapshot.changes() == []


@pytest.mark.parametrize(
    "made", [parametrizations.weight_norm, nn.utils.weight_norm, parametrizations.spectral_norm]
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_computed_weight_is_refused(made):
    """What is written into it would be gone with the next forward pass."""
    network = Misordered()
    made(network.last)
    with pytest.raises(ModelError, match=r"weight of its own in the last layer.*Fold it in first"):
        last_layer(network, torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize("arch", ["excise:preactresnet18,width=2", "excise:vgg19_bn,width=2"])
def test_of_the_networks_of_the_house(arch):
    network = build_model(arch, classes=5, in_channels=1, input_size=(32, 32), rng=Rng(0)).eval()
    layer = last_layer(network, torch.zeros(1, 1, 32, 32))
    assert layer.out_features == 5


def test_a_network_without_one_is_refused():
    """Logits from a convolution, or changed after the layer."""
    convolution = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten())
    scaled = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Softmax(1))
    for network in (convolution, scaled):
        snapshot = Snapshot(network)
        with pytest.raises(
            ModelError, match=r"expected a network whose last step is a linear layer, .* Sequential"
        ):
            last_layer(network, torch.zeros(1, 1, 2, 2))
        assert snapshot.changes() == []


def test_its_inputs_while_the_block_runs():
    network = Misordered()
    snapshot = Snapshot(network)
    images = torch.rand(2, 1, 2, 2)
    with inputs_of(network.last) as seen:
        logits = network(images)
    assert torch.equal(network.last(seen[0]), logits)
    assert seen[0].requires_grad
    network(images)
    assert len(seen) == 1
    with pytest.raises(ZeroDivisionError), inputs_of(network.last):
        raise ZeroDivisionError
    assert snapshot.changes() == []


def test_more_neurons_than_there_are():
    with pytest.raises(ModelError, match="a last layer with at least 4 inputs, got 3"):
        most_connected(nn.Linear(3, 2), 4)
