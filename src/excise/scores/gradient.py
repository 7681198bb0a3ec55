"""Mean absolute gradient of a loss with respect to each convolution filter.

Paper: Dunnett et al., DSN-W 2024 (arXiv 2405.03918), the pruning criterion: for filter i of layer
l, ξ = ‖∂L/∂W_{l,i}‖₁ / numel(W_{l,i}), ranked over all layers together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def mean_absolute_gradient(gradients: Sequence[Tensor]) -> Float[Tensor, " filters"]:
    """Return ξ of every filter, layers in the given order, filters in theirs.

    Args:
        gradients: ∂L/∂W of each convolution, ``(filters, inputs, k, l)``.
    """
    return torch.cat([gradient.abs().mean((1, 2, 3)) for gradient in gradients])
