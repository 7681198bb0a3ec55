"""The frequency detector: what it learns, what it promises, what it refuses, how it is stored."""

import dataclasses
import json

import pytest
import torch

from excise import registry
from excise.detection import Frequency, FrequencyScorer, load_scorer, save_scorer
from excise.detection.network import features, six_convolutions
from excise.errors import DataError, DivergedError, ModelError, UnsafeFileError
from excise.seeding import Rng
from excise.testing import Interruption, interrupt_at, nothing_global_changes, rebuilt_from_spec
from excise.types import SUSPICIOUS, ImageDetector, Scorer

QUICK = Frequency(clean_images=64, regenerations=2, epochs=1, learning_rate=1.0, batch_size=16)


def smooth_pictures(n, shape=(3, 8, 8), seed=0):
    """Images with little detail, like photographs."""
    coarse = torch.rand((n, shape[0], 4, 4), generator=torch.Generator().manual_seed(seed))
    grown = torch.nn.functional.interpolate(coarse, size=shape[1:], mode="bicubic")
    return (255 * grown.clamp(0, 1)).round().to(torch.uint8)


@pytest.fixture(scope="module")
def clean():
    return smooth_pictures(40)


@pytest.fixture(scope="module")
def scorer(clean):
    return QUICK.fit(clean, Rng(0))


# --- contract -------------------------------------------------------------------------------------


def test_it_is_a_detector_of_the_registry():
    (row,) = [row for row in registry.rows("detector") if row.name == "frequency"]
    assert row.load() is Frequency
    assert rebuilt_from_spec("detector", QUICK) == QUICK
    detector: ImageDetector = Frequency()
    assert dataclasses.asdict(detector)["clean_images"] == 50_000
    assert {field["name"]: field["help"] for field in row.fields()}["epochs"]


def test_the_same_seed_gives_the_same_scores_and_another_others(clean, scorer):
    again = QUICK.fit(clean, Rng(0))
    images = smooth_pictures(30, seed=1)
    assert torch.equal(scorer(images), again(images))
    assert not torch.equal(scorer(images), QUICK.fit(clean, Rng(1))(images))


def test_nothing_is_touched_and_nothing_global_changes(clean):
    before = clean.clone()
    with nothing_global_changes(), torch.no_grad():
        fitted = QUICK.fit(clean, Rng(0))
        fitted(clean)
    assert torch.equal(clean, before)


def test_an_interruption_leaves_nothing_behind(clean):
    with nothing_global_changes(), pytest.raises(Interruption):
        QUICK.fit(clean, Rng(0), on_round=interrupt_at(1))


def test_progress_counts_every_epoch(clean):
    told = []
    Frequency(
        clean_images=16, regenerations=2, epochs=2, smooth_epochs=1, batch_size=16
    ).fit(clean, Rng(0), on_round=told.append)  # fmt: skip
    assert [row["epoch"] for row in told] == [1, 2, 3, 4, 5]
    assert {row["epochs"] for row in told} == {5}
    assert [row["stage"] for row in told] == ["fit"] * 4 + ["smooth"]
    assert json.loads(json.dumps(told)) == told


def test_suspicion_is_a_number_in_0_to_1_for_each_image_alone(clean, scorer):
    checked: Scorer = scorer
    images = smooth_pictures(300, seed=2)
    suspicion = checked(images)
    assert suspicion.shape == (300,)
    assert ((suspicion >= 0) & (suspicion <= 1)).all()
    assert torch.allclose(suspicion[7:9], checked(images[7:9]), atol=1e-5)
    assert checked(images[:0]).shape == (0,)


def test_floats_are_judged_as_a_picture_file_holds_them(scorer):
    images = smooth_pictures(20, seed=3)
    floats = images.float() / 255
    assert torch.equal(scorer(images), scorer(floats))
    assert torch.equal(scorer(images), scorer((floats + 0.001).clamp(0, 1)))
    assert torch.equal(scorer(images), scorer(floats.double()))


