"""The input-aware trigger: every image gets its own pattern at its own few pixels.

Nguyen & Tran: Input-Aware Dynamic Backdoor Attack, NeurIPS 2020 (arXiv 2010.08138): a generator G
draws the pattern, a second network M says where it goes: x + (G(x) − x)·M(x).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from excise.errors import TriggerError
from excise.triggers.chunks import in_chunks
from excise.triggers.networks import Pyramid, Weights, rebuilt
from excise.types import Images

__all__ = ["InputAwarePattern", "mixed", "sharpened"]


@dataclass(frozen=True, eq=False)
class InputAwarePattern:
    """Pastes what ``generator`` draws for an image where ``mask`` says for the same image.

    Args:
        generator: weights of a :class:`excise.triggers.networks.Pyramid` with as many outputs as
            channels.
        mask: weights of one with a single output.

    Raises:
        TriggerError: weights of other networks.
    """

    generator: Weights
    mask: Weights

    def __post_init__(self) -> None:
        generator, mask = rebuilt(Pyramid, self.generator), rebuilt(Pyramid, self.mask)
        (inputs, outputs), of_mask = generator.sizes, mask.sizes
        if inputs != outputs or of_mask != (inputs, 1):
            raise TriggerError(
                "a generator from c to c channels and a mask network from c to 1",
                got=f"{inputs} to {outputs} and {of_mask[0]} to {of_mask[1]}",
                remedy="Give the weights of one victim's two networks.",
            )
        object.__setattr__(self, "_networks", (generator, mask))

    def __call__(self, images: Images, /) -> Images:
        """Return the images, each with its own trigger.

        Raises:
            TriggerError: the networks were trained on images of other channels.
        """
        generator, mask = (network.to(images.device) for network in self._networks)  # type: ignore[attr-defined]
        generator.check(images)

        def triggered(chunk: Tensor) -> Tensor:
            return mixed(chunk, generator(chunk), sharpened(mask(chunk)))

        return in_chunks(triggered, images).to(images.dtype)


def sharpened(maps: Tensor) -> Tensor:
    """Return masks: outputs of the mask network pushed toward 0 and 1, tanh(20·m − 10)/2 + ½."""
    return torch.sigmoid(40 * maps - 20)


def mixed(images: Images, patterns: Tensor, masks: Tensor) -> Images:
    """Return x + (p − x)·m, which lies between image and pattern.

    Args:
        images: ``(n, c, h, w)`` in [0, 1].
        patterns: of the same shape and range.
        masks: ``(n, 1, h, w)`` in [0, 1].
    """
    return (images + (patterns - images) * masks).clamp(0, 1)
