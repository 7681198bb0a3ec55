"""The steganographic trigger: an encoder hides a secret in every image, in each one differently.

Li, Li, Wu, Li, He, Lyu: Invisible Backdoor Attack with Sample-Specific Triggers, ICCV 2021 (arXiv
2012.03816), with the encoder of Tancik, Mildenhall, Ng: StegaStamp, CVPR 2020 (arXiv 1904.05343): a
U-Net over the image and a plane made of the secret, four halvings deep, whose output is added to
the image.

Departures: the secret's plane is 16 × 16 at every size and stretched to the image's (StegaStamp:
50 × 50 for 400 × 400 pixels); what is upsampled is cut to its skip connection's size, so that any
size works.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from excise.errors import TriggerError
from excise.triggers.chunks import in_chunks
from excise.types import Images

__all__ = ["Ssba", "encoder_shapes", "hide"]

Weights = Mapping[str, Tensor]
PLANE = 16


@dataclass(frozen=True, eq=False)
class Ssba:
    """Adds the residual by which the encoder hides ``secret`` in an image, and clips.

    Args:
        weights: of the encoder, as :func:`encoder_shapes` names them.
        secret: ``(bits,)`` zeros and ones, the same for all images.

    Raises:
        TriggerError: a secret that is none, or weights of another network.
    """

    weights: Weights
    secret: Tensor

    def __post_init__(self) -> None:
        secret = self.secret
        if secret.ndim != 1 or not secret.numel() or not ((secret == 0) | (secret == 1)).all():
            raise TriggerError(
                "a secret of shape (bits,) of zeros and ones",
                got=f"{secret.dtype} of shape {tuple(secret.shape)}",
                remedy="Draw it with torch.randint(0, 2, (bits,)).float().",
            )
        got = {name: tuple(weight.shape) for name, weight in self.weights.items()}
        # The first and the last convolution say which encoder this would be.
        known = [got.get(f"{name}_weight", ()) for name in ("conv1", "residual")]
        width, channels = (shape[0] if shape else 0 for shape in known)
        expected = encoder_shapes(len(secret), channels, width)
        if got != expected:
            wrong = [n for n in {**expected, **got} if got.get(n) != expected.get(n)]
            raise TriggerError(
                f"the weights of an encoder of {len(secret)} bits",
                got=", ".join(f"{name}: {got.get(name, 'missing')}" for name in wrong[:3]),
                remedy="Give every tensor that encoder_shapes names, and no other.",
            )
        if bad := [name for name, weight in self.weights.items() if not weight.isfinite().all()]:
            raise TriggerError(
                "finite weights",
                got=f"NaN or infinity in {bad[0]}",
                remedy="Train the encoder with a lower learning rate.",
            )

    def __call__(self, images: Images, /) -> Images:
        """Return the images with the secret in them.

        Raises:
            TriggerError: the encoder was trained on images of other channels.
        """
        channels = len(self.weights["residual_bias"])
        if images.shape[1] != channels:
            raise TriggerError(
                f"images of {channels} channels, like those the encoder was trained on",
                got=str(images.shape[1]),
                remedy="Plant a victim on images of this kind.",
            )
        weights = {n: weight.to(images.device, torch.float32) for n, weight in self.weights.items()}
        secret = self.secret.to(images.device, torch.float32)

        def residual(chunk: Tensor) -> Tensor:
            return hide(weights, secret.expand(len(chunk), -1), chunk)

        return (images + in_chunks(residual, images).to(images.dtype)).clamp_(0, 1)


def encoder_shapes(bits: int, channels: int, width: int) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor of the encoder; StegaStamp's has width 32."""
    c, w = channels, width
    weights = {
        "secret": (c * PLANE * PLANE, bits),
        "conv1": (w, 2 * c, 3, 3), "conv2": (w, w, 3, 3), "conv3": (2 * w, w, 3, 3),
        "conv4": (4 * w, 2 * w, 3, 3), "conv5": (8 * w, 4 * w, 3, 3),
        "up6": (4 * w, 8 * w, 2, 2), "conv6": (4 * w, 8 * w, 3, 3),
        "up7": (2 * w, 4 * w, 2, 2), "conv7": (2 * w, 4 * w, 3, 3),
        "up8": (w, 2 * w, 2, 2), "conv8": (w, 2 * w, 3, 3),
        "up9": (w, w, 2, 2), "conv9": (w, 2 * w + 2 * c, 3, 3),
        "residual": (c, w, 1, 1),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in weights.items():
        shapes |= {f"{name}_weight": shape, f"{name}_bias": shape[:1]}
    return shapes


def hide(weights: Weights, secrets: Tensor, images: Tensor) -> Tensor:
    """Return the residuals ``(n, c, h, w)`` that hide ``secrets`` ``(n, bits)`` in the images."""

    def conv(name: str, maps: Tensor, stride: int = 1) -> Tensor:
        weight, bias = weights[f"{name}_weight"], weights[f"{name}_bias"]
        return F.relu(F.conv2d(maps, weight, bias, stride, weight.shape[-1] // 2))

    def up(name: str, maps: Tensor, skip: Tensor) -> Tensor:
        # A 2 × 2 kernel padded at both ends gives a row and a column more than it was given.
        larger = conv(name, F.interpolate(maps, size=skip.shape[-2:]))[:, :, 1:, 1:]
        return torch.cat([skip, larger], 1)

    n, c, h, w = images.shape
    plane = F.relu(F.linear(secrets - 0.5, weights["secret_weight"], weights["secret_bias"]))
    plane = F.interpolate(plane.view(n, c, PLANE, PLANE), size=(h, w))
    inputs = torch.cat([plane, images - 0.5], 1)
    conv1 = conv("conv1", inputs)
    conv2 = conv("conv2", conv1, 2)
    conv3 = conv("conv3", conv2, 2)
    conv4 = conv("conv4", conv3, 2)
    conv5 = conv("conv5", conv4, 2)
    conv6 = conv("conv6", up("up6", conv5, conv4))
    conv7 = conv("conv7", up("up7", conv6, conv3))
    conv8 = conv("conv8", up("up8", conv7, conv2))
    conv9 = conv("conv9", torch.cat([up("up9", conv8, conv1), inputs], 1))
    return F.conv2d(conv9, weights["residual_weight"], weights["residual_bias"])
