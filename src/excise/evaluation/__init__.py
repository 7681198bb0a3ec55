"""Measuring a network, comparing two, suspecting the figures, and the verdict.

>>> before = evaluate(given, test, trigger=trigger, target=0)
>>> after = evaluate(repaired, test, trigger=trigger, target=0)
>>> comparison = compare(before, after, rng)
>>> judge(before, after, comparison).sentence
"""

from excise.evaluation.checks import Finding, check, near_chance
from excise.evaluation.comparison import Comparison, compare
from excise.evaluation.evaluate import evaluate
from excise.evaluation.hashing import fingerprint, fingerprints
from excise.evaluation.metrics import Interval, Rate, der, paired_der, paired_difference
from excise.evaluation.outcomes import Evaluation, Outcomes, summarize
from excise.evaluation.verdict import Limits, Status, Verdict, judge, voided
from excise.evaluation.visibility import Visibility, visibility

__all__ = [
    "Comparison",
    "Evaluation",
    "Finding",
    "Interval",
    "Limits",
    "Outcomes",
    "Rate",
    "Status",
    "Verdict",
    "Visibility",
    "check",
    "compare",
    "der",
    "evaluate",
    "fingerprint",
    "fingerprints",
    "judge",
    "near_chance",
    "paired_der",
    "paired_difference",
    "summarize",
    "visibility",
    "voided",
]
