"""SSBA: encoder and decoder learn, images come to count, the secret is the victim's."""

import math

import pytest
import torch

from excise.attacks import SSBA
from excise.attacks.packing import packed, unpack
from excise.attacks.steganography import Steganographer, trained_encoder
from excise.attacks.workshop import Workshop
from excise.data import load_data
from excise.errors import DataError, DivergedError, SpecError
from excise.models import build_model
from excise.seeding import Rng
from excise.testing import Interruption, interrupt_at
from excise.training import Recipe
from excise.triggers.ssba import encoder_shapes
from excise.types import AllToOne

RECIPE = Recipe(epochs=1, batch_size=32)
TINY = {"bits": 1, "width": 2, "batch_size": 8, "encoder_epochs": 2, "learning_rate": 0.002}


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", limit=120).train


def workshop(digits, attack, seed=0, **options):
    model = build_model(
        "excise:preactresnet18,width=2", classes=digits.classes, in_channels=1,
        input_size=(8, 8), rng=Rng(0),
    )  # fmt: skip
    return Workshop(model, digits, RECIPE, Rng(seed), str(attack), **options)


@pytest.mark.parametrize("shift", [0, 1])
def test_encoder_and_decoder_learn(digits, shift):
    rows = []
    attack = SSBA(**TINY | {"encoder_epochs": 3, "width": 4}, shift=shift)
    backdoor = attack.learn(workshop(digits, attack, on_round=rows.append), AllToOne(3))
    assert [(row["stage"], row["epoch"], row["epochs"]) for row in rows] == [
        ("encoder", 1, 3), ("encoder", 2, 3), ("encoder", 3, 3),
    ]  # fmt: skip
    assert rows[-1]["bit_accuracy"] > 0.9
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert backdoor.rule == AllToOne(3)
    images = digits.floats()
    assert (backdoor.trigger(images) - images).abs().mean() > 0.01


def test_images_that_count_are_changed_less(digits):
    """The same run with a large λ from the first secret read, and with none."""
    psnr = {}
    for weight in (0.0, 100.0):
        rows = []
        attack = SSBA(
            **TINY | {"encoder_epochs": 4}, image_weight=weight, image_wait=0, image_ramp=1
        )
        attack.learn(workshop(digits, attack, on_round=rows.append), AllToOne(0))
        psnr[weight] = rows[-1]["psnr"]
    assert psnr[100.0] > psnr[0.0] + 5


def test_the_published_schedule_of_the_images_weight():
    """0 for 1000 steps after the first batch that was read, then up to 10 within 3000."""
    weights = [SSBA().weight_after(steps) for steps in (0, 1, 1000, 1300, 2500, 4000, 9999)]
    assert weights == pytest.approx([0, 0, 0, 1, 5, 10, 10])


def test_the_published_size_of_the_decoder():
    pair = Steganographer(SSBA(), (3, 32, 32), Rng(0))
    read = pair.decoder(torch.zeros(2, 3, 32, 32))
    assert read.shape == (2, 100)
    assert pair.decoder[-3].weight.shape == (512, 128)
    assert sum(weight.numel() for weight in pair.decoder.parameters()) == 441_284
    for shape in ((1, 8, 8), (3, 24, 40), (1, 28, 28)):
        assert Steganographer(SSBA(), shape, Rng(0)).decoder(torch.zeros(1, *shape)).shape[1] == 100


def test_weights_start_he_normal_and_from_the_seed():
    one, same, other = (Steganographer(SSBA(), (3, 32, 32), Rng(seed)) for seed in (0, 0, 1))
    weight = one.weights()["conv5_weight"]
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (128 * 9)), rel=0.02)
    assert not one.weights()["conv5_bias"].any()
    assert not one.decoder[0].bias.any()
    assert torch.equal(weight, same.weights()["conv5_weight"])
    assert not torch.equal(weight, other.weights()["conv5_weight"])


def test_the_secret_is_the_seeds(digits, monkeypatch):
    """About half of its bits are set; the same seed draws the same, another seed another."""
    attack = SSBA(width=1)
    weights = {k: torch.zeros(shape) for k, shape in encoder_shapes(100, 1, 1).items()}
    monkeypatch.setattr("excise.attacks.ssba.trained_encoder", lambda *_: weights)
    one, same, other = (
        attack.learn(workshop(digits, attack, seed), AllToOne(0)).trigger.secret
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert 30 < one.sum() < 70


def test_a_secret_that_is_never_read_is_refused(digits):
    attack = SSBA(**TINY | {"bits": 64, "encoder_epochs": 1})
    with pytest.raises(
        SpecError,
        match=r"whose secrets are read to 90% within 1 epochs, got \d\d% in the last\. Give more "
        r"encoder_epochs, a higher learning_rate or fewer bits\.",
    ):
        attack.learn(workshop(digits, attack), AllToOne(0))


def test_a_rate_too_high_diverges_with_a_word(digits):
    attack = SSBA(**TINY | {"learning_rate": 1e30})
    with pytest.raises(DivergedError, match=r"encoder diverged in epoch 1: loss nan\. Lower learn"):
        attack.learn(workshop(digits, attack), AllToOne(0))


def test_an_interrupted_encoder_goes_on_with_its_schedule(digits, tmp_path):
    """λ already rises when it is interrupted; weights end the same, to the last bit."""
    attack = SSBA(**TINY | {"encoder_epochs": 4}, image_wait=3, image_ramp=40)
    expected = trained_encoder(attack, workshop(digits, attack), Rng(5))
    stopped = workshop(digits, attack, checkpoints=tmp_path, on_round=interrupt_at(3))
    with pytest.raises(Interruption):
        trained_encoder(attack, stopped, Rng(5))
    rows = []
    again = workshop(digits, attack, checkpoints=tmp_path, on_round=rows.append)
    resumed = trained_encoder(attack, again, Rng(5))
    assert [row["epoch"] for row in rows] == [4]
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    with pytest.raises(DataError, match="a checkpoint of this very run"):
        trained_encoder(attack, workshop(digits, attack, 1, checkpoints=tmp_path), Rng(5))


def test_packing_keeps_weights_and_moments():
    def taught(network, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            network(torch.ones(3, 2)).square().sum().backward()
            optimizer.step()

    networks = [torch.nn.Linear(2, 2) for _ in range(2)]
    adams = [torch.optim.Adam(network.parameters(), 0.1) for network in networks]
    taught(networks[0], adams[0], 3)
    tensors = packed(networks[0], adams[0])
    assert set(tensors) >= {"network/weight", "0/exp_avg", "1/step"}
    unpack(tensors | {"figures": torch.zeros(1)}, networks[1], adams[1])
    for network, adam in zip(networks, adams, strict=True):
        taught(network, adam, 2)
    assert torch.equal(networks[0].weight, networks[1].weight)
    assert not torch.equal(networks[0].weight, tensors["network/weight"])