def test_it_learns_to_tell_blocks_and_noise_from_clean_images():
    detector = Frequency(
        clean_images=300, regenerations=6, epochs=1, learning_rate=1.0, batch_size=32
    )
    scorer = detector.fit(smooth_pictures(300, (1, 8, 8)), Rng(0))
    clean = smooth_pictures(200, (1, 8, 8), seed=5)
    patched = clean.clone()
    patched[:, :, -3:, -3:] = torch.tensor([[255, 0, 255], [0, 255, 0], [255, 0, 255]]).byte()
    false_alarms = (scorer(clean) >= SUSPICIOUS).float().mean()
    found = (scorer(patched) >= SUSPICIOUS).float().mean()
    assert found > 0.9
    assert false_alarms < 0.2


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (1, 28, 28), (3, 9, 40), (3, 64, 64)])
def test_gray_and_color_of_many_sizes(shape):
    images = smooth_pictures(4, shape)
    fitted = dataclasses.replace(QUICK, clean_images=8, regenerations=1).fit(images, Rng(0))
    assert fitted(images).isfinite().all()
    assert fitted.shape == shape


# --- which images it learns from ------------------------------------------------------------------


def test_few_images_are_repeated_evenly_and_it_says_so(clean, scorer):
    assert scorer.notes == ("learned from 40 clean images, repeated to make 64",)
    index, _ = QUICK._chosen(clean, Rng(0))
    assert sorted(index.bincount(minlength=40).unique().tolist()) == [1, 2]
    assert len(index) == 64


def test_of_many_images_as_many_as_asked_are_drawn(clean):
    index, notes = dataclasses.replace(QUICK, clean_images=10)._chosen(clean, Rng(0))
    assert notes == ()
    assert len(index.unique()) == 10
    index, notes = dataclasses.replace(QUICK, clean_images=40)._chosen(clean, Rng(0))
    assert sorted(index.tolist()) == list(range(40))
    assert notes == ()


# --- the network ----------------------------------------------------------------------------------


def test_the_network_is_the_published_one():
    network = six_convolutions(3, 32, 32)
    trained = sum(p.numel() for p in network.parameters())
    kept = sum(b.numel() for b in network.buffers() if b.ndim)
    assert (trained, kept) == (292_002, 896), "the notebook's summary: 292,898 in all"
    convolutions = [m for m in network if isinstance(m, torch.nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [32, 32, 64, 64, 128, 128]
    assert [m.p for m in network if isinstance(m, torch.nn.Dropout)] == [0.2, 0.3, 0.4]
    norm = next(m for m in network if isinstance(m, torch.nn.BatchNorm2d))
    assert (norm.eps, norm.momentum) == (1e-3, 0.01)
    for conv in convolutions:
        bound = (6 / (9 * (conv.in_channels + conv.out_channels))) ** 0.5
        assert 0.9 * bound < float(conv.weight.detach().abs().max()) <= bound
        assert not conv.bias.any()
    kinds = [type(m).__name__ for m in network][:8]
    assert kinds == ["Conv2d", "ELU", "BatchNorm2d"] * 2 + ["MaxPool2d", "Dropout"]


def test_weight_decay_is_for_kernels_alone():
    network = six_convolutions(1, 8, 8)
    optimizer = Frequency()._optimizer(network)
    kernels, others = optimizer.param_groups
    assert {p.ndim for p in kernels["params"]} == {4}
    assert len(kernels["params"]) == 6
    assert all(p.ndim < 4 for p in others["params"])
    assert len(kernels["params"]) + len(others["params"]) == len(list(network.parameters()))
    assert (kernels["weight_decay"], others["weight_decay"]) == (2e-4, 0)
    assert (kernels["lr"], kernels["rho"], kernels["eps"]) == (0.05, 0.95, 1e-7)


def test_features_are_coefficients_of_values_from_0_to_255():
    constant = features(torch.full((1, 1, 32, 32), 10, dtype=torch.uint8))
    assert float(constant[0, 0, 0, 0]) == pytest.approx(320, abs=1e-3)
    constant[0, 0, 0, 0] = 0
    assert float(constant.abs().max()) < 1e-3


# --- what it refuses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(9, 3, 7, 32), "at least 8 × 8 pixels, got 7 × 32. .*halves its input three"),
        (torch.zeros(9, 4, 32, 32), "with 1 or 3 channels, got shape"),
        (torch.zeros(3, 32, 32), "with 1 or 3 channels, got shape"),
        (torch.zeros(1, 3, 32, 32), "at least 2 images"),
        (torch.full((3, 1, 8, 8), 1.5), r"float images in \[0, 1\] or uint8 images"),
        (torch.full((3, 1, 8, 8), float("nan")), "Undo any normalization"),
        (torch.zeros(3, 1, 8, 8, dtype=torch.int64), r"got torch.int64"),
    ],
)
def test_images_that_cannot_be_learned_from(images, message):
    with pytest.raises(DataError, match=message):
        QUICK.fit(images, Rng(0))


