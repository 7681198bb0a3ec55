"""What the two functions of the front door refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import excise
from excise.defenses import CLP
from excise.errors import SpecError

pytestmark = pytest.mark.fast

CLEAN = torch.rand(8, 1, 8, 8), torch.arange(8) % 2


@pytest.mark.parametrize(
    "method", ["clp", CLP, object(), excise.scan], ids=["name", "class", "object", "function"]
)
@pytest.mark.parametrize(
    ("front", "kind"),
    [(excise.repair, "defense"), (excise.scan, "scanner")],
    ids=["repair", "scan"],
)
def test_what_is_no_method_is_refused(front: Any, kind: str, method: object) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with pytest.raises(SpecError, match=rf"expected a {kind} with its settings.*excise list"):
        front(model, CLEAN, method=method)
