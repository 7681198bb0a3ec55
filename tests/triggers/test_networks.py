"""The generators: any size in, the same size out; weights in, the same network out."""

import pytest
import torch

from excise.errors import TriggerError
from excise.testing.guards import nothing_global_changes
from excise.triggers.networks import (
    Autoencoder,
    Pyramid,
    rebuilt,
    through_8_bits,
    trainable,
    weights_of,
)
from excise.types import round_to_8_bits

pytestmark = pytest.mark.fast
KINDS = {Pyramid: lambda c: Pyramid(c, 1, 2), Autoencoder: lambda c: Autoencoder(c, 2)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (9, 15), (28, 28), (33, 17), (64, 64)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size(kind, size, channels):
    network = KINDS[kind](channels).eval()
    maps = network(torch.rand(2, channels, *size))
    assert maps.shape == (2, 1 if kind is Pyramid else channels, *size)
    low = 0 if kind is Pyramid else -1
    assert low <= maps.min() <= maps.max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_weights_give_the_network_back(kind):
    network, images = KINDS[kind](3), torch.rand(4, 3, 16, 16)
    network(images)  # moves the statistics of batch norm
    weights = weights_of(network)
    with nothing_global_changes():
        again = rebuilt(kind, weights)
    assert torch.equal(again(images), network.eval()(images))
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert again.sizes == network.sizes


@pytest.mark.parametrize("kind", KINDS)
def test_training_does_not_touch_the_weights_it_began_with(kind):
    weights = weights_of(KINDS[kind](3))
    before = {name: value.clone() for name, value in weights.items()}
    network = trainable(kind, weights)
    assert network.training
    network(torch.rand(4, 3, 16, 16)).sum().backward()
    torch.optim.SGD(network.parameters(), 0.1).step()
    assert all(torch.equal(weights[name], before[name]) for name in before)
    assert not torch.equal(weights_of(network)[next(iter(before))], before[next(iter(before))])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "harm", ["none", "one too few", "one too many", "other shape", "NaN", "text"]
)
def test_damaged_weights_are_refused(kind, harm):
    weights = weights_of(KINDS[kind](3))
    name = next(name for name in weights if name.endswith("bias"))
    match harm:
        case "none":
            weights = {}
        case "one too few":
            del weights[name]
        case "one too many":
            weights["stowaway"] = torch.zeros(1)
        case "other shape":
            weights[name] = torch.zeros(99)
        case "NaN":
            weights[name] = torch.full_like(weights[name], float("nan"))
        case "text":
            weights[name] = "text"
    with pytest.raises(TriggerError, match=f"the finite weights of a network {kind.__name__}, got"):
        rebuilt(kind, weights)


def test_the_autoencoder_is_the_published_one():
    """Four convolutions 4 × 4 down to 128 filters, four up; batch norm after all but the last."""
    down = [(3, 16), (16, 32), (32, 64), (64, 128)]
    convolutions = sum(16 * a * b + b for a, b in down) + sum(16 * a * b + a for a, b in down)
    norms = 2 * (16 + 32 + 64 + 128 + 64 + 32 + 16)
    assert sum(p.numel() for p in Autoencoder(3).parameters()) == convolutions + norms


def test_gradients_pass_through_8_bits():
    images = torch.tensor([[-0.2, 0.5004, 1.3]], requires_grad=True)
    rounded = through_8_bits(images)
    torch.testing.assert_close(rounded, round_to_8_bits(images))
    (rounded * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert images.grad.tolist() == [[1.0, 2.0, 3.0]]
