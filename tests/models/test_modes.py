"""Training flags are given back, devices and types are found, copies share nothing."""

import pytest
import torch
from torch import nn

from excise.errors import ModelError
from excise.models import build_model, copy_of, device_of, finished, in_mode, working_copy
from excise.models.modes import dtype_of

pytestmark = pytest.mark.fast


def mixed():
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Sequential(nn.Dropout(), nn.ReLU()))
    model[1].eval()
    return model


@pytest.mark.parametrize("training", [True, False])
def test_every_flag_comes_back(training):
    model = mixed()
    before = [m.training for m in model.modules()]
    assert len(set(before)) == 2
    with in_mode(model, training=training) as same:
        assert same is model
        assert all(m.training is training for m in model.modules())
    assert [m.training for m in model.modules()] == before


def test_every_flag_comes_back_after_an_exception():
    model = mixed()
    before = [m.training for m in model.modules()]
    with pytest.raises(KeyboardInterrupt), in_mode(model):
        raise KeyboardInterrupt
    assert [m.training for m in model.modules()] == before


def test_device_and_dtype():
    assert device_of(nn.ReLU()) == torch.device("cpu")
    assert device_of(nn.Linear(1, 1, device="meta")).type == "meta"
    assert device_of(nn.BatchNorm1d(1, affine=False, device="meta")).type == "meta"
    assert dtype_of(nn.ReLU()) == torch.float32
    assert dtype_of(nn.Linear(1, 1).double()) == torch.float64


def test_a_copy_shares_no_tensor_and_keeps_what_the_network_says():
    network = build_model("excise:preactresnet18,width=2", classes=("a", "b"))
    twin = copy_of(network)
    assert twin.classes == network.classes
    ours = {t.data_ptr() for t in network.state_dict().values()}
    assert not ours & {t.data_ptr() for t in twin.state_dict().values()}


def test_what_cannot_be_copied_is_refused():
    model = nn.Linear(1, 1)
    model.cache = model.weight * 2
    with pytest.raises(ModelError, match=r"a model that copy.deepcopy can copy, got RuntimeError"):
        copy_of(model)


def test_flags_come_back_whatever_the_modules_are_called():
    model = nn.Sequential(nn.Module())
    model[0].inner = nn.Linear(1, 1)
    model[0].inner.weight.requires_grad_(False)
    back = finished(working_copy(model), model)
    assert not back[0].inner.weight.requires_grad
    assert back[0].inner.bias.requires_grad
