"""Training flags, devices and copies of networks."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

from excise.errors import ModelError

__all__ = ["copy_of", "device_of", "dtype_of", "finished", "in_mode", "working_copy"]

M = TypeVar("M", bound=nn.Module)


@contextmanager
def in_mode(model: nn.Module, *, training: bool = False) -> Iterator[nn.Module]:
    """Put ``model`` into eval mode (or train mode) inside the block.

    Every submodule gets its own flag back afterwards, also after an exception: a network may be
    in a mixed mode on purpose, as when batch norm is frozen while the rest trains.
    """
    flags = [(module, module.training) for module in model.modules()]
    try:
        yield model.train(training)
    finally:
        for module, flag in flags:
            module.training = flag


def device_of(model: nn.Module) -> torch.device:
    """Return where the network's first parameter or buffer lies; the CPU if it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def dtype_of(model: nn.Module) -> torch.dtype:
    """Return the type of the network's first floating-point parameter; float32 if it has none."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            return parameter.dtype
    return torch.float32


def copy_of(model: M) -> M:
    """Return a copy that shares no tensor with ``model``.

    Raises:
        ModelError: the model holds something that cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise ModelError(
            "a model that copy.deepcopy can copy",
            got=f"{type(error).__name__}: {str(error)[:200]}",
            remedy="Keep nothing in the module but parameters, buffers and plain values.",
        ) from error


def working_copy(model: M) -> M:
    """Return a copy to train or to take apart: eval mode, every parameter free, channels last.

    Raises:
        ModelError: the model holds something that cannot be copied.
    """
    copied = copy_of(model).eval().requires_grad_(True)
    copied.zero_grad(set_to_none=True)
    return copied.to(memory_format=torch.channels_last)


def finished(worked: M, given: nn.Module) -> M:
    """Return a working copy as a defense hands it back: eval mode, flags of the given network.

    Args:
        worked: from :func:`working_copy`; perhaps with additions, whose parameters stay free.
        given: what it is a copy of.
    """
    frozen = {name for name, parameter in given.named_parameters() if not parameter.requires_grad}
    for name, parameter in worked.named_parameters():
        parameter.grad = None
        # What an addition stands around is called NAME.inner; a network may have its own "inner".
        parameter.requires_grad_(not {name, name.replace(".inner.", ".")} & frozen)
    return worked.eval().to(memory_format=torch.contiguous_format)
