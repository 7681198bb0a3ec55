"""What the two functions of the front door refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import excise
from excise.data import defender_data
from excise.defenses import CLP, FineTuning, GradPrune
from excise.detection import MMBD
from excise.errors import DataError, ModelError, SpecError
from excise.inversion import Oracle
from excise.seeding import Rng
from excise.testing import Planted

pytestmark = pytest.mark.fast

CLEAN = torch.rand(8, 1, 8, 8), torch.arange(8) % 2


@pytest.mark.parametrize(
    "method", ["clp", CLP, object(), excise.scan], ids=["name", "class", "object", "function"]
)
@pytest.mark.parametrize(
    ("front", "kind"),
    [(excise.repair, "defense"), (excise.scan, "scanner")],
    ids=["repair", "scan"],
)
def test_what_is_no_method_is_refused(front: Any, kind: str, method: object) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with pytest.raises(SpecError, match=rf"expected a {kind} with its settings.*excise list"):
        front(model, CLEAN, method=method)


@pytest.mark.filterwarnings("ignore::UserWarning")  # the network answers at chance
@pytest.mark.parametrize("spc", [1, None])
def test_one_image_a_class_is_enough_for_who_decides_by_none(spc: int | None) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 2))
    one = torch.rand(3, 1, 8, 8), torch.tensor([0, 1, 1])
    assert excise.repair(model, one, spc=spc, method=FineTuning(epochs=2)).history
    with pytest.raises(DataError, match=r"validation images.*Give at least 2 images per"):
        excise.repair(model, one, spc=spc, method=GradPrune(inverter=Oracle(lambda x: x)))


def test_who_gives_images_and_labels_where_they_belong_together_is_told_how(tmp_path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    for refused in (
        lambda: excise.evaluate(model, CLEAN),
        lambda: defender_data(CLEAN, spc=None, rng=Rng(0)),
    ):
        with pytest.raises(DataError, match=r"got tuple.*load_images\(\(images, labels\)\)"):
            refused()


def test_a_module_of_ones_own_is_no_bundle(tmp_path) -> None:
    with pytest.raises(ModelError, match=r"got Linear.*arch=\"your_package\.module:factory\""):
        excise.save_bundle(tmp_path / "b", nn.Linear(2, 2))
    assert not (tmp_path / "b").exists()


@pytest.mark.filterwarnings("ignore::UserWarning")  # the network answers at chance
def test_images_that_someone_differentiates_through_are_taken() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 2))
    images = torch.rand(8, 1, 8, 8, requires_grad=True) * 1
    done = excise.repair(model, (images, CLEAN[1]), method=FineTuning(epochs=2))
    assert done.model(images.detach()).shape == (8, 2)


def test_a_network_prepared_otherwise_than_in_training_is_warned_of(planted: Planted) -> None:
    images, quick = planted.data.everything(), {"starts": 2, "steps": 4}
    model = planted.network()
    assert not any("prepared" in n for n in excise.scan(model, images, method=MMBD(**quick)).notes)
    model.normalize.std.fill_(8.0)
    for front, method in ((excise.scan, MMBD(**quick)), (excise.repair, CLP())):
        with pytest.warns(UserWarning, match="Check") as warned:  # at chance, too
            found = front(model, images, method=method)
        assert "not prepared as in training" in str(warned[-1].message)
        assert any("not prepared as in training" in note for note in found.notes)
