"""Sample-specific: a trigger that searches, image by image, for the pixels that lead to a class.

Kin: Madry et al., ICLR 2018 (arXiv 1706.06083), whose steps it takes; Dunnett et al.: IMS, NeurIPS
2025 (arXiv 2509.15497), which searches for pixels per sample too, though towards no class.

Trigger      x' = x + δ(x),  ‖δ‖∞ ≤ ε: ``steps`` steps α · sign(−∇CE(f(x + δ), t)), x' in [0, 1]
Class        for some images and every class t the same in a larger ball ε₀; then the margin
             f_t(x') − max over k ≠ t of f_k(x'). The class of the largest mean margin, over images
             the network does not give to it anyway, is the one.

Within a few hundredths any network can be led anywhere: on two development victims (BadNets,
Blended) a small ball led to the backdoor's class no sooner than to others. In a ball of .08 its
margin was the largest or the second. No paper describes this method: it is ours.

The trigger holds its own copy of the network. The same image always gets the same pixels; which
images it is given together changes nothing but rounding.

Measured: docs/defenses.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from excise.inversion.anomaly import anomaly_indices
from excise.inversion.chunks import at_once
from excise.inversion.measure import evidence_of
from excise.models import device_of, dtype_of, working_copy
from excise.registry import STRICT
from excise.seeding import Rng
from excise.training.perturb import pgd
from excise.types import DefenderData, Images, Labels, OnRound, RecoveredTrigger, ignore_round

__all__ = ["SampleSpecific", "Searching"]


@plain_dataclass(frozen=True, eq=False)
class Searching:
    """Moves every image towards a class, inside an ℓ∞ ball, by the network it was fitted on.

    Args:
        network: its own: frozen, in eval mode.
        target: the class.
        epsilon: the largest change of a value.
        steps: how many.
    """

    network: nn.Module
    target: int
    epsilon: float
    steps: int

    def __call__(self, images: Images, /) -> Images:
        """Return the images moved, in their type, where they lie."""
        # Under inference mode, as whoever only evaluates has it, there would be no gradient.
        with torch.inference_mode(False):
            moved = [self._moved(some.clone()) for some in images.detach().split(256)]
        return torch.cat(moved) if moved else images.clone()

    def _moved(self, images: Images) -> Images:
        x = images.to(device_of(self.network), dtype_of(self.network))
        labels = torch.full((len(x),), self.target, device=x.device)
        moved = towards(self.network, x, labels, self.epsilon, self.steps)
        return moved.to(images).clamp_(0, 1)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SampleSpecific:
    """For each image its own small perturbation towards the class easiest to be sure of."""

    epsilon: Annotated[float, Field(gt=0, le=1)] = 0.05
    """ε: the largest change of a value, in the units of [0, 1] images."""
    steps: Annotated[int, Field(ge=1)] = 10
    """Steps of one search; each is 2.5 ε / ``steps`` long, as Madry et al. take them."""
    probe_epsilon: Annotated[float, Field(gt=0, le=1)] = 0.08
    """ε₀: the larger ball in which classes are compared."""
    probe_images: Annotated[int, Field(ge=1)] = 50
    """Images at most by which classes are compared, drawn at random."""
    keep: Annotated[int, Field(ge=1)] = 1
    """Classes returned, the largest margin first."""
    chunk: Annotated[int, Field(ge=1)] = 512
    """Pairs of a class and an image of 32 × 32 pixels in memory at once, as many pixels of larger
    ones; changes nothing but rounding."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {},
        "fast": {"probe_images": 15},
    }

    def fit(
        self, model: nn.Module, data: DefenderData, rng: Rng, *, on_round: OnRound = ignore_round
    ) -> list[RecoveredTrigger]:
        """Return the triggers of the classes of the largest margins.

        The training images say which; the validation images say how often each trigger works.
        """
        net = working_copy(model).requires_grad_(False)
        images = data.train.floats().to(device_of(net), dtype_of(net))
        generator = rng.torch("probe", images.device)
        order = torch.randperm(len(images), generator=generator, device=images.device)
        means = self.margins(net, images[order[: self.probe_images]], data.num_classes, on_round)
        # A large margin stands out as a small size does elsewhere.
        indices = anomaly_indices([None if mean is None else -mean for mean in means])
        best = sorted((-mean, t) for t, mean in enumerate(means) if mean is not None)
        found = {t: Searching(net, t, self.epsilon, self.steps) for _, t in best[: self.keep]}
        evidence = {t: evidence_of(net, found[t], t, data, indices[t]) for t in found}
        return [RecoveredTrigger(found[t], t, evidence[t]) for t in found]

    def margins(
        self, net: nn.Module, images: Images, classes: int, on_round: OnRound = ignore_round
    ) -> list[float | None]:
        """Return each class's mean margin inside the larger ball.

        None for a class all the images are given to anyway, and where it is not finite.

        Args:
            net: frozen, in eval mode.
            images: on its device, of its type.
            classes: how many the network tells apart.
            on_round: called after every chunk of pairs.
        """
        size = at_once(self.chunk, images)
        with torch.no_grad():
            own = torch.cat([net(some).argmax(1) for some in images.split(size)])
        pairs = torch.nonzero(own[:, None] != torch.arange(classes, device=images.device))
        margins = []
        for number, (i, t) in enumerate((some.T for some in pairs.split(size)), 1):
            moved = towards(net, images[i], t, self.probe_epsilon, self.steps)
            with torch.no_grad():
                logits = net(moved).double()
            wanted = logits.gather(1, t[:, None]).squeeze(1)
            margins.append(wanted - logits.scatter(1, t[:, None], -torch.inf).amax(1))
            on_round({"stage": "probe", "round": number, "pairs": len(t)})
        sums, counts = images.new_zeros(2, classes, dtype=torch.float64)
        targets = pairs[:, 1]
        sums.index_add_(0, targets, torch.cat(margins))
        counts.index_add_(0, targets, torch.ones_like(targets, dtype=torch.float64))
        means = (sums / counts).tolist()
        return [mean if math.isfinite(mean) else None for mean in means]


def towards(net: nn.Module, images: Images, targets: Labels, epsilon: float, steps: int) -> Images:
    """Return each image moved towards its target, inside its ball: steps of 2.5 ε / ``steps``."""
    size = 2.5 * epsilon / steps
    return pgd(net, images, targets, epsilon=epsilon, step_size=size, steps=steps, targeted=True)
