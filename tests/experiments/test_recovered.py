"""What recovered triggers do, before and after a repair."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from excise.experiments.recovered import COUNTED, _others, recovered_triggers
from excise.types import Evidence, LabelledImages, RecoveredTrigger


class Brightest(nn.Module):
    """Answers with the channel that is brightest on average."""

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, ``(n, 3)``."""
        return images.mean((2, 3)) * 10


class Deaf(Brightest):
    """The same, but it does not see the third channel."""

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, ``(n, 3)``."""
        return super().forward(images) * torch.tensor([1.0, 1.0, 0.0])


def bluer(images: Tensor) -> Tensor:
    blue = images.clone()
    blue[:, 2] = 1.0
    return blue


def images(labels: list[int]) -> LabelledImages:
    pixels = torch.full((len(labels), 3, 8, 8), 0.2)
    for image, label in zip(pixels, labels, strict=True):
        image[label] = 0.6
    return LabelledImages(pixels, torch.tensor(labels), ("red", "green", "blue"))


def test_rates_are_of_other_classes_and_of_both_networks() -> None:
    found = RecoveredTrigger(bluer, 2, Evidence(size=64.0))
    (row,), pictures = recovered_triggers([found], Brightest(), images([0, 0, 1, 2]), Deaf())
    assert row["class"] == "blue"
    counts = {
        name: (row[name]["count"], row[name]["n"]) for name in ("rate", "without", "repaired")
    }
    assert counts == {"rate": (3, 3), "without": (0, 3), "repaired": (0, 3)}
    first = row["shown"][0]
    assert (first["label"], first["before"], first["after"]) == ("red", "red", "blue")
    assert first["repaired"] == "red"
    assert {first["clean"], first["triggered"], first["residual"]} <= pictures.keys()


def test_a_trigger_without_a_class_works_where_the_answer_changes() -> None:
    aimless = RecoveredTrigger(bluer)
    (row,), _ = recovered_triggers([aimless], Brightest(), images([0, 1, 2]))
    assert row["class"] is None
    assert (row["rate"]["count"], row["rate"]["n"]) == (2, 3)
    assert row["without"]["count"] == 0
    assert "repaired" not in row


def test_without_images_of_other_classes_there_is_nothing_to_try_it_on() -> None:
    found = RecoveredTrigger(bluer, 2)
    assert recovered_triggers([found], Brightest(), images([2, 2])) == ([], {})


def test_images_of_every_class_are_among_those_tried() -> None:
    """Folders come sorted by class: the first half of them is not the folder."""
    many = images([0, 1, 2] * 5 + [0] * 800 + [1] * 800 + [2] * 399)
    some = _others(many, None)
    assert len(some) == COUNTED
    assert min(some.counts()) > 150
    assert len(_others(images([0, 1, 2]), 1)) == 2
