"""The blend trigger: (1 − α)·x + α·t over the whole image.

Chen, Liu, Li, Lu, Song: Targeted Backdoor Attacks (arXiv 1712.05526), "blended injection".
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from excise.errors import TriggerError
from excise.triggers.checking import check_picture
from excise.types import Images


@dataclass(frozen=True, eq=False)
class Blend:
    """Mixes a picture into every image.

    Args:
        picture: ``(c, h, w)`` in [0, 1], of the images' size.
        alpha: share of the picture, in (0, 1].

    Raises:
        TriggerError: a picture that is none, or a share out of range.
    """

    picture: Float[Tensor, "c h w"]
    alpha: float

    def __post_init__(self) -> None:
        check_picture("picture", self.picture)
        if not (isinstance(self.alpha, int | float) and 0 < self.alpha <= 1):
            raise TriggerError(
                "alpha in (0, 1]", got=repr(self.alpha), remedy="The field's usual share is 0.2."
            )

    def __call__(self, images: Images, /) -> Images:
        """Return the images with the picture mixed in.

        Raises:
            TriggerError: the picture has another size than the images.
        """
        if self.picture.shape != images.shape[1:]:
            raise TriggerError(
                f"a picture of the images' shape {tuple(images.shape[1:])}",
                got=str(tuple(self.picture.shape)),
                remedy="Make the trigger for images of this size and color.",
            )
        return images.lerp(self.picture.to(images).expand_as(images), self.alpha)
