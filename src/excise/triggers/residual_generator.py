"""The residual generator: a network draws, for every image, the faint noise that is added to it.

Doan, Lao, Zhao, Li: LIRA: Learnable, Imperceptible and Robust Backdoor Attacks, ICCV 2021:
T(x) = clip(x + ε·G(x)) with G(x) in [−1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from excise.errors import TriggerError
from excise.triggers.chunks import in_chunks
from excise.triggers.networks import Autoencoder, Weights, rebuilt
from excise.types import Images

__all__ = ["ResidualGenerator"]


@dataclass(frozen=True, eq=False)
class ResidualGenerator:
    """Adds ``epsilon`` times what a network draws for an image, and clips.

    Args:
        weights: of a :class:`excise.triggers.networks.Autoencoder`.
        epsilon: largest change of a pixel, in (0, 1].

    Raises:
        TriggerError: weights of another network, or a size out of range.
    """

    weights: Weights
    epsilon: float

    def __post_init__(self) -> None:
        if not (isinstance(self.epsilon, int | float) and 0 < self.epsilon <= 1):
            raise TriggerError(
                "epsilon in (0, 1]", got=repr(self.epsilon), remedy="The published one is 0.01."
            )
        object.__setattr__(self, "_network", rebuilt(Autoencoder, self.weights))

    def __call__(self, images: Images, /) -> Images:
        """Return the images with their noise.

        Raises:
            TriggerError: the network was trained on images of other channels.
        """
        network: Autoencoder = self._network.to(images.device)  # type: ignore[attr-defined]
        network.check(images)

        def triggered(chunk: Tensor) -> Tensor:
            residual: Tensor = network(chunk)
            return (chunk + self.epsilon * residual).clamp_(0, 1)

        return in_chunks(triggered, images).to(images.dtype)
