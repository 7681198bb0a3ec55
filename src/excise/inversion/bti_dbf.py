"""BTI-DBF: a trigger is what changes the features a network does not need for clean images.

Paper: Xu, Huang, Li, Qin, Ren: Towards Reliable and Efficient Backdoor Trigger Inversion via
Decoupling Benign Features, ICLR 2024. F is the last feature map, h what follows it, G a generator,
M a mask of one number in (0, 1) for each place of F.

Pretraining  min_G CE(f(G(x)), p(x)) + MSE(F(x), F(G(x))) + 100 · MSE(x, G(x))
Decoupling   min_M CE(h(M⊙F), y) − CE(h((1−M)⊙F), y)
Inversion    max_G MSE((1−M)⊙F(x), (1−M)⊙F(G(x))) − .01 · MSE(M⊙F(x), M⊙F(G(x))); where an MSE of
             pixels or of benign features is out of bounds, min_G MSE(x, G(x)) instead
Target       the class that f gives most images G(x + noise)

Departures from the authors' code, and why:

1. G(x) is x plus what the U-Net draws, small at first. The authors' U-Net draws the whole image,
   which its instance norms cannot: they take from every map how bright and how strong it is.
2. Pixels and noise are measured on [0, 1] images, whatever a network's normalization is. The
   numbers are the published ones times CIFAR-10's std: .3 would allow any image there.
3. The mask is learned with the network in eval mode: in train mode its masks' batches would move
   the running statistics that every later stage uses.
4. A U-Net halves an image only while two pixels are left; other sides are continued at the edge.
5. Pretraining always weighs pixels by 100; the authors weigh them by .01 once they are close. Its
   cross-entropy is that of the logits of G(x) with f's probabilities of x; theirs is given the
   probabilities of both, and the two the other way round.
6. Images with noise stay in [0, 1].
7. F is found by running the network (:mod:`excise.models.taps`). A transformer is refused: its
   tokens have no place before which a map is pooled, and the mask is one of places.

Measured: docs/defenses.md.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from pydantic.dataclasses import dataclass
from torch import nn

from excise.inversion.decoupling import Decoupling, Drawn, Search
from excise.models import dtype_of, working_copy
from excise.registry import STRICT
from excise.seeding import Rng
from excise.types import (
    DefenderData,
    Evidence,
    LabelledImages,
    OnRound,
    RecoveredTrigger,
    ignore_round,
)

__all__ = ["BTIDBF"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BTIDBF(Decoupling):
    """BTI-DBF (Xu et al. 2024): the trigger of one generator, for whichever class it leads to."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {},
        # A U-Net of a sixteenth of the work, in smaller batches. It begins so near the identity
        # that pretraining brings it to where the inversion has next to no gradient.
        "fast": {
            "width": 8, "batch_size": 16, "pretrain_epochs": 0, "mask_epochs": 20,
            "generator_epochs": 30,
        },
    }  # fmt: skip

    def fit(
        self, model: nn.Module, data: DefenderData, rng: Rng, *, on_round: OnRound = ignore_round
    ) -> list[RecoveredTrigger]:
        """Return the one trigger found, with the class that most images get from it.

        Raises:
            ModelError: the network has no feature map before its pooling.
        """
        network = working_copy(model).requires_grad_(False)
        search = Search(self, network, data.train, rng, on_round)
        search.pretrain()
        mask, _ = search.decouple(1)
        search.invert(mask, 1, None)
        target = search.target()
        trigger = Drawn(copy.deepcopy(search.generator).eval().requires_grad_(False))
        held = data.validation if data.validation is not None else data.train
        clean = data.train.floats()
        size = float((trigger(clean) - clean).abs().flatten(1).sum(1).mean())
        rate = _flip_rate(network, trigger, held, target) if data.validation is not None else None
        return [RecoveredTrigger(trigger, target, Evidence(flip_rate=rate, size=size))]


@torch.no_grad()
def _flip_rate(
    network: nn.Module, trigger: Drawn, held: LabelledImages, target: int
) -> float | None:
    """Return the share of images of other classes that the trigger sends to ``target``."""
    others = held.subset(held.labels != target) if bool((held.labels != target).any()) else None
    if others is None:
        return None
    answers = network(trigger(others.floats()).to(dtype_of(network))).argmax(1)
    return float((answers == target).float().mean())
