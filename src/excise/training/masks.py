"""A network with some of its weights multiplied by masks, from outside: no copy, no hook, no fork.

Masking a channel of a batch norm is masking its γ; masking what a convolution gives is masking the
filter's weight and bias; masking every weight is the same with a mask of the weight's own shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from excise.models import batch_norms, dtype_of
from excise.seeding import Rng
from excise.training.epochs import Epochs, descend, train_epochs
from excise.types import Edit, Images, LabelledImages, Labels, OnRound, ignore_round

__all__ = [
    "Masked",
    "channel_masks",
    "clamp_masks",
    "edits_below",
    "fold",
    "gammas",
    "kernel_masks",
    "learn_masks",
]


class Masked:
    """Runs a network with masks on its weights; the network itself stays as it is.

    Args:
        model: the network, in whatever mode it is; its weights may need gradients or not.
        masks: by the name of a parameter, what it is multiplied by: a tensor of its shape, or one
            number for each entry of its first dimension, ``(channels,)``.
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        self.model, self.masks = model, dict(masks)

    def weights(self, masks: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return the masked parameters; with ``masks`` instead of its own where they are given."""
        return {
            name: self.model.get_parameter(name) * _shaped(mask, self.model.get_parameter(name))
            for name, mask in (self.masks if masks is None else masks).items()
        }

    def __call__(self, images: Images, masks: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return the logits of the masked network."""
        logits: Tensor = functional_call(self.model, self.weights(masks), (images,))
        return logits


def channel_masks(model: nn.Module, names: Iterable[str], value: float = 1.0) -> dict[str, Tensor]:
    """Return for each named parameter a mask ``(channels,)`` of ``value`` that needs gradients."""
    weights = {name: model.get_parameter(name).detach() for name in names}
    return {
        name: weight.new_full((len(weight),), value).requires_grad_()
        for name, weight in weights.items()
    }


def kernel_masks(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Return for each weight of a convolution a mask of 1, ``(filters, channels, 1, 1)``.

    It has one number for each kernel: a filter's part that reads one channel. It needs gradients.
    """
    weights = {name: model.get_parameter(name).detach() for name in names}
    return {
        name: torch.ones_like(weight[:, :, :1, :1]).requires_grad_()
        for name, weight in weights.items()
    }


def learn_masks(
    masked: Masked,
    data: LabelledImages,
    loss: Callable[[Images, Labels], Tensor],
    optimizer: torch.optim.Optimizer,
    rng: Rng,
    *,
    epochs: int,
    batch_size: int,
    stage: str,
    rate: Callable[[float], float] | None = None,
    penalty: float = 0.0,
    hold: Callable[[], None] | None = None,
    training: bool = False,
    on_round: OnRound = ignore_round,
) -> Epochs:
    """Minimize ``loss`` over the masks, each clipped to [0, 1] after every step.

    A loss or a mask that is not finite ends it; the masks are then those of the last good epoch.

    Args:
        masked: a network in eval mode whose own weights are frozen, with the masks that move.
        data: clean images on its device; cropped and mirrored as in training.
        loss: of images in the network's type and their labels.
        optimizer: over the masks.
        rng: draws orders and augmentation.
        epochs: how many.
        batch_size: images a step.
        stage: what history calls this.
        rate: the learning rate after so many epochs (a fraction); None: as the optimizer has it.
        penalty: what is added to the loss for every 1 that a mask falls; history is without it.
        hold: called after every update and clipping, for masks with other bounds.
        training: whether the network is in train mode in a step.
        on_round: called after every epoch.
    """

    def step(images: Images, labels: Labels, progress: float) -> Tensor:
        value = loss(images.to(dtype_of(masked.model)), labels)
        if not value.isfinite():
            return value
        total = value
        if penalty:
            closed = torch.stack([(1 - mask).sum() for mask in masked.masks.values()]).sum()
            total = value + penalty * closed
        descend(optimizer, total, None if rate is None else rate(progress))
        clamp_masks(masked.masks)
        if hold is not None:
            hold()
        return value

    # The masks as well as the network: what is put back after a divergence is both.
    whole = nn.Module()
    whole.add_module("network", masked.model)
    for number, mask in enumerate(masked.masks.values()):
        whole.register_buffer(f"mask{number}", mask)
    return train_epochs(
        whole, data, step, rng, epochs=epochs, batch_size=batch_size, stage=stage,
        training=training, answers=False, on_round=on_round,
    )  # fmt: skip


def edits_below(masks: Mapping[str, Tensor], threshold: float) -> list[Edit]:
    """Return the edits that prune every channel of a batch norm whose mask is ≤ ``threshold``.

    Args:
        masks: by the name of a γ (``"NORM.weight"``), its mask ``(channels,)``.
        threshold: channels at or below it lose their γ; β stays.
    """
    return [
        Edit("scale", name.removesuffix(".weight"), index, 1)
        for name, mask in masks.items()
        for index in (mask <= threshold).nonzero().flatten().tolist()
    ]


def gammas(model: nn.Module, method: str) -> list[str]:
    """Return the names of the γ of all batch norms.

    Raises:
        ModelError: the network has no batch norm.
    """
    return [f"{name}.weight" for name in batch_norms(model, method)]


def clamp_masks(masks: Mapping[str, Tensor]) -> None:
    """Clip every mask to [0, 1], in place."""
    with torch.no_grad():
        for mask in masks.values():
            mask.clamp_(0, 1)


@torch.no_grad()
def fold(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Multiply the masks into the weights of ``model``, in place: give a model of your own."""
    for name, mask in masks.items():
        parameter = model.get_parameter(name)
        parameter.mul_(_shaped(mask, parameter))


def _shaped(mask: Tensor, parameter: Tensor) -> Tensor:
    if mask.ndim == parameter.ndim:
        return mask
    return mask.view(-1, *(1,) * (parameter.ndim - 1))
