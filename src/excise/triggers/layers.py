"""The layers trigger: pictures laid over the image one after the other, each with its own opacity.

Qi, Xie, Li, Mahloujifar, Mittal: Revisiting the Assumption of Latent Separability for Backdoor
Defenses, ICLR 2023, where several patches are put on an image together (Adap-Patch).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from excise.errors import TriggerError
from excise.triggers.checking import check_picture
from excise.types import Images


@dataclass(frozen=True, eq=False)
class Layers:
    """x ← x + opacity · (picture − x) for each layer in turn; a later one lies on top.

    Args:
        pictures: ``(k, c, h, w)`` in [0, 1], of the images' size.
        opacities: ``(k, h, w)`` in [0, 1]: 0 leaves a pixel as it is, 1 replaces it.

    Raises:
        TriggerError: pictures or opacities that are none, or layers that show nowhere.
    """

    pictures: Float[Tensor, "k c h w"]
    opacities: Float[Tensor, "k h w"]

    def __post_init__(self) -> None:
        if self.pictures.ndim != 4 or len(self.pictures) == 0:
            raise TriggerError(
                "pictures of shape (k, c, h, w), k at least 1",
                got=str(tuple(self.pictures.shape)),
                remedy="Stack one picture per layer.",
            )
        for picture in self.pictures:
            check_picture("picture", picture)
        k, _, h, w = self.pictures.shape
        fits = self.opacities.shape == (k, h, w) and self.opacities.is_floating_point()
        got = f"{self.opacities.dtype} of shape {tuple(self.opacities.shape)}"
        if fits:
            low, high = (float(value) for value in torch.aminmax(self.opacities))
            # Written so that NaN, which compares false with everything, is refused as well.
            fits = low >= 0 and 0 < high <= 1
            got = f"values in [{low:.4g}, {high:.4g}]"
        if not fits:
            raise TriggerError(
                f"opacities of shape {(k, h, w)}, floats in [0, 1], not all 0",
                got=got,
                remedy="Give every pixel of every layer its share of the picture.",
            )

    def __call__(self, images: Images, /) -> Images:
        """Return the images with every layer on them.

        Raises:
            TriggerError: the layers have another size than the images.
        """
        if self.pictures.shape[1:] != images.shape[1:]:
            raise TriggerError(
                f"layers of the images' shape {tuple(images.shape[1:])}",
                got=str(tuple(self.pictures.shape[1:])),
                remedy="Make the trigger for images of this size and color.",
            )
        for picture, opacity in zip(self.pictures, self.opacities, strict=True):
            picture, opacity = picture.to(images), opacity.to(images)
            images = images.lerp(picture.expand_as(images), opacity.expand_as(images))
        return images

    def single(self, index: int) -> Layers:
        """Return the trigger that has only the layer at ``index``."""
        return Layers(self.pictures[index : index + 1], self.opacities[index : index + 1])
