"""Neural Cleanse as an inverter: the triggers of the classes that stand out by a small one.

Paper: Wang, Yao, Shan, Li, Viswanath, Zheng, Zhao: Neural Cleanse: Identifying and Mitigating
Backdoor Attacks in Neural Networks, S&P 2019, section IV. The search and where it departs from the
authors' code: :mod:`excise.inversion.mask_search`. The rule: :mod:`excise.inversion.anomaly`.

Measured: docs/defenses.md.
"""

from __future__ import annotations

from pydantic.dataclasses import dataclass
from torch import nn

from excise.inversion.mask_search import MaskSearch
from excise.inversion.masked import flip_rate
from excise.registry import STRICT
from excise.seeding import Rng
from excise.types import DefenderData, Evidence, OnRound, RecoveredTrigger, ignore_round

__all__ = ["NeuralCleanse"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class NeuralCleanse(MaskSearch):
    """Neural Cleanse (Wang et al. 2019): the smallest mask and pattern of every class."""

    only_flagged: bool = True
    """Return the triggers of flagged classes alone; else of every class that has one."""

    def fit(
        self, model: nn.Module, data: DefenderData, rng: Rng, *, on_round: OnRound = ignore_round
    ) -> list[RecoveredTrigger]:
        """Return the triggers found, the class that stands out most first.

        The training images are searched with; the validation images say how often each works.
        """
        found = self.search(model, data.train, rng, on_round=on_round)
        indices = found.indices()
        classes = found.flagged(self.threshold) if self.only_flagged else found.by_size()
        return [
            RecoveredTrigger(
                trigger := found.triggers[target],
                target,
                Evidence(
                    flip_rate=flip_rate(model, trigger, target, data.validation),
                    size=found.norms[target],
                    anomaly=indices[target],
                ),
            )
            for target in classes
        ]
