"""The hash of a network's weights: the same for the same ones, another for any other."""

import pytest
import torch
from torch import nn

from excise.models import copy_of, weights_hash

pytestmark = pytest.mark.fast


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def test_a_copy_in_another_place_and_layout_has_the_same() -> None:
    model = network()
    hashed = weights_hash(model)
    assert len(hashed) == 16
    assert weights_hash(copy_of(model).to(memory_format=torch.channels_last).eval()) == hashed


@pytest.mark.parametrize("change", ["weight", "statistic", "type", "shape", "name"])
def test_whatever_else_is_loaded_has_another(change: str) -> None:
    model = network()
    hashed = weights_hash(model)
    with torch.no_grad():
        if change == "weight":
            model[0].weight[1, 0, 2, 2] += 1e-7
        elif change == "statistic":
            model[1].running_var[0] += 1e-6
        elif change == "type":
            model = model.bfloat16()
        elif change == "shape":
            model[0].weight = nn.Parameter(model[0].weight.reshape(1, 2, 3, 3))
        else:
            model = nn.Sequential(nn.Identity(), *model)
    assert weights_hash(model) != hashed