def test_images_of_another_shape_are_not_judged(scorer):
    with pytest.raises(DataError, match=r"images of 3 × 8 × 8, .*got 3 × 32 × 32\. Fit"):
        scorer(torch.zeros(2, 3, 32, 32))
    with pytest.raises(DataError, match=r"float images in \[0, 1\]"):
        scorer(torch.full((2, 3, 8, 8), -0.1))


def test_a_loss_that_is_not_finite_ends_it(clean):
    with pytest.raises(DivergedError, match="Lower learning_rate"):
        dataclasses.replace(QUICK, learning_rate=1e38).fit(clean, Rng(0))


# --- on disk --------------------------------------------------------------------------------------


def test_it_comes_back_identical(scorer, tmp_path):
    save_scorer(tmp_path / "detector", scorer, {"seed": 3})
    loaded, said = load_scorer(tmp_path / "detector")
    images = smooth_pictures(20, seed=7)
    assert torch.equal(loaded(images), scorer(images))
    assert (loaded.shape, loaded.notes) == (scorer.shape, scorer.notes)
    assert said["seed"] == 3
    assert {p.name for p in (tmp_path / "detector").iterdir()} == {
        "detector.json", "detector.safetensors"
    }  # fmt: skip


def test_a_missing_or_damaged_detector(scorer, tmp_path):
    with pytest.raises(ModelError, match=r"no detector\.json"):
        load_scorer(tmp_path)
    home = tmp_path / "detector"
    save_scorer(home, scorer)
    description = json.loads((home / "detector.json").read_text())

    def described(**changed):
        (home / "detector.json").write_text(json.dumps(description | changed))

    for changed, message in (
        ({"size": [4, 16]}, "size.0 of .* to be right"),
        ({"size": [10**9, 16]}, "size.0 of .* to be right"),
        ({"channels": 2}, "channels of .* to be right"),
        ({"version": 2}, "version of .* to be right"),
        ({"size": [32, 32]}, "weights of a frequency detector for 32 × 32 .*different"),
    ):
        described(**changed)
        with pytest.raises(ModelError, match=message):
            load_scorer(home)
    (home / "detector.json").write_text("[" * 100_000)
    with pytest.raises(ModelError, match="JSON in"):
        load_scorer(home)
    (home / "detector.json").write_text(" " * (2 * 1024**2))
    with pytest.raises(UnsafeFileError, match="at most 1,048,576 bytes"):
        load_scorer(home)
    described()
    (home / "detector.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match="a weights file"):
        load_scorer(home)


def test_a_detector_with_a_nan_is_refused(scorer, tmp_path):
    weights = {name: value.clone() for name, value in scorer.weights.items()}
    weights["0.weight"][0, 0, 0, 0] = float("nan")
    save_scorer(tmp_path / "d", FrequencyScorer(weights, scorer.shape))
    with pytest.raises(ModelError, match="finite"):
        load_scorer(tmp_path / "d")
