"""A fitted frequency detector: images → suspicion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float64, UInt8
from torch import Tensor, nn

from excise.detection.network import LEAST, features, six_convolutions
from excise.errors import DataError

__all__ = ["FrequencyScorer", "as_bytes", "laid_out"]

#: Images scored at once.
_CHUNK = 256


@dataclass(frozen=True, eq=False)
class FrequencyScorer:
    """A fitted detector: images → suspicion. An image is flagged from 0.5 on, the network's argmax.

    Args:
        weights: of the network, by name.
        shape: channels, height and width of the images it learned from; it takes no others.
        notes: what to know of how it was fitted.
    """

    weights: Mapping[str, Tensor]
    shape: tuple[int, int, int]
    notes: tuple[str, ...] = ()
    _network: nn.Module = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # On the meta device nothing is drawn from torch's global generator.
        with torch.device("meta"):
            network = six_convolutions(*self.shape)
        network.load_state_dict(dict(self.weights), assign=True)
        # One layout whatever layout the weights came in: layouts differ in the last bit.
        network.to(memory_format=torch.channels_last)
        network.eval().requires_grad_(False)
        object.__setattr__(self, "_network", network)

    @torch.no_grad()
    def __call__(self, images: Tensor, /) -> Float64[Tensor, " n"]:
        """Return each image's suspicion in [0, 1], on the images' device; none without images.

        Args:
            images: ``(n, c, h, w)`` of the shape it learned from, 8-bit or float in [0, 1].

        Raises:
            DataError: images of another shape, or values out of range.
        """
        images = as_bytes(images, least=0)
        if tuple(images.shape[1:]) != self.shape:
            expected, got = (" × ".join(map(str, s)) for s in (self.shape, images.shape[1:]))
            raise DataError(
                f"images of {expected}, as the detector learned from",
                got=got,
                remedy="Fit a detector on clean images like these; scaling hides what it looks at.",
            )
        device = next(self._network.parameters()).device
        suspicion = torch.empty(len(images), dtype=torch.float64, device=images.device)
        with torch.autocast(device.type, enabled=False):
            for start in range(0, len(images), _CHUNK):
                logits = self._network(laid_out(images[start : start + _CHUNK].to(device)))
                suspicion[start : start + _CHUNK] = logits.double().softmax(1)[:, 1]
        return suspicion


def laid_out(images: Tensor) -> Tensor:
    """Return what the network takes: the coefficients of the images."""
    # This layout is the faster one for convolutions on most processors.
    return features(images).contiguous(memory_format=torch.channels_last)


def as_bytes(images: Tensor, least: int = 2) -> UInt8[Tensor, "n c h w"]:
    """Return the images in 8 bits.

    Raises:
        DataError: fewer than ``least``, another shape, too small, or values out of range.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) < least:
        raise DataError(
            f"at least {least} images of shape (n, c, h, w) with 1 or 3 channels"
            if least
            else "images of shape (n, c, h, w) with 1 or 3 channels",
            got=f"shape {tuple(images.shape)}",
            remedy="Stack the images into one tensor, channels before height and width.",
        )
    if min(images.shape[2:]) < LEAST:
        raise DataError(
            f"images of at least {LEAST} × {LEAST} pixels",
            got=f"{images.shape[2]} × {images.shape[3]}",
            remedy="The detector halves its input three times; it cannot judge smaller ones.",
        )
    if images.dtype == torch.uint8:
        return images
    low, high = torch.aminmax(images) if len(images) else (torch.zeros(()), torch.zeros(()))
    # Written so that NaN, which compares false with everything, is refused as well.
    if not (images.is_floating_point() and low >= 0 and high <= 1):
        raise DataError(
            "float images in [0, 1] or uint8 images",
            got=f"{images.dtype} values in [{float(low):.4g}, {float(high):.4g}]",
            remedy="Undo any normalization and scale to [0, 1].",
        )
    return images.detach().mul(255).round_().to(torch.uint8)
