"""Normalization as the network's first layer, so that every caller deals in [0, 1] images."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from excise.errors import ModelError
from excise.types import Images

__all__ = ["Network", "Normalize", "Numbers", "Size", "as_sides"]

#: One number a channel, or one for all of them.
Numbers = float | Sequence[float]
#: Height and width in pixels; one number stands for both.
Size = int | tuple[int, int]


class Normalize(nn.Module):
    """Subtract ``mean`` and divide by ``std``, channel by channel.

    The two are buffers that move with the network and stand in no state dict: they belong to the
    card, and a body's weights keep the names its own code gives them.

    Args:
        mean: one number a channel, in the units of [0, 1] images.
        std: one positive number a channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Images) -> Tensor:
        """Map images ``(n, c, h, w)`` in [0, 1] to normalized ones of the same shape.

        Raises:
            ModelError: the images have another number of channels.
        """
        if images.shape[-3] != len(self.mean):
            # Gray images would broadcast to three channels and pass unnoticed.
            raise ModelError(
                f"images of {len(self.mean)} channels",
                got=f"{images.shape[-3]}",
                remedy="Convert the images, or say what the network takes: in_channels=.",
            )
        return (images - self.mean) / self.std

    def extra_repr(self) -> str:
        """Return what printing the network shows of this layer."""
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"


class Network(nn.Module):
    """A classifier of [0, 1] images: ``normalize``, then ``body``.

    Args:
        body: maps normalized images ``(n, c, h, w)`` to logits ``(n, number of classes)``.
        arch: the name :func:`excise.models.build_model` makes the body from.
        classes: a name for every output, in their order.
        named: whether somebody named the outputs; else ``classes`` are mere numbers, and which
            class an output stands for is up to the images.
        input_shape: channels, height and width of the images it was made for.
        mean: one number a channel or one for all, subtracted from images in [0, 1].
        std: one positive number a channel or one for all, divided by.

    Raises:
        ModelError: a mean or std that does not fit the channels, or a std that is not positive.
    """

    def __init__(
        self,
        body: nn.Module,
        *,
        arch: str,
        classes: tuple[str, ...],
        named: bool = True,
        input_shape: tuple[int, int, int],
        mean: Numbers | None = None,
        std: Numbers | None = None,
    ) -> None:
        super().__init__()
        channels = input_shape[0]
        self.arch = arch
        self.classes = classes
        self.named = named
        self.input_shape = input_shape
        self.mean = _per_channel("mean", mean if mean is not None else (0.0,), channels)
        self.std = _per_channel("std", std if std is not None else (1.0,), channels)
        if min(self.std) <= 0:
            raise ModelError(
                "a positive std for every channel",
                got=f"std={self.std}",
                remedy="Give the standard deviation of [0, 1] images; 1 leaves them as they are.",
            )
        self.normalize = Normalize(self.mean, self.std)
        self.body = body

    def name_outputs(self, classes: tuple[str, ...]) -> None:
        """Name the outputs, in their order, unless they have names.

        Raises:
            ModelError: not one name an output.
        """
        if self.named:
            return
        if len(classes) != len(self.classes):
            raise ModelError(
                f"{len(self.classes)} names, one an output",
                got=f"{len(classes)}",
                remedy="Name every output, in order.",
            )
        self.classes, self.named = classes, True

    def forward(self, images: Images) -> Tensor:
        """Map images ``(n, c, h, w)`` in [0, 1] to logits ``(n, number of classes)``."""
        logits: Tensor = self.body(self.normalize(images))
        return logits


def as_sides(size: Size) -> tuple[int, int]:
    """Return ``size`` as (height, width).

    Raises:
        ModelError: it is neither one whole number from 1 nor two.
    """
    sides: tuple[int, ...] = ()
    with contextlib.suppress(TypeError):
        pair = (size, size) if isinstance(size, int) else tuple(size)
        sides = tuple(operator.index(side) for side in pair)
    if len(sides) != 2 or min(sides) < 1:
        raise ModelError(
            "input_size as one number of pixels or (height, width)",
            got=repr(size),
            remedy="Write for example input_size=32 or input_size=(32, 48).",
        )
    return sides[0], sides[1]


def _per_channel(name: str, values: Numbers, channels: int) -> tuple[float, ...]:
    numbers: tuple[float, ...] = ()
    with contextlib.suppress(TypeError, ValueError):
        given = (values,) if isinstance(values, int | float) else values
        numbers = tuple(float(value) for value in given)
    # One number stands for all channels.
    numbers *= channels if len(numbers) == 1 else 1
    if len(numbers) != channels or not all(-1e6 < number < 1e6 for number in numbers):
        raise ModelError(
            f"a {name} of {channels} finite {'number' if channels == 1 else 'numbers'}, "
            "one a channel",
            got=f"{name}={values!r}",
            remedy=f"Give one number a channel, or one for all; the images have {channels}.",
        )
    return numbers
