"""Networks that say what a test tells them to, and images that say which image they are."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from excise.evaluation import Evaluation, Outcomes, summarize
from excise.types import LabelledImages


class Told(nn.Module):
    """Says ``clean[i]`` of image i, and ``triggered[i]`` of it with the mark on it."""

    def __init__(self, clean, triggered=None, k=4):
        super().__init__()
        self.register_buffer("clean", torch.as_tensor(clean))
        self.register_buffer(
            "triggered", torch.as_tensor(clean if triggered is None else triggered)
        )
        self.weight = nn.Parameter(torch.ones(1))
        self.dropout = nn.Dropout(0.5)
        self.k = k
        self.batches: list[int] = []

    def forward(self, images):
        assert not self.training
        self.batches.append(len(images))
        p = (images * 255).round().long()[:, 0].flatten(1)
        i = p[:, 0] * 256 + p[:, 1]
        answer = torch.where(p[:, 2] > 0, self.triggered[i], self.clean[i])
        return nn.functional.one_hot(answer, self.k).float() * self.dropout(self.weight)


def numbered(labels, k=4, **kwargs):
    """Images of 1 × 2 × 2 pixels whose first two pixels hold their number."""
    labels = torch.as_tensor(labels)
    i = torch.arange(len(labels))
    pixels = torch.stack([i // 256, i % 256, 0 * i, 0 * i], dim=1).to(torch.uint8)
    classes = tuple(f"class {c}" for c in range(k))
    return LabelledImages(pixels.reshape(-1, 1, 2, 2), labels, classes, **kwargs)


def mark(images):
    """Set the third pixel: the trigger that ``Told`` sees."""
    marked = images.clone()
    marked[:, :, 1, 0] = 1.0
    return marked


def evaluation(labels, clean, triggered=None, *, target=0, k=4, counted=None) -> Evaluation:
    """An evaluation with these outcomes, all-to-one unless ``counted`` says otherwise."""
    labels, clean = np.asarray(labels), np.asarray(clean)
    classes = tuple(f"class {c}" for c in range(k))
    if triggered is None:
        return summarize(Outcomes(labels, clean), classes, target=target)
    counted = labels != target if counted is None else np.asarray(counted)
    shown = np.where(counted, np.asarray(triggered), -1)
    wanted = np.full_like(labels, target)
    return summarize(Outcomes(labels, clean, shown, counted, wanted), classes, target=target)


def made(n, *, acc=1.0, asr=0.0, ra=None, recall=1.0, k=4) -> Evaluation:
    """An evaluation of n images a class with about these figures; target class 0.

    The first images of a class are the ones it gets right. An image it gets wrong it calls the
    next class, a target image it gets wrong class 1.
    """
    labels = np.repeat(np.arange(k), n)
    order = np.tile(np.arange(n), k)
    right = order < np.where(labels == 0, recall, acc) * n
    wrong = np.where(labels == k - 1, 1, labels + 1)
    clean = np.where(right, labels, wrong)
    ra = (1 - asr) if ra is None else ra
    rest = np.where(order < (asr + ra) * n, labels, wrong)
    return evaluation(labels, clean, np.where(order < asr * n, 0, rest), k=k)


@pytest.fixture(scope="session")
def hand():
    return SimpleNamespace(
        Told=Told, numbered=numbered, mark=mark, evaluation=evaluation, made=made
    )
