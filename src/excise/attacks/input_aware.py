"""Input-aware dynamic: a pattern made for each image, which does nothing on any other.

Paper: Nguyen, Tran: Input-Aware Dynamic Backdoor Attack, NeurIPS 2020 (arXiv 2010.08138). A mask
network M is trained first, on λ·mean ReLU(M(x) − d) + ‖x − x'‖ / ‖M(x) − M(x')‖; then network and
generator G together, on cross-entropy and ‖x − x'‖ / ‖G(x) − G(x')‖. ‖·‖ is the root mean square.
The trigger is x + (G(x) − x)·M(x). Of every batch some images get their own trigger and the
attacker's label, others (cross triggers) another image's trigger and keep their label.

Departures from the published code (VinAIResearch/input-aware-backdoor-attack-release), and why:

* The generator's gradients are zeroed after every step; the published loop never does, so that
  each step follows the sum of all gradients so far. ``accumulate`` does as it does.
* Images go to G and M in [0, 1]; the published ones are standardized on CIFAR-10, not on GTSRB.
  Distances of standardized images are 4 times as large: ``mask_diversity`` is 4 (GTSRB's: 1).
* x' is the next image of the batch instead of one of a second, independent order; G runs once over
  both halves, so that its batch norm sees both. M learns without augmentation.
* Shares are exact per epoch (the published int(0.1 · 128) is 9.4 %); triggered images are rounded
  to 8 bits while gradients pass; milestones of 600 epochs become fractions of the recipe's.
* The network's recipe is the victim's, as for every attack. Published: 600 epochs, rotations.

It takes on CIFAR-10 with cross triggers: ASR 88.2 % after 40 epochs (width 16). After 20 it was
83.0 %, and 82.2 % on the training images: too few epochs, not too few images (docs/zoo.md).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from excise.attacks.patterns import PatternLearner, trained_mask
from excise.attacks.poisoning import DirtyLabel
from excise.attacks.workshop import Workshop
from excise.errors import SpecError
from excise.registry import STRICT
from excise.training import Companion
from excise.triggers import InputAwarePattern
from excise.triggers.networks import Pyramid, weights_of
from excise.types import Backdoor, TargetRule

__all__ = ["InputAware"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class InputAware(DirtyLabel):
    """A generated pattern on a few pixels of each image, of no effect on any other image."""

    cross_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Images with another image's trigger and their own label, as a fraction of all."""
    mask_epochs: Annotated[int, Field(ge=1)] = 25
    """Epochs of the mask network, before the network's own."""
    mask_density: Annotated[float, Field(ge=0, lt=1)] = 0.032
    """Mask value, in [0, 1], up to which a pixel costs nothing."""
    mask_sparsity: Annotated[float, Field(ge=0)] = 100.0
    """Weight of the mask's price."""
    mask_diversity: Annotated[float, Field(ge=0)] = 4.0
    """Weight of different images' masks being different; published as 1, on standardized images."""
    diversity: Annotated[float, Field(ge=0)] = 1.0
    """Weight of different images' patterns being different."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.01
    """Rate of Adam (0.5, 0.9) for generator and mask network; a tenth after each milestone."""
    width: Annotated[int, Field(ge=1)] = 32
    """Filters of the first convolution of both networks; the published ones for MNIST have 16."""
    accumulate: bool = False
    """Never zero the generator's gradients, as the published code does."""

    def learn(self, workshop: Workshop, rule: TargetRule) -> Backdoor:
        """Return the backdoor with a trained mask network and a generator yet to be trained.

        Raises:
            SpecError: own and cross triggers are together more than all images.
        """
        if self.poison_ratio + self.cross_ratio > 1 + 1e-9:
            raise SpecError(
                "own and cross triggers that are together at most all images",
                got=f"{self.poison_ratio:g} and {self.cross_ratio:g} of them",
                remedy="Choose a smaller poison_ratio or cross_ratio.",
            )
        mask = trained_mask(self, workshop)
        channels = workshop.data.shape[0]
        with workshop.rng.child("learn").scope("generator"):
            generator = weights_of(Pyramid(channels, channels, self.width))
        return Backdoor(InputAwarePattern(generator, mask), rule)

    def companion(self, workshop: Workshop, backdoor: Backdoor) -> Companion:
        """Return what trains the generator beside the network."""
        return PatternLearner(self, workshop, backdoor)

    def planted(
        self, workshop: Workshop, backdoor: Backdoor, companion: Companion | None
    ) -> Backdoor:
        """Return the backdoor with the generator that was trained beside the network."""
        assert isinstance(companion, PatternLearner)
        workshop.on_round({"stage": "cross triggers", "accuracy": companion.cross_accuracy()})
        return Backdoor(companion.trigger(), backdoor.rule)
