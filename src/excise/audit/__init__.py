"""Attacks on a repaired network: invert again, re-activate, relearn."""

from excise.audit.finding import Audit, Finding
from excise.audit.invert_again import InvertAgain
from excise.audit.reactivation import Reactivation
from excise.audit.relearning import Relearning
from excise.audit.report import AuditReport, audit

__all__ = [
    "Audit",
    "AuditReport",
    "Finding",
    "InvertAgain",
    "Reactivation",
    "Relearning",
    "audit",
]
