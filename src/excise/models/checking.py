"""Is this a classifier of [0, 1] images? One forward pass tells."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from excise.errors import ModelError
from excise.models.modes import device_of, dtype_of, in_mode
from excise.types import Images

__all__ = ["check_finite", "check_model", "count_outputs", "few", "logits_of", "shorten"]


def check_model(
    model: nn.Module, images_shape: tuple[int, int, int], num_classes: int | None = None
) -> None:
    """Refuse a network that does not classify images of this shape.

    Two random images pass through it in eval mode, on its own device; the modes of all modules
    and torch's global generators are as before afterwards.

    Args:
        model: any module that maps images ``(n, c, h, w)`` in [0, 1] to logits.
        images_shape: channels, height and width of one image.
        num_classes: how many logits an image must get; None accepts any number.

    Raises:
        ModelError: no network of Python modules, or one in DataParallel; inference mode; weights
            that are not finite; an exception in the forward pass; or an output that is no finite
            tensor ``(n, num_classes)``.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(
            "a torch.nn.Module",
            got=shorten(repr(model)),
            remedy="excise.models.load_model(PATH) reads one from a file or a bundle.",
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            "a network of Python modules",
            got="a TorchScript one, in which nothing can be cut",
            remedy="Load its weights into the network it was scripted from.",
        )
    if any(isinstance(module, nn.DataParallel) for module in model.modules()):
        raise ModelError(
            "the network itself",
            got="one wrapped in DataParallel, which copies it for every batch",
            remedy="Give model.module.",
        )
    named = (*model.named_parameters(), *model.named_buffers())
    if torch.is_inference_mode_enabled() or any(tensor.is_inference() for _, tensor in named):
        raise ModelError(
            "a network that gradients can be taken of",
            got="inference mode, or weights that were made in it",
            remedy="Leave torch.inference_mode() first, and load or copy the network outside it.",
        )
    check_finite(named)
    if dtype_of(model) is torch.float16:
        raise ModelError(
            "a network of float32, bfloat16 or double",
            got="float16, in which searches overflow",
            remedy="Give model.float().",
        )
    logits = _answers(model, images_shape)
    if num_classes is not None and logits.shape[1] != num_classes:
        raise ModelError(
            f"{num_classes} logits an image, one a class",
            got=f"{logits.shape[1]}",
            remedy=f"Give images of {logits.shape[1]} classes, or the network made for these. If "
            "some have no image here, name all: load_images(…, classes=[…]).",
        )
    if not logits.isfinite().all():
        raise ModelError(
            "finite logits",
            got="NaN or infinity for a random image",
            remedy="The weights are damaged or diverged; load an earlier checkpoint.",
        )


def count_outputs(model: nn.Module, images_shape: tuple[int, int, int]) -> int:
    """Return how many logits an image gets, from one forward pass as of :func:`check_model`.

    Raises:
        ModelError: an exception in the forward pass, or an output that is no tensor of logits.
    """
    return _answers(model, images_shape).shape[1]


def _answers(model: nn.Module, images_shape: tuple[int, int, int]) -> Tensor:
    images = torch.rand((2, *images_shape), generator=torch.Generator().manual_seed(0))
    with in_mode(model), torch.no_grad():
        return logits_of(model, images.to(device_of(model), dtype_of(model)))


def logits_of(model: nn.Module, images: Images) -> Tensor:
    """Return the logits ``(n, k)`` of ``images``, without touching torch's global generators.

    Raises:
        ModelError: an exception inside the network, or an output of another shape or type.
    """
    shape = f"({', '.join(map(str, images.shape))})"
    devices = [images.device] if images.is_cuda else []
    try:
        with torch.random.fork_rng(devices=devices):
            logits = model(images)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"a network that takes images of shape {shape}",
            got=f"{type(error).__name__}: {shorten(str(error))}",
            remedy="Check the number of channels (in_channels=) and the image size (input_size=).",
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(
            f"logits of shape ({len(images)}, number of classes)",
            got=str(got),
            remedy="Wrap the network in a module that returns its class logits alone.",
        )
    return logits


def check_finite(tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse weights that hold NaN or infinity, or floats of 8 bits, which are nothing alone.

    Raises:
        ModelError: some do; the message names them.
    """
    tensors = list(tensors)
    small = [(n, t) for n, t in tensors if t.is_floating_point() and t.element_size() < 2]
    if small:
        raise ModelError(
            "weights of 16 bits or more",
            got=f"{small[0][1].dtype} in {few(name for name, _ in small)}",
            remedy="Multiply them by the scales they were made with, and save floats.",
        )
    bad = [name for name, t in tensors if t.is_floating_point() and not t.isfinite().all()]
    if bad:
        raise ModelError(
            "finite weights",
            got=f"NaN or infinity in {few(bad)}",
            remedy="The file is damaged or the training diverged; load an earlier checkpoint.",
        )


def few(names: Iterable[str], limit: int = 3) -> str:
    """Return the first few names and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(shorten(name, 80) for name in listed[:limit]) + more


def shorten(text: str, limit: int = 300) -> str:
    """Return a foreign text on one line, cut where it gets long.

    Names in a stranger's file may hold codes that steer a terminal: those become "?".
    """
    line = "".join(c if c.isprintable() else "?" for c in " ".join(text[: 4 * limit].split()))
    return line if len(line) <= limit else f"{line[:limit]}…"
