"""What a repair is asked with is found wanting before the work, not after it."""

from __future__ import annotations

import pytest
import torch

from excise.errors import ExciseError
from excise.experiments.pruning_curve import pruning_curve
from excise.experiments.repair import Question, run_repair
from excise.models import trace
from excise.registry import build
from excise.testing import Planted
from excise.testing.planted import plain_network
from excise.types import Backdoor, Edit
from excise.types import Repair as Repaired


class Never:
    """A defense whose work would be lost."""

    def repair(self, *_: object, **__: object):
        raise AssertionError("the defense ran")


@pytest.mark.parametrize("wrong", ["twin", "trigger"])
def test_a_twin_or_a_trigger_that_does_not_fit_is_refused_before_the_repair(
    wrong: str, planted: Planted
) -> None:
    def misshapen(images: torch.Tensor) -> torch.Tensor:
        return images[..., 1:]

    question = Question(
        model=planted.network(), method=Never(), data=planted.data, test=planted.test,
        backdoor=Backdoor(misshapen, planted.backdoor.rule) if wrong == "trigger" else None,
        twin=plain_network(7) if wrong == "twin" else None,
    )  # fmt: skip
    with pytest.raises(ExciseError):
        run_repair(question)


def test_the_curve_of_a_long_pruning_has_the_last_round_that_was_kept(planted: Planted) -> None:
    question = Question(model=planted.network(), method=Never(), data=planted.data)
    units = trace(question.model, planted.data.train.floats()[:1])
    cuts = [Edit("silence", units[n % 2].layer, n % 8, n + 1) for n in range(16)] * 10
    history = [
        {"stage": "prune", "round": n, "layer": cut.layer, "index": cut.index}
        for n, cut in enumerate(cuts, 1)
    ]
    kept = tuple(Edit("silence", row["layer"], row["index"], row["round"]) for row in history[:131])
    repair = Repaired(question.model, history=tuple(history), edits=kept)
    curve = pruning_curve(
        question.model, repair, planted.test, question.measure, units=units, count=20
    )
    assert len(curve) < 70
    assert [point["round"] for point in curve if point["kept"]][-1] == 131
    assert curve[-1]["round"] == 160


def test_where_all_test_images_are_of_the_target_there_is_no_picture_to_show(
    planted: Planted,
) -> None:
    of_it = planted.test.labels == planted.backdoor.rule.target
    question = Question(
        model=planted.network(), method=build("defense", "none", {}), data=planted.data,
        test=planted.test.subset(of_it), backdoor=planted.backdoor,
    )  # fmt: skip
    record = run_repair(question).record
    assert record["pictures"] == []
    assert record["after"]["asr"]["n"] == 0
