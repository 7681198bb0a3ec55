"""What batch norms remember of triggered images, and the trigger that explains it best.

Kin: Zheng, Tang, Li, Liu: Pre-activation Distributions Expose Backdoor Neurons, NeurIPS 2022 (BNP),
whose divergence this is; Yin et al.: Dreaming to Distill: Data-free Knowledge Transfer via
DeepInversion, CVPR 2020 (arXiv 1912.08795), who recover training images by such statistics.

A network trained on a share p of triggered images remembers the statistics of the mixture. So does
not a pattern that merely fools it: an adversarial perturbation leads to a class too, and nothing
that looks like it was ever trained on.

Left over     D(T, p) = Σ KL(N(m, v) ‖ N(μ, v_run)) over all channels of all batch norms; m, v: mean
              and variance, over images and pixels, of clean images with a share p under T
Explained     D(·, 0) − min over p of D(T, p), at most by 0 where T explains nothing
Search        min over θ, p of D(T_θ, p) + λ‖θ‖, and where a class t is named, of that
              + mean max(CE(f(T_θ(x)), t) − c, 0)

No paper describes the search: it is ours. Where statistics were measured anew after training, or
there is no batch norm, there is nothing to explain. Where clean images hardly fit what is
remembered, a pattern that explains it explains noise, and it is left alone: so with a ResNet-18
made for 224 pixels on images of 32, whose last maps are single pixels. The share found is near the
true one: 0.1 on LF, WaNet and BadNets planted at 0.1 (docs/methods/soft-prune.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from excise.inversion.classwise import ClasswiseSearch
from excise.models import device_of, dtype_of, remembering, working_copy
from excise.models.statistics import inputs_seen
from excise.scores import divergence_of
from excise.seeding import Rng
from excise.training import descend
from excise.types import Images, OnRound, Trigger, ignore_round

__all__ = ["SHARES", "Memory", "explaining"]

#: Shares of triggered images among which the best is taken when a trigger is judged.
SHARES = (0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.1, 0.15, 0.2, 0.3)
#: Where p begins, how fast its logarithm moves, and how far it may go.
_FIRST, _RATE, _MOST = 0.05, 0.05, 0.5
#: What clean images alone may leave over, the mean over channels. The zoo's networks have .00 to
#: .13; the ResNet-18 above, a BadNets victim, .4, of which its true trigger explains a seventh.
_FITTING = 0.25
#: An image that sure of the class pulls no longer; c is the −log of it.
_CONFIDENCE = 0.9
#: Images a round, and at a time when nothing is searched for.
_BATCH, _CHUNK = 24, 250

#: By batch norm: mean of a channel's values and of their squares.
Moments = Mapping[str, tuple[Float[Tensor, " f"], Float[Tensor, " f"]]]


class Memory:
    """The running statistics of a network beside what clean images give.

    Args:
        model: the network; comes back as it was.
        images: clean ones, ``(n, c, h, w)``.
    """

    def __init__(self, model: nn.Module, images: Images) -> None:
        self.net = working_copy(model).eval().requires_grad_(False)
        self.images = images.to(device_of(self.net), dtype_of(self.net))
        self._norms = remembering(self.net)
        self._clean = self._moments_of(self.images)
        #: D(·, 0): what clean images alone leave over.
        self.unexplained = float(self.left_over(self._clean, 0.0))

    @property
    def empty(self) -> bool:
        """Whether there is nothing in it to explain."""
        return self.silence is not None

    @property
    def silence(self) -> str | None:
        """Why there is nothing in it to explain; None if there is."""
        if not self._clean:
            return "No batch norm remembers what the network was trained on."
        each = self.unexplained / sum(len(first) for first, _ in self._clean.values())
        if each <= _FITTING or math.isnan(each):  # what is no number ends the search by itself
            return None
        return (
            f"What batch norms remember is not used: clean images hardly fit it ({each:.2f} of "
            f"divergence a channel, more than {_FITTING}), so that anything seems to explain it."
        )

    def explained(self, trigger: Trigger) -> tuple[float, float]:
        """Return how much of the divergence a trigger explains, and the share that explains most.

        Args:
            trigger: any callable images → images.
        """
        under = self._moments_of(torch.cat([trigger(x) for x in self.images.split(_CHUNK)]))
        left = [float(self.left_over(under, share)) for share in SHARES]
        best = min(range(len(SHARES)), key=left.__getitem__)
        return self.unexplained - left[best], SHARES[best]

    def explained_share(self, trigger: Trigger) -> float:
        """Return how much of the divergence a trigger explains, as a share of it."""
        return self.explained(trigger)[0] / max(self.unexplained, 1e-12)

    def left_over(self, under: Moments, share: float | Tensor) -> Tensor:
        """Return D: what a mixture of clean images and a share of triggered ones leaves over.

        Args:
            under: moments of triggered images.
            share: p.
        """
        total = self.images.new_zeros(())
        for name, (first, second) in under.items():
            mean, square = self._clean[name]
            m = mean + share * (first - mean)
            v = (square + share * (second - square) - m.square()).clamp_min(0)
            total = total + divergence_of(self._norms[name], m, v).sum()
        return total

    @contextmanager
    def watched(self) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
        """Yield the moments of the latest forward pass inside the block, with their gradients."""
        seen: dict[str, tuple[Tensor, Tensor]] = {}

        def see(name: str, values: Tensor) -> None:
            seen[name] = values.mean(1), values.square().mean(1)

        with inputs_seen(self._norms, see):
            yield seen

    def _moments_of(self, images: Images) -> Moments:
        sums: dict[str, tuple[Tensor, Tensor]] = {}
        with torch.no_grad(), self.watched() as seen:
            for batch in images.split(_CHUNK):
                self.net(batch)
                part = len(batch) / len(images)
                for name, (first, second) in seen.items():
                    one, two = sums.get(name, (0.0, 0.0))
                    sums[name] = one + part * first, two + part * second
        return sums


def explaining(
    memory: Memory,
    target: int | None,
    kind: ClasswiseSearch,
    weight: float,
    rng: Rng,
    *,
    rounds: int,
    jitter: float = 0.0,
    on_round: OnRound = ignore_round,
) -> Trigger:
    """Return the trigger that leaves least over.

    Args:
        memory: of the network, and the images to change.
        target: the class it is to lead to; None: wherever it leads.
        kind: what a trigger is made of; its ``learning_rate`` is Adam's first, which falls to 0
            along half a cosine.
        weight: λ.
        rng: draws the images of each round.
        rounds: steps of Adam.
        jitter: standard deviation of the numbers it starts from, beside the kind's own.
        on_round: called after every round.
    """
    images = memory.images
    generator = rng.torch("rounds", images.device)
    numbers = kind.start(images, 1)
    numbers = numbers + jitter * torch.randn(
        numbers.shape, generator=generator, device=images.device, dtype=images.dtype
    )
    numbers.requires_grad_()
    share = images.new_tensor(math.log(_FIRST)).requires_grad_()
    optimizer = torch.optim.Adam([
        {"params": [numbers], "lr": kind.learning_rate}, {"params": [share], "lr": _RATE},
    ])  # fmt: skip
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, rounds)
    with memory.watched() as seen, torch.enable_grad():
        for number in range(1, rounds + 1):
            order = torch.randperm(len(images), generator=generator, device=images.device)
            x = kind.changed(images[order[:_BATCH]], numbers)
            logits = memory.net(x.contiguous(memory_format=torch.channels_last))
            left = memory.left_over(seen, share.exp().clamp(max=_MOST))
            loss = left + weight * kind.norms(numbers).sum()
            if target is not None:
                goal = torch.full((len(x),), target, device=x.device)
                each = F.cross_entropy(logits, goal, reduction="none") + math.log(_CONFIDENCE)
                loss = loss + each.clamp_min(0).mean()
            if not loss.isfinite():  # the numbers stay as they were
                break
            descend(optimizer, loss)
            fall.step()
            on_round({
                "stage": "explain", "round": number, "rounds": rounds, "left": left.item(),
            })  # fmt: skip
    return kind.trigger(numbers.detach()[0])
