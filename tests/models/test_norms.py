"""Which batch norms a network has, and that their statistics can be held still."""

import pytest
import torch
from torch import nn

from excise.errors import ModelError
from excise.models import batch_norms, build_model, steady_statistics

pytestmark = pytest.mark.fast


def test_they_are_found_by_name():
    network = build_model("excise:preactresnet18,width=8", classes=3)
    found = batch_norms(network, "Nothing")
    assert len(found) == 16
    assert all(network.get_submodule(name) is norm for name, norm in found.items())


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(2, affine=False), nn.BatchNorm2d(2, track_running_stats=False)]
)
def test_a_network_without_any(norm):
    with pytest.raises(
        ModelError, match=r"a network with batch norm, on which ANP works, got Sequential without"
    ):
        batch_norms(nn.Sequential(nn.Conv2d(1, 2, 3), norm), "ANP")


@pytest.mark.parametrize("momentum", [0.1, None])
def test_statistics_stay_still_inside_the_block_alone(momentum):
    norm = nn.BatchNorm2d(2, momentum=momentum).train()
    images = torch.rand(4, 2, 3, 3)
    norm(images)
    before = {name: t.clone() for name, t in norm.state_dict().items()}
    with steady_statistics(norm):
        steady = norm(images + 1)
    with pytest.raises(KeyboardInterrupt), steady_statistics(norm):
        raise KeyboardInterrupt
    assert all(torch.equal(t, before[name]) for name, t in norm.state_dict().items())
    assert norm.momentum == momentum
    torch.testing.assert_close(norm(images + 1), steady)  # normalized by the batch all the same
    assert not torch.equal(norm.running_mean, before["running_mean"])
