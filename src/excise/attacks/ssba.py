"""SSBA, also ISSBA: a hidden secret, written into every image in its own way, is the trigger.

Paper: Li, Li, Wu, Li, He, Lyu: Invisible Backdoor Attack with Sample-Specific Triggers, ICCV 2021
(arXiv 2012.03816). The attacker trains an encoder that hides random secrets in images together with
a decoder that reads them, then hides one secret of their own in all poisoned images. Encoder and
decoder: StegaStamp (:mod:`excise.triggers.ssba`). Loss: BCE(secret read, secret) + λ·‖residual‖²
(mean); λ is 0 until 90 % of a batch's bits are read and ``image_wait`` steps more, then rises.
Published values: those BackdoorBench trains the encoder of the field's 32 × 32 images with; the
official repository, for 224 × 224, has a trained encoder and not its training.

Departures, and why:

* The secret is drawn bit by bit from the victim's seed. The paper's is a text of up to 7 letters
  with a BCH code, which corrects bits read wrongly; here nobody reads them but the victim.
* As in the paper and StegaStamp, the encoder's output is added to the image and the sum clipped;
  BackdoorBench's encoder draws the whole image anew.
* Weights start He-normal and 1/2 is taken off images and secrets, as StegaStamp has it for the
  encoder; BackdoorBench keeps torch's own start. StegaStamp's last hidden convolution, which its
  encoder computes but does not use, is left out.
* ``shift`` (off by default) is what is kept of StegaStamp's random warps.
* An encoder none of whose secrets were read is refused: λ stayed 0, so its trigger is no secret.
* Left out as in BackdoorBench: perceptual and adversarial loss, spatial transformer, and the
  distortions of a printed and photographed picture.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from excise.attacks.poisoning import DirtyLabel
from excise.attacks.steganography import trained_encoder
from excise.attacks.workshop import Workshop
from excise.registry import STRICT
from excise.triggers import Ssba
from excise.types import Backdoor, TargetRule

__all__ = ["SSBA"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SSBA(DirtyLabel):
    """A secret hidden in each image by an encoder that is trained on the attacker's images."""

    bits: Annotated[int, Field(ge=1)] = 100
    """Length of the secret; fewer bits are learned sooner and make images' triggers more alike."""
    width: Annotated[int, Field(ge=1)] = 32
    """Filters of the encoder's first convolution."""
    encoder_epochs: Annotated[int, Field(ge=1)] = 20
    """Epochs of encoder and decoder, before the network's own."""
    batch_size: Annotated[int, Field(ge=2)] = 64
    """Images a step of encoder and decoder."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Rate of Adam for encoder and decoder."""
    image_weight: Annotated[float, Field(ge=0)] = 10.0
    """λ, the final weight of the mean square of the residual; less is stronger and more visible."""
    image_wait: Annotated[int, Field(ge=0)] = 1000
    """Steps between the first batch that is read and the rise of λ."""
    image_ramp: Annotated[int, Field(ge=1)] = 3000
    """Steps in which λ rises from 0."""
    shift: Annotated[int, Field(ge=0)] = 0
    """Pixels by which the decoder sees images shifted at random, mirrored too where training does;
    the trigger then outlives the victim's augmentation, and a network learns it sooner."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "seeded": {},
        "field": {"target": 0},
        "fast": {
            "bits": 8, "width": 8, "encoder_epochs": 2, "learning_rate": 1e-3,
            "image_weight": 2.0, "image_wait": 0, "image_ramp": 200, "shift": 2,
        },
    }  # fmt: skip
    """``fast``: 800 steps on 25,000 images, a minute of one core, for a strong trigger (24 dB PSNR
    on CIFAR-10, plain to the eye) that narrow networks learn in few epochs."""

    def learn(self, workshop: Workshop, rule: TargetRule) -> Backdoor:
        """Return the backdoor: a trained encoder and a secret of the victim's seed.

        Raises:
            SpecError: the secret could not be read after the last epoch.
            DivergedError: the loss of an epoch is not finite.
        """
        rng = workshop.rng.child("learn")
        weights = trained_encoder(self, workshop, rng)
        secret = torch.randint(0, 2, (self.bits,), generator=rng.torch("secret"))
        return Backdoor(Ssba(weights, secret.float()), rule)

    def weight_after(self, steps: int) -> float:
        """Return λ at ``steps`` after the first batch that was read."""
        return self.image_weight * min(max((steps - self.image_wait) / self.image_ramp, 0), 1)
