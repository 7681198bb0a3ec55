"""Accuracy on images that an adversary moved so that one filter's feature map changes most.

Paper: Huang, Bu: Adversarial Feature Map Pruning for Backdoor, ICLR 2024 (arXiv 2307.11565), the
feature reverse generation: x' = clip(x₀ + ε sign ∂/∂x₀ MSE(F(x₀), F(x))) for the map F of a filter.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from excise.models.taps import tapped
from excise.types import Images, Labels

__all__ = ["Filters", "feature_reverse_accuracy", "lowest", "reversed_images"]

#: Convolution and number of each filter.
Filters = list[tuple[str, int]]


def feature_reverse_accuracy(
    model: nn.Module,
    images: Images,
    moved: Images,
    labels: Labels,
    filters: Filters,
    epsilon: float,
    chunk: int,
    on_chunk: Callable[[int], None] = lambda done: None,
) -> Float[Tensor, " filters"]:
    """Return for each filter the accuracy on the images that its map's adversary made.

    Args:
        model: in eval mode, its parameters frozen; on the images' device and of their type.
        images: x, ``(n, c, h, w)`` in [0, 1].
        moved: x₀, where the search starts.
        labels: true labels of the images.
        filters: which; every convolution gives a map ``(n, filters, h, w)``.
        epsilon: ε.
        chunk: images that go through the network together; n is the least.
        on_chunk: called with how many filters are done.
    """
    scores: list[Tensor] = [images.new_empty(0)]
    size = max(1, chunk // len(images))
    for start in range(0, len(filters), size):
        part = filters[start : start + size]
        there = reversed_images(model, images, moved, part, epsilon)
        with torch.no_grad():
            said = model(there.flatten(0, 1)).argmax(1).unflatten(0, (len(part), -1))
        scores.append((said == labels).to(images.dtype).mean(1))
        on_chunk(start + len(part))
    return torch.cat(scores)


def reversed_images(
    model: nn.Module, images: Images, moved: Images, filters: Filters, epsilon: float
) -> Float[Tensor, "f n c h w"]:
    """Return the images of each filter's adversary; arguments as above.

    Filters share one forward and one backward pass: each has a copy of the images for its own,
    which nothing but its own map is asked about.
    """
    n = len(images)
    rows: dict[str, list[int]] = {}
    for row, (layer, _) in enumerate(filters):
        rows.setdefault(layer, []).append(row)
    with tapped(model, list(rows)) as seen, torch.enable_grad():
        with torch.no_grad():
            model(images)
        still = dict(seen)
        copies = moved.repeat(len(filters), 1, 1, 1).requires_grad_(True)
        model(copies)
        losses = []
        for layer, own in rows.items():
            numbers = torch.tensor([filters[row][1] for row in own], device=images.device)
            # (f, n, C, h, w) → the map of its filter from each copy, (rows, n, h, w)
            maps = seen[layer].unflatten(0, (len(filters), n))[own]
            maps = maps[torch.arange(len(own), device=images.device), :, numbers]
            losses.append((maps - still[layer][:, numbers].transpose(0, 1)).square().sum())
        (gradient,) = torch.autograd.grad(torch.stack(losses).sum(), copies)
    # The sum instead of the mean: only the sign counts, and no copy depends on another.
    there = (copies.detach() + epsilon * gradient.sign()).clamp(0, 1)
    return there.view(len(filters), *images.shape)


def lowest(filters: Filters, scores: Float[Tensor, " filters"], one_in: int) -> list[int]:
    """Return where in ``filters`` those with the lowest scores of each convolution stand.

    One in so many of the convolution's, rounded down; the lowest first, of equals the first.
    """
    rows: dict[str, list[int]] = {}
    for row, (layer, _) in enumerate(filters):
        rows.setdefault(layer, []).append(row)
    return [
        own[place]
        for own in rows.values()
        for place in scores[own].argsort(stable=True)[: len(own) // one_in].tolist()
    ]
