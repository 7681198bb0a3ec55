"""How much of what a trigger does inside the given network is still there in the repaired one.

Paper: Zhu, Liang, Wu: Breaking the False Sense of Security in Backdoor Defense through
Re-Activation Attack, NeurIPS 2024 (arXiv 2405.16134), the backdoor existence coefficient.

Per convolution l   the tenth of its filters with the largest TAC in the given network:
                    mean over x of ‖f_k(x) − f_k(T(x))‖₂ (Zheng et al., ECCV 2022)
S_l                 linear CKA (Kornblith et al., ICML 2019) of their maps on triggered images,
                    given against repaired: ⟨K, L⟩ / (‖K‖ ‖L‖), K and L the centered Gram matrices
Similarity          mean of S_l over l

Departures, and why:

1. The paper sets S_l on a scale from a clean network's (0) to the given one's (1). The defender has
   no clean network, so this is S itself, and what it would be without any backdoor is not known:
   no audit fails by it.
2. The authors' scripts take 500 poisoned test images; here they are the defender's, at most 200.
   CKA of few images lies too high.
3. The interval is a jackknife's over images.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from scipy.stats import norm
from torch import Tensor, nn

from excise.errors import ModelError
from excise.models import device_of, dtype_of, in_mode, trace
from excise.models.taps import tapped
from excise.rates import CONFIDENCE, Interval
from excise.types import Images, Trigger

__all__ = ["similarity"]

_IMAGES, _BATCH, _SHARE = 200, 64, 0.1


def similarity(
    given: nn.Module, repaired: nn.Module, images: Images, trigger: Trigger
) -> Interval | None:
    """Return S, in [0, 1], and its interval.

    Args:
        given: the network before its repair; both come back as they were.
        repaired: after it.
        images: ``(n, c, h, w)`` clean images of classes the trigger leads away from.
        trigger: the backdoor's.

    Returns:
        None where there are fewer than 4 images, no convolution that both networks have, or none
        whose maps differ from image to image.
    """
    images = images[:_IMAGES].to(device_of(given), dtype_of(given))
    if len(images) < 4:
        return None
    names = _layers(given, repaired, images)
    if not names:
        return None
    with torch.no_grad():
        pairs = [(some, trigger(some)) for some in images.split(_BATCH)]
    changes: dict[str, Tensor] = {}
    for clean, triggered in pairs:
        old, new = _maps(given, clean, names), _maps(given, triggered, names)
        for name in names:
            change = (new[name] - old[name]).flatten(2).norm(dim=2).sum(0)
            changes[name] = changes.get(name, 0) + change
    top = {
        name: tac.argsort(descending=True, stable=True)[: math.ceil(_SHARE * len(tac))]
        for name, tac in changes.items()
    }
    first, second = ({name: list[Tensor]() for name in names} for _ in range(2))
    for _, triggered in pairs:
        for net, kept in ((given, first), (repaired, second)):
            for name, maps in _maps(net, triggered, names).items():
                kept[name].append(maps[:, top[name]].flatten(1).double())
    grams = [[_gram(kept[name]) for name in names] for kept in (first, second)]
    return _jackknife(*grams)


def _layers(given: nn.Module, repaired: nn.Module, images: Images) -> list[str]:
    """Return the convolutions whose maps have the same shape in both networks."""
    try:
        names = [unit.layer for unit in trace(given, images)]
    except ModelError:
        return []
    names = [name for name in names if name in dict(repaired.named_modules())]
    old, new = (_maps(net, images[:1], names) for net in (given, repaired))
    return [n for n in names if n in old and n in new and old[n].shape == new[n].shape]


def _maps(model: nn.Module, images: Images, names: list[str]) -> dict[str, Tensor]:
    with in_mode(model), torch.no_grad(), tapped(model, names) as seen:
        model(images.to(device_of(model), dtype_of(model)))
        return dict(seen)


def _gram(rows: list[Tensor]) -> Float[Tensor, "n n"]:
    features = torch.cat(rows)
    return features @ features.T


def cka(first: Float[Tensor, "n n"], second: Float[Tensor, "n n"]) -> Float[Tensor, " n+1"]:
    """Return the linear CKA of two Gram matrices, then what it is without each of the images.

    ⟨HKH, HLH⟩ = Σ K ∘ L − 2/n Σ_a k_a l_a + k l / n², with k_a the sums of rows and k the sum of
    all; leaving an image out takes its row and column from each sum. NaN where nothing varies.
    """
    a, b = (k - k.mean(0) - k.mean(1, keepdim=True) + k.mean() for k in (first, second))
    tiny = 1e-9 * first.norm() * second.norm()
    scale = (_products(a, a) * _products(b, b)).clamp_min(0).sqrt()
    found = _products(a, b) / scale
    return torch.where(scale > tiny, found.clamp(0, 1), torch.nan)


def _products(k: Float[Tensor, "n n"], m: Float[Tensor, "n n"]) -> Float[Tensor, " n+1"]:
    n, both = len(k), k * m
    rows_k, rows_m = k.sum(0), m.sum(0)
    whole = both.sum() - 2 / n * rows_k @ rows_m + k.sum() * m.sum() / n**2
    product = both.sum() - 2 * both.sum(0) + both.diagonal()
    reduced = (rows_k[:, None] - k) * (rows_m[:, None] - m)  # (a, i): row a without image i
    rows = reduced.sum(0) - reduced.diagonal()
    sums = [x.sum() - 2 * x.sum(0) + x.diagonal() for x in (k, m)]
    without = product - 2 / (n - 1) * rows + sums[0] * sums[1] / (n - 1) ** 2
    return torch.cat([whole[None], without])


def _jackknife(first: list[Tensor], second: list[Tensor]) -> Interval | None:
    found = torch.stack([cka(a, b) for a, b in zip(first, second, strict=True)])
    found = found[found.isfinite().all(1)]
    if not len(found):
        return None
    whole, *without = found.mean(0).tolist()
    n, mean = len(without), sum(without) / len(without)
    deviation = math.sqrt((n - 1) / n * sum((v - mean) ** 2 for v in without))
    half = float(norm.ppf(0.5 + CONFIDENCE / 2)) * deviation
    return Interval(whole, max(0.0, whole - half), min(1.0, whole + half))
