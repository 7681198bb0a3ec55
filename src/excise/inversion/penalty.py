"""Neural Cleanse's weight of one class's mask: when it grows, when it falls, when all is done."""

from __future__ import annotations

import math

__all__ = ["Penalty"]


class Penalty:
    """λ of one class, from round to round.

    Args:
        first: λ once it is no longer 0.
        start_free: begin with λ = 0 until ``patience`` rounds in a row succeed.
        factor: λ is multiplied by it, or divided by its power of 1.5.
        patience: rounds of success, or without, before that.
        stop_patience: rounds without a smaller mask before the class is done.
        stop_gain: by what share a mask has to be smaller to count there.
        give_up: the round by which some round must have succeeded.
    """

    def __init__(
        self,
        first: float,
        *,
        start_free: bool,
        factor: float,
        patience: int,
        stop_patience: int,
        stop_gain: float,
        give_up: int,
    ) -> None:
        self.weight = 0.0 if start_free else first
        self.best: float | None = None
        self.finished = False
        self._first, self._factor, self._patience = first, factor, patience
        self._stop_patience, self._stop_gain, self._give_up = stop_patience, stop_gain, give_up
        self._rounds = self._free = self._up = self._down = self._waited = 0
        self._went_up = self._went_down = False
        self._compared = math.inf

    def update(self, success: bool, norm: float) -> bool:
        """Take the outcome of a round; return whether its mask is the best so far.

        Args:
            success: whether enough images reached the class in it.
            norm: ‖m‖₁ at its end; NaN is never the best.
        """
        self._rounds += 1
        better = success and norm < (math.inf if self.best is None else self.best)
        if better:
            self.best = norm
        self.finished = self._is_done()
        if not self.finished:
            self._move(success)
        return better

    def _is_done(self) -> bool:
        if self.best is None:
            return self._rounds >= self._give_up
        gained = self.best < (1 - self._stop_gain) * self._compared
        self._waited = 0 if gained else self._waited + 1
        self._compared = min(self._compared, self.best)
        return self._went_up and self._went_down and self._waited >= self._stop_patience

    def _move(self, success: bool) -> None:
        self._free = self._free + 1 if success and self.weight == 0 else 0
        if self._free >= self._patience:
            self.weight = self._first
            self._up = self._down = 0
            self._went_up = self._went_down = False
        self._up, self._down = (self._up + 1, 0) if success else (0, self._down + 1)
        if self._up >= self._patience:
            self._up, self._went_up = 0, True
            self.weight *= self._factor
        elif self._down >= self._patience:
            self._down, self._went_down = 0, True
            self.weight /= self._factor**1.5
