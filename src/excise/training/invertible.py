"""Masks on a network's filters that can be inverted: what one network keeps, the other loses.

Paper: Dunnett, Arablouei, Miller, Dedeoglu, Jurdak: Backdoor Mitigation via Invertible Pruning
Masks, NeurIPS 2025 (arXiv 2509.15497).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from excise.models import Unit, own_tensors
from excise.training.masks import Masked
from excise.types import Images

__all__ = ["InvertibleMasks", "agree", "disagree", "gate", "perturbed"]


class InvertibleMasks(nn.Module):
    """A mask m and a selection s for every filter of a network; both 1, which changes nothing.

    What a filter gives, before any batch norm, is multiplied by v(m, s), or by v(1 − m, s): so are
    its weight and bias.

    Args:
        model: the network, a copy of one's own; it is run in whatever mode it is.
        units: whose filters, at least one.
        steepness: k of the gate.

    Raises:
        ModelError: a convolution computes its weight from other parameters.
    """

    def __init__(self, model: nn.Module, units: Sequence[Unit], steepness: float) -> None:
        super().__init__()
        weight = [own_tensors(model, unit)[0] for unit in units][-1]
        ones = weight.detach().new_ones(sum(unit.filters for unit in units))
        self.mask, self.selection = nn.Parameter(ones), nn.Parameter(ones.clone())
        self._filters = [unit.filters for unit in units]
        self._names = [
            [f"{unit.layer}.{n}" for n, _ in model.get_submodule(unit.layer).named_parameters()]
            for unit in units
        ]
        self._steepness, self._masked = steepness, Masked(model, {})

    def values(self, *, inverse: bool = False) -> dict[str, Tensor]:
        """Return v(m, s), or v(1 − m, s), of each filter, by the parameters it multiplies."""
        mask = 1 - self.mask if inverse else self.mask
        value = gate(mask, self.selection, self._steepness).split(self._filters)
        return {name: v for names, v in zip(self._names, value, strict=True) for name in names}

    def forward(self, images: Images, *, inverse: bool = False) -> Tensor:
        """Return the logits of the masked, or inversely masked, network."""
        return self._masked(images, self.values(inverse=inverse))

    @torch.no_grad()
    def clip(self) -> None:
        """Put masks and selections back into [0, 1]."""
        self.mask.clamp_(0, 1)
        self.selection.clamp_(0, 1)


def gate(mask: Tensor, selection: Tensor, steepness: float) -> Tensor:
    """Return v = g + s (1 − g), g = σ(k (m − ½)), element by element."""
    g = torch.sigmoid(steepness * (mask - 0.5))
    return g + selection * (1 - g)


def agree(one: Float[Tensor, "n k"], other: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
    """Return the mean of −ln Σ p q over images, of the softmaxes of two sets of logits."""
    # 1e-8, as the authors' code has it: two sure networks may agree, or not, to the last bit.
    return -(_overlap(one, other) + 1e-8).log().mean()


def disagree(one: Float[Tensor, "n k"], other: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
    """Return the mean of −ln (1 − Σ p q) over images."""
    return -(1 - _overlap(one, other) + 1e-8).log().mean()


def _overlap(one: Float[Tensor, "n k"], other: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    # Rounding can put the sum above 1, where the logarithm has no value.
    return (one.softmax(1) * other.softmax(1)).sum(1).clamp(max=1)


def perturbed(
    f: nn.Module, masks: InvertibleMasks, images: Images, steps: int, rate: float
) -> Images:
    """Return x + δ that f, and the inversely masked f with it, call another class than x.

    min_δ A(inv(x+δ), f(x+δ)) + D(f(x+δ), f(x)), one δ for each image, by AdamW from 0.

    Args:
        f: the network, its parameters frozen.
        masks: of ``f``; their gradients are neither computed nor touched.
        images: x, ``(n, c, h, w)`` in [0, 1]; x + δ stays there too.
        steps: how many.
        rate: of AdamW.
    """
    with torch.no_grad():
        clean = f(images)
    with torch.enable_grad():
        delta = torch.zeros_like(images, requires_grad=True)
        optimizer = torch.optim.AdamW([delta], lr=rate)
        for _ in range(steps):
            moved = images + delta
            shifted = f(moved)
            loss = agree(masks(moved, inverse=True), shifted) + disagree(shifted, clean)
            (delta.grad,) = torch.autograd.grad(loss, delta)
            optimizer.step()
            with torch.no_grad():
                delta.copy_((images + delta).clamp(0, 1) - images)
    return (images + delta).detach().clamp(0, 1)
