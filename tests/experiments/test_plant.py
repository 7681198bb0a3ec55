"""A victim's card says what its planting took and what was poisoned."""

import itertools
import json
from types import SimpleNamespace

import pytest
import torch

from excise.attacks import BadNets
from excise.data import DataSet
from excise.experiments.plant import Planting, plant
from excise.seeding import Rng
from excise.testing import Interruption, interrupt_at
from excise.training import Recipe
from excise.types import LabelledImages

pytestmark = pytest.mark.fast

PLANTING = Planting(
    attack=BadNets(size=2, target=3),
    arch="excise:preactresnet18,width=2",
    recipe=Recipe(epochs=2, batch_size=8, learning_rate=0.05),
)


def images(labels, seed):
    pixels = torch.rand((len(labels), 1, 8, 8), generator=Rng(seed).torch("pixels"))
    return LabelledImages(pixels, torch.tensor(labels), ("a", "b", "c", "d"))


def data_of(classes):
    train, test = images(classes * 10, 0), images([0, 1, 2, 3] * 5, 1)
    return DataSet("made up", train, test, mean=(0.5,), std=(0.5,))


@pytest.mark.parametrize(
    ("change", "seconds"),
    [
        (lambda said: said, 3.0),  # one before the interruption and two after it
        (lambda said: None, 2.0),  # checkpoints of an older Excise say nothing
        (lambda said: "", 2.0),
        (lambda said: "{}", 2.0),
        (lambda said: json.dumps(json.loads(said) | {"made": "something else"}), 2.0),
    ],
)
def test_a_card_counts_the_seconds_before_an_interruption(tmp_path, monkeypatch, change, seconds):
    data = data_of([0, 1, 2, 3])
    ticks = itertools.count()  # a second passes between two looks at the clock
    clock = SimpleNamespace(perf_counter=lambda: float(next(ticks)))
    monkeypatch.setattr("excise.experiments.plant.time", clock)
    with pytest.raises(Interruption):
        plant(PLANTING, data, tmp_path / "v", on_round=interrupt_at(1))
    kept = tmp_path / ".v.checkpoints" / "seconds.json"
    if (said := change(kept.read_text())) is None:
        kept.unlink()
    else:
        kept.write_text(said)
    rows = []
    card = plant(PLANTING, data, tmp_path / "v", on_round=rows.append)
    assert [row["epoch"] for row in rows] == [2]
    assert card["seconds"] == seconds
    assert [path.name for path in tmp_path.iterdir()] == ["v"]


def test_a_target_without_training_images_has_no_fraction_of_them(tmp_path):
    said = plant(PLANTING, data_of([0, 1, 2]), tmp_path / "v")["poisoned"]
    assert said == {
        "images": 2, "fraction_of_all": 2 / 15, "fraction_of_target_class": None, "covers": 0,
    }  # fmt: skip
