"""What batch norms see of some images: their statistics measured anew, and moments of inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from excise.models.modes import in_mode
from excise.models.norms import BatchNorm
from excise.types import Images

__all__ = ["input_moments", "inputs_seen", "re_estimate"]


@torch.no_grad()
def re_estimate(model: nn.Module, images: Images, batch_size: int) -> None:
    """Give every batch norm the mean and variance of what it sees on ``images``, in place.

    Each batch counts by its number of images; the old statistics do not count at all. All else
    runs in eval mode, and flags come back as they were.

    Args:
        model: the network; nothing happens if it has no running statistics.
        images: at least two, in the network's type.
        batch_size: images at a time at most; batches are of nearly equal size, and
            none of one.
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, BatchNorm) and module.running_mean is not None
    ]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    seen = 0
    try:
        with in_mode(model):
            for norm in norms:
                norm.train()
                norm.reset_running_stats()
            # Batch norm has no statistics of a single value.
            batches = max(1, min(-(-len(images) // batch_size), len(images) // 2))
            for batch in images.tensor_split(batches):
                seen += len(batch)
                for norm in norms:
                    norm.momentum = len(batch) / seen
                model(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@contextmanager
def inputs_seen(
    norms: Mapping[str, BatchNorm], see: Callable[[str, Float[Tensor, "f n"]], None]
) -> Iterator[None]:
    """Hand over what goes into batch norms, whenever they run inside the block.

    Args:
        norms: by name.
        see: is given a name and the values of each channel, over images and pixels.
    """

    def watch(name: str, norm: BatchNorm) -> RemovableHandle:
        def hook(_: nn.Module, inputs: Any) -> None:
            see(name, inputs[0].transpose(0, 1).flatten(1))

        return norm.register_forward_pre_hook(hook)

    handles = [watch(name, norm) for name, norm in norms.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def input_moments(
    model: nn.Module, norms: Mapping[str, BatchNorm], images: Images, batch_size: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return mean and variance (over images and pixels) of each channel before each batch norm.

    The network runs in eval mode; flags come back as they were. A batch norm that takes no part
    has no entry.

    Args:
        model: the network.
        norms: its batch norms by name.
        images: in the network's type.
        batch_size: images at a time.
    """
    sums: dict[str, tuple[Tensor, Tensor, int]] = {}

    def collect(name: str, values: Tensor) -> None:
        values = values.double()
        first, second, count = sums.get(name, (0.0, 0.0, 0))
        sums[name] = (
            first + values.sum(1), second + values.square().sum(1), count + values.shape[1],
        )  # fmt: skip

    with in_mode(model), inputs_seen(norms, collect):
        for batch in images.split(batch_size):
            model(batch)
    moments = {}
    for name, (first, second, count) in sums.items():
        mean = first / count
        variance = (second / count - mean.square()).clamp_min(0)
        moments[name] = (mean.to(images.dtype), variance.to(images.dtype))
    return moments
