"""−ln(1 − p): the loss that pushes a network away from one class, wherever else it goes."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from excise.types import Labels

__all__ = ["unlikelihood"]


def unlikelihood(logits: Float[Tensor, "n k"], wrong: Labels) -> Float[Tensor, " n"]:
    """Return −ln(1 − p_wrong) of each image, in nats, from logits of at least two classes.

    Computed as ln Σ_k e^{z_k} − ln Σ_{k≠wrong} e^{z_k}, which stays finite, and keeps its gradient,
    where p_wrong rounds to 1.
    """
    others = logits.scatter(1, wrong[:, None], -torch.inf)
    return logits.logsumexp(1) - others.logsumexp(1)
