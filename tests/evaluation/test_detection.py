"""TPR, FPR, F1 and AUROC of a detector."""

import numpy as np
import pytest

from excise.errors import DataError
from excise.evaluation.detection import detection_figures


def test_worked_figures():
    found = detection_figures(np.array([0.1, 0.2, 0.5, 0.4]), np.array([0.9, 0.3, 0.6, 0.8, 0.7]))
    assert (found.tpr.count, found.tpr.n) == (4, 5)
    assert (found.fpr.count, found.fpr.n) == (1, 4), "flagged from 0.5 on"
    assert found.f1 == pytest.approx(4 / (4 + 0.5 * (1 + 1)))
    # Of 20 pairs the triggered one is the more suspicious in 18: 0.3 loses to 0.5 and 0.4.
    assert found.auroc == pytest.approx(18 / 20)
    said = found.to_json()
    assert said["tpr"]["low"] < 0.8 < said["tpr"]["high"]
    assert set(said) == {"tpr", "fpr", "f1", "auroc"}


def test_ties_count_half_and_nothing_found_is_no_error():
    found = detection_figures(np.array([0.2, 0.2]), np.array([0.2, 0.2]))
    assert (found.f1, found.auroc) == (0.0, 0.5)


@pytest.mark.parametrize(
    ("clean", "triggered"), [([], [0.5]), ([0.5], []), ([0.5], [1.5]), ([float("nan")], [0.5])]
)
def test_what_is_no_suspicion_is_refused(clean, triggered):
    with pytest.raises(DataError, match=r"the suspicion, in \[0, 1\], of at least one clean"):
        detection_figures(np.array(clean), np.array(triggered))
