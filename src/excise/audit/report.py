"""All audits of one repair: the trigger is recovered once, and each attacks with it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from excise.audit.attacking import check_pair, trigger_of
from excise.audit.finding import Audit, Finding, nothing
from excise.audit.invert_again import InvertAgain, fast_inverter
from excise.audit.reactivation import Reactivation
from excise.audit.relearning import Relearning
from excise.seeding import Rng
from excise.types import DefenderData, Inverter, OnRound, RecoveredTrigger, ignore_round

__all__ = ["AuditReport", "audit"]


@dataclass(frozen=True)
class AuditReport:
    """What all audits of one repair came to.

    Args:
        findings: one an audit, in the order in which they ran.
        settings: of each audit, by its name.
        told: whether re-activation and relearning were given the trigger.
    """

    findings: tuple[Finding, ...]
    settings: Mapping[str, Mapping[str, Any]]
    told: bool = False

    @property
    def failed(self) -> tuple[Finding, ...]:
        """The findings of attacks that the repair did not withstand."""
        return tuple(finding for finding in self.findings if finding.passed is False)

    def to_json(self) -> dict[str, Any]:
        """Return ``{"findings", "settings", "told"}``, ready for a record."""
        return {
            "findings": [finding.to_json() for finding in self.findings],
            "settings": {name: dict(fields) for name, fields in self.settings.items()},
            "told": self.told,
        }


def audit(
    given: nn.Module,
    repaired: nn.Module,
    data: DefenderData,
    rng: Rng,
    *,
    audits: Sequence[Audit] | None = None,
    inverter: Inverter | None = None,
    known: RecoveredTrigger | None = None,
    on_round: OnRound = ignore_round,
) -> AuditReport:
    """Attack a repaired network in every way; networks and images come back as they were.

    Args:
        given: the network before its repair.
        repaired: after it.
        data: the training images are attacked with, the validation images tell the outcome.
        rng: draws whatever is random.
        audits: the attacks; with None all three, with their default settings.
        inverter: recovers the trigger of the given network, once for all audits; with None it is
            Neural Cleanse with its fast settings.
        known: the true trigger, if it is known; every audit but :class:`InvertAgain` attacks with
            it, which shows more than an imitation of it.
        on_round: called now and then with a row of plain values.

    Raises:
        DataError: there are no validation images.
        ModelError: the networks do not tell the same classes apart.
    """
    inverter = inverter or fast_inverter()
    if audits is None:
        audits = tuple(one(inverter=inverter) for one in (InvertAgain, Reactivation, Relearning))
    check_pair(given, repaired, data.held_out("an audit"))
    recovered = trigger_of(inverter, given, data, rng, None, on_round)
    findings = []
    for one in audits:
        trigger = recovered if known is None or isinstance(one, InvertAgain) else known
        if trigger is None:
            findings.append(nothing(one.name, time.perf_counter()))
        else:
            findings.append(one.audit(given, repaired, data, rng, known=trigger, on_round=on_round))
    return AuditReport(
        tuple(findings), {one.name: _settings(one) for one in audits}, known is not None
    )


def _settings(method: Any) -> dict[str, Any]:
    """Return the fields of a method as plain values; of a method in it, its name and fields."""
    if not dataclasses.is_dataclass(method):
        return {"name": type(method).__name__}
    found: dict[str, Any] = {}
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        plain = isinstance(value, str | int | float) or value is None
        found[field.name] = value if plain else {"name": type(value).__name__, **_settings(value)}
    return found
