"""Which classes of a search go on: the weight of each one's norm, and the better half of them.

Paper: Jamieson, Talwalkar: Non-stochastic Best Arm Identification and Hyperparameter Optimization,
AISTATS 2016 (arXiv 1502.07943), successive halving.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from excise.inversion.penalty import Penalty

__all__ = ["Halving"]


class Halving:
    """The classes of a search, from round to round.

    Args:
        penalties: one a class.
        success_rate: a class succeeds in a round from this share of images on, averaged over the
            last rounds: a single round has few images, and of many rounds one is always lucky.
        memory: how much of that average stays when the next round's share joins it.
        left: the classes that take part; None: all.
    """

    def __init__(
        self,
        penalties: Sequence[Penalty],
        *,
        success_rate: float,
        memory: float,
        left: Sequence[int] | None = None,
    ) -> None:
        self.penalties = tuple(penalties)
        self.left = list(range(len(self.penalties)) if left is None else left)
        self.shares = [0.0] * len(self.penalties)
        self._success_rate, self._memory = success_rate, memory

    def searching(self) -> list[int]:
        """Return the classes that were neither dropped nor have stopped by themselves."""
        return [t for t in self.left if not self.penalties[t].finished]

    def found(self) -> list[int]:
        """Return the classes that were not dropped and have a trigger."""
        return [t for t in self.left if self.penalties[t].best is not None]

    def weights(self) -> list[float]:
        """Return λ of every class."""
        return [penalty.weight for penalty in self.penalties]

    def update(self, t: int, share: float, norm: float, number: int) -> bool:
        """Take what class ``t`` did in a round; return whether its trigger is the best so far.

        Args:
            t: the class.
            share: of the round's images that reached it.
            norm: of the trigger that was on them.
            number: of the round, from 1; the first rounds are averaged with equal weights.
        """
        stays = min(self._memory, 1 - 1 / number)
        self.shares[t] = stays * self.shares[t] + (1 - stays) * share
        return self.penalties[t].update(self.shares[t] >= self._success_rate - 1e-9, norm)

    def drop(self, keep: int) -> None:
        """Let the worse half go, as long as more than ``keep`` are left.

        Classes with the smallest triggers stay, then those that came nearest to one.
        """

        def rank(t: int) -> tuple[float, float]:
            best = self.penalties[t].best
            return (math.inf if best is None else best, -self.shares[t])

        count = max(keep, (len(self.left) + 1) // 2)
        self.left = sorted(sorted(self.left, key=rank)[:count])
