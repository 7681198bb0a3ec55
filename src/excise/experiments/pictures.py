"""The pictures of a report: the same test images clean, triggered, and what the trigger changed."""

from __future__ import annotations

from typing import Any

import torch

from excise.data import to_png
from excise.evaluation import Evaluation
from excise.types import Images, LabelledImages, Labels, Trigger, round_to_8_bits

__all__ = ["SHOWN", "one_of_each_class", "trigger_pictures", "triples"]

#: Pictures shown at most; one of a class before a second of any.
SHOWN = 6


def trigger_pictures(
    test: LabelledImages, trigger: Trigger, before: Evaluation, after: Evaluation
) -> tuple[list[dict[str, Any]], float, dict[str, bytes]]:
    """Return the report's rows, the factor residuals are enlarged by, and the PNG files.

    Args:
        test: the images both evaluations are of.
        trigger: the trigger both were measured under.
        before: of the given network, with outcomes.
        after: of the repaired network, with outcomes.
    """
    first, last = before.outcomes, after.outcomes
    assert first is not None
    assert last is not None
    if first.triggered is None or first.wanted is None or last.triggered is None:
        return [], 1.0, {}
    if not first.shown.any():  # all of them are of the target already
        return [], 1.0, {}
    index = one_of_each_class(test.labels, torch.from_numpy(first.counted))
    rows, scale, files = triples(test.subset(index).floats(), trigger)
    shown: list[dict[str, Any]] = []
    for position, names in zip(index.tolist(), rows, strict=True):
        said = {
            "label": first.labels[position],
            "wanted": first.wanted[position],
            "before": first.triggered[position],
            "after": last.triggered[position],
        }
        shown.append({**{key: test.classes[int(k)] for key, k in said.items()}, **names})
    return shown, scale, files


def triples(
    clean: Images, trigger: Trigger, place: str = "pictures/"
) -> tuple[list[dict[str, str]], float, dict[str, bytes]]:
    """Return each image's file names, the factor residuals are enlarged by, and the PNG files.

    Args:
        clean: ``(n, c, h, w)``.
        trigger: what is put on them; the result is rounded to 8 bits.
        place: what every file's name begins with.
    """
    triggered = round_to_8_bits(trigger(clean))
    residual = (triggered - clean).abs()
    # Enlarged until the strongest change is nearly white, in whole steps a caption can name.
    scale = float(max(1, min(20, round(0.9 / max(float(residual.max()), 1e-3)))))
    rows, files = list[dict[str, str]](), dict[str, bytes]()
    for i in range(len(clean)):
        parts = {"clean": clean[i], "triggered": triggered[i], "residual": residual[i] * scale}
        names = {part: f"{place}{i}-{part}.png" for part in parts}
        files |= {names[part]: to_png(image.clamp(0, 1)) for part, image in parts.items()}
        rows.append(names)
    return rows, scale, files


def one_of_each_class(labels: Labels, counted: torch.Tensor, most: int = SHOWN) -> torch.Tensor:
    """Return the positions of the first counted image of each class, ``most`` at most."""
    labels = torch.where(counted, labels.cpu(), -1)
    classes = labels.unique()
    classes = classes[classes >= 0][:most]
    first: torch.Tensor = (labels == classes[:, None]).int().argmax(1)
    return first
