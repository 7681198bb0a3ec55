"""check_model: any module, judged by one forward pass."""

import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from excise.errors import ModelError
from excise.models import build_model, check_model, load_model
from excise.models.checking import few, shorten

pytestmark = pytest.mark.fast


def linear(outputs=3):
    return nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(12, outputs))


class Returns(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, images):
        return self.value


def test_floats_of_8_bits_are_refused(tmp_path):
    network = build_model("excise:preactresnet18,width=2", classes=2)
    state = network.body.state_dict()
    state["linear.weight"] = state["linear.weight"].to(torch.float8_e4m3fn)
    save_file(state, tmp_path / "w")
    message = r"weights of 16 bits or more, got torch.float8_e4m3fn in linear.weight\. Multiply"
    with pytest.raises(ModelError, match=message):
        load_model(tmp_path / "w", arch="excise:preactresnet18,width=2")
    network.body.register_buffer("scaled", state["linear.weight"])
    with pytest.raises(ModelError, match=r"float8_e4m3fn in body.scaled"):
        check_model(network, (3, 8, 8))


def test_a_fit_model_passes_and_is_left_as_it_was():
    model = linear().train()
    model[1].eval()
    state = torch.random.get_rng_state()
    check_model(model, (3, 2, 2), 3)
    check_model(model, (3, 2, 2))
    assert [m.training for m in model] == [True, False, True]
    assert torch.equal(state, torch.random.get_rng_state())
    check_model(build_model("excise:preactresnet18,width=2", classes=4), (3, 8, 8), 4)
    check_model(linear().double(), (3, 2, 2), 3)


def test_a_wrapped_network_is_refused():
    for model in (nn.DataParallel(linear()), nn.Sequential(nn.DataParallel(linear()))):
        with pytest.raises(ModelError, match=r"DataParallel.*model\.module"):
            check_model(model, (3, 2, 2))


def test_inference_mode_is_refused_and_what_was_made_in_it():
    with torch.inference_mode():
        made = linear()
        with pytest.raises(ModelError, match=r"Leave torch\.inference_mode"):
            check_model(linear(), (3, 2, 2))
    with pytest.raises(ModelError, match="weights that were made in it"):
        check_model(made, (3, 2, 2))


def test_a_model_that_draws_in_eval_mode_leaves_the_generator_alone():
    class Noisy(nn.Module):
        def forward(self, images):
            return torch.randn(len(images), 2)

    state = torch.random.get_rng_state()
    check_model(Noisy(), (3, 2, 2), 2)
    assert torch.equal(state, torch.random.get_rng_state())


def test_wrong_channels_or_size():
    with pytest.raises(ModelError, match=r"takes images of shape \(2, 1, 8, 8\), got RuntimeErr.*"):
        check_model(linear(), (1, 8, 8), 3)


def test_gray_images_do_not_pass_for_color():
    with pytest.raises(ModelError, match=r"expected images of 3 channels, got 1. Convert.*in_chan"):
        check_model(build_model("excise:preactresnet18,width=2", classes=4), (1, 8, 8), 4)


def test_wrong_number_of_classes():
    with pytest.raises(ModelError, match=r"expected 4 logits an image, one a class, got 3. Give"):
        check_model(linear(3), (3, 2, 2), 4)


@pytest.mark.parametrize(
    ("value", "got"),
    [
        ((torch.zeros(2, 3),), "tuple"),
        (None, "NoneType"),
        (torch.zeros(2, 3, 1, 1), r"\(2, 3, 1, 1\)"),
        (torch.zeros(1, 3), r"\(1, 3\)"),
    ],
)
def test_outputs_that_are_no_logits(value, got):
    with pytest.raises(ModelError, match=rf"logits of shape \(2, number of cl.*, got {got}. Wrap"):
        check_model(Returns(value), (3, 2, 2), 3)


def test_weights_and_logits_have_to_be_finite():
    model = linear()
    with torch.no_grad():
        model[2].weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"expected finite weights, got NaN or infinity in 2.weig"):
        check_model(model, (3, 2, 2), 3)
    with pytest.raises(ModelError, match="expected finite logits"):
        check_model(Returns(torch.full((2, 3), float("inf"))), (3, 2, 2), 3)


def test_modes_come_back_after_a_failure():
    model = linear().train()
    with pytest.raises(ModelError):
        check_model(model, (3, 3, 3), 3)
    assert all(m.training for m in model.modules())


def test_foreign_text_is_short_and_cannot_steer_a_terminal():
    assert shorten("a\n  b\x1b[31m") == "a b?[31m"
    assert shorten("x" * 400) == "x" * 300 + "…"
    assert few(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
    assert few(["a\x1b"]) == "a?"


def test_half_precision_is_refused() -> None:
    """Searches overflow in it: a clean network raised an alarm, and a repair was made of NaN."""
    network = build_model("excise:preactresnet18,width=2", classes=3).half()
    with pytest.raises(ModelError, match=r"float32, bfloat16 or double, got float16.*model.float"):
        check_model(network, (3, 32, 32), 3)


@pytest.mark.parametrize("what", [None, "victim/", Path("model.pt"), {"weight": 1}], ids=repr)
def test_what_is_no_network_is_refused(what: object) -> None:
    with pytest.raises(ModelError, match=r"expected a torch.nn.Module, got .*load_model"):
        check_model(what, (1, 8, 8))  # type: ignore[arg-type]


def test_a_scripted_network_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.trace(nn.Flatten(), torch.rand(2, 1, 8, 8))
    with pytest.raises(ModelError, match="a TorchScript one, in which nothing can be cut"):
        check_model(scripted, (1, 8, 8))
