"""What a repair is asked with is found wanting before the work, not after it."""

from __future__ import annotations

import pytest
import torch

from excise.errors import ExciseError
from excise.experiments.repair import Question, run_repair
from excise.testing import Planted
from excise.testing.planted import plain_network
from excise.types import Backdoor


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
