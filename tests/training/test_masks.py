"""Masks from outside: what they multiply, that they leave no trace, that folding is the same."""

import pytest
import torch

from excise.models import build_model
from excise.seeding import Rng
from excise.testing import Snapshot
from excise.training import Masked, channel_masks, fold

pytestmark = pytest.mark.fast

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    return build_model("excise:preactresnet18,width=8", classes=3, rng=Rng(0)).eval()


NORM, CONV = "body.layer1.0.bn1.weight", "body.layer1.0.conv1.weight"


def test_masks_of_one_change_nothing(model):
    before = Snapshot(model)
    masked = Masked(model, channel_masks(model, [NORM, CONV]))
    with torch.no_grad():
        assert torch.equal(masked(IMAGES), model(IMAGES))
    assert before.changes() == []


def test_a_mask_multiplies_channels_or_single_weights_and_gets_gradients(model):
    masks = channel_masks(model, [NORM, CONV], value=0.5)
    assert {name: tuple(m.shape) for name, m in masks.items()} == {NORM: (8,), CONV: (8,)}
    elementwise = {CONV: torch.rand_like(model.get_parameter(CONV)).requires_grad_()}
    for given in (masks, elementwise):
        weights = Masked(model, given).weights()
        for name, mask in given.items():
            parameter = model.get_parameter(name)
            shaped = (
                mask
                if mask.shape == parameter.shape
                else mask.view(-1, *[1] * (parameter.ndim - 1))
            )
            assert torch.equal(weights[name], parameter * shaped)
        before = Snapshot(model)
        Masked(model, given)(IMAGES).sum().backward(inputs=list(given.values()))
        assert all(mask.grad is not None and mask.grad.any() for mask in given.values())
        assert before.changes() == []


def test_other_masks_for_one_call(model):
    masked = Masked(model, channel_masks(model, [NORM]))
    with torch.no_grad():
        other = masked(IMAGES, {NORM: torch.zeros(8)})
        assert not torch.equal(other, model(IMAGES))
        assert torch.equal(masked(IMAGES), model(IMAGES))


def test_folding_is_masking(model):
    masks = {
        name: torch.rand(8, generator=torch.Generator().manual_seed(3)) for name in (NORM, CONV)
    }
    with torch.no_grad():
        expected = Masked(model, masks)(IMAGES)
        fold(model, masks)
        assert torch.equal(model(IMAGES), expected)
