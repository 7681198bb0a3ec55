"""Make edits, replay them, and keep what was silenced silent while the rest trains.

======== ========================= =========================================================
silence  filter of a convolution   its weight and bias, and γ and β of its owner batch norm: 0
mute     channel of a batch norm   γ and β: 0, so that nothing leaves it
scale    channel of a batch norm   γ: 0; what leaves it is β
feature  input of a linear layer   its column of the weights: 0
clamp    a layer                   its channels get upper bounds (excise.models.additions)
plug     a layer                   a 1×1 convolution and a batch norm before it (the same)
======== ========================= =========================================================

A silenced filter is zero in everything that belongs to it alone, so that exactly nothing leaves the
batch norm: with γ = 0 alone, β would.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from excise.errors import ModelError, nearest
from excise.models.additions import ADDITIONS, add
from excise.models.tracing import Unit, prunable, trace
from excise.types import Edit, Edits, LabelledImages, as_floats

__all__ = ["Mask", "apply_edits", "convolutions", "own_tensors", "silence", "zeroed"]

Filters = int | Sequence[int] | Tensor

#: For edits of channels: the dimension that counts them, and what of the layer they zero.
_CHANNELS = {
    "scale": (0, ("weight",)),
    "mute": (0, ("weight", "bias")),
    "feature": (1, ("weight",)),
}


def convolutions(
    model: nn.Module, images: LabelledImages, method: str, *, include_gates: bool = False
) -> tuple[Unit, ...]:
    """Return the prunable units, for a method that cannot do without.

    Args:
        model: as :func:`trace` takes it.
        images: of the size it classifies.
        method: who asks, for the message.
        include_gates: also return squeeze-excite convolutions.

    Raises:
        ModelError: there is none, or one computes its weight from other parameters; or as
            :func:`trace`.
    """
    units = trace(model, as_floats(images.images[:1]))
    found = prunable(units, include_gates=include_gates)
    if not found:
        raise ModelError(
            f"a network with convolutions, on which {method} works",
            got=f"{type(model).__name__} without any",
            remedy="Choose a defense that needs none, such as ft-sam or d3.",
        )
    for unit in found:
        own_tensors(model, unit)
    return found


#: What to do where a weight is computed: an old weight norm is no parametrization.
FOLD = (
    "Fold it in first: torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight'), or "
    "torch.nn.utils.remove_weight_norm and remove_spectral_norm where those old ones made it."
)


def own_tensors(model: nn.Module, unit: Unit) -> tuple[nn.Parameter, ...]:
    """Return every parameter that belongs to the unit alone; the first dimension counts filters.

    These are the convolution's weight ``(f, c, kh, kw)`` and bias ``(f,)``, and the γ and β of
    its owner batch norm, ``(f,)`` each, as far as they exist.

    Raises:
        ModelError: the model has no such layer, or computes its weight from other parameters.
    """
    found: list[nn.Parameter] = []
    for layer in filter(None, (unit.layer, unit.owner)):
        module = _module(model, layer)
        own = dict(module.named_parameters(recurse=False))
        if "weight" not in own:
            raise ModelError(
                f"a weight of its own in {layer}",
                got="one computed from other parameters (weight norm, a parametrization), or none",
                remedy=FOLD,
            )
        found += [own[name] for name in ("weight", "bias") if name in own]
    return tuple(found)


@torch.no_grad()
def silence(model: nn.Module, units: Unit | Sequence[Unit], filters: Filters) -> None:
    """Silence filters for good, in place: give a model of your own.

    Args:
        model: the model that was traced, or a copy of it.
        units: one unit; or one unit for every entry of ``filters``, in any order.
        filters: the number of a filter, or several, from 0.

    Raises:
        ModelError: the model has no such layer or the layer no such filter. Then nothing has
            been changed.
    """
    for tensor, dim, index in _touched(model, _by_unit(units, filters)):
        tensor.index_fill_(dim, index, 0)


@torch.no_grad()
def apply_edits(model: nn.Module, edits: Edits, units: Iterable[Unit]) -> None:
    """Replay edits on a model, in place.

    Additions (clamps, plugs) come as they are when fresh: their weights are part of the repaired
    network's own.

    Args:
        model: the unrepaired model, or a copy of it.
        edits: what a defense did; their order does not matter.
        units: the units of that model, from :func:`excise.models.trace`.

    Raises:
        ModelError: an edit of an unknown kind, layer or filter. Then nothing has been changed.
    """
    for tensor, dim, index in zeroed(model, edits, units):
        tensor.index_fill_(dim, index, 0)
    for edit in edits:
        if edit.kind in ADDITIONS:
            add(model, edit.kind, edit.layer)


def zeroed(
    model: nn.Module, edits: Edits, units: Iterable[Unit]
) -> list[tuple[nn.Parameter, int, Tensor]]:
    """Return what edits set to zero: each parameter, the dimension, and the indices along it.

    Args:
        model: the model that the edits name layers of.
        edits: of any kind; additions zero nothing.
        units: the units of that model.

    Raises:
        ModelError: as :func:`apply_edits`.
    """
    known = {unit.layer: unit for unit in units}
    filters: dict[Unit, list[int]] = {}
    channels: dict[tuple[str, str], list[int]] = {}
    for edit in edits:
        if edit.kind == "silence":
            if edit.layer not in known:
                raise ModelError(
                    "edits of layers the model has",
                    got=repr(edit.layer),
                    remedy=nearest(edit.layer, known),
                )
            filters.setdefault(known[edit.layer], []).append(_number(edit))
        elif edit.kind in _CHANNELS:
            channels.setdefault((edit.kind, edit.layer), []).append(_number(edit))
        elif edit.kind not in ADDITIONS:
            raise ModelError(
                f"edits of the kinds silence, {', '.join((*_CHANNELS, *ADDITIONS))}",
                got=repr(edit.kind),
                remedy="These edits were written by a newer Excise: update it.",
            )
    touched = _touched(model, filters)
    for (kind, layer), numbers in channels.items():
        dim, names = _CHANNELS[kind]
        module = _module(model, layer)
        own = dict(module.named_parameters(recurse=False))
        found = [own[name] for name in names if name in own]
        if not found or found[0].ndim != dim + 1 or len(own["weight"].shape) != dim + 1:
            raise ModelError(
                f"a layer whose {'inputs' if dim else 'channels'} can be edited ({kind})",
                got=f"{layer}, a {type(module).__name__}",
                remedy="Use the edits of this very model.",
            )
        _check_range(layer, numbers, found[0].shape[dim])
        index = torch.tensor(numbers, device=found[0].device)
        touched += [(tensor, dim, index) for tensor in found]
    return touched


def _number(edit: Edit) -> int:
    if edit.index is None:
        raise ModelError(
            f"the index of an edit of kind {edit.kind}", got="none", remedy="Say which channel."
        )
    return edit.index


def _check_range(layer: str, numbers: Iterable[int], count: int) -> None:
    wrong = [number for number in numbers if not 0 <= number < count]
    if wrong:
        raise ModelError(
            f"filters from 0 to {count - 1} of {layer}",
            got=str(wrong[0]),
            remedy="Filters are counted from 0.",
        )


class Mask:
    """Holds silenced filters at zero while the rest of a model trains.

    Call it after every optimizer step, or let :meth:`held` do so. One call costs one vectorized
    operation per touched tensor, however many filters are silent.

    Args:
        model: the model that trains, on the device it stays on.
        edits: what is silent; filters not named here are free.
        units: the units of that model.

    Raises:
        ModelError: as :func:`apply_edits`.
    """

    def __init__(self, model: nn.Module, edits: Edits, units: Iterable[Unit]) -> None:
        self._silent: list[tuple[Tensor, Tensor]] = []
        for tensor, dim, index in zeroed(model, edits, units):
            silent = torch.zeros(tensor.shape[dim], dtype=torch.bool, device=tensor.device)
            silent[index] = True
            shape = [-1 if axis == dim else 1 for axis in range(tensor.ndim)]
            self._silent.append((tensor, silent.view(shape)))

    @torch.no_grad()
    def __call__(self) -> None:
        """Set everything silenced to zero again."""
        for tensor, silent in self._silent:
            # Not a product: 0 · NaN is NaN, and 0 · -1 is -0.
            tensor.masked_fill_(silent, 0)

    @contextmanager
    def held(self, optimizer: Optimizer) -> Iterator[None]:
        """Call the mask after every step of ``optimizer`` inside the block."""
        self()
        hook = optimizer.register_step_post_hook(lambda *_: self())
        try:
            yield
        finally:
            hook.remove()


def _module(model: nn.Module, layer: str) -> nn.Module:
    try:
        return model.get_submodule(layer)
    except AttributeError as error:
        raise ModelError(
            "a layer of the model",
            got=repr(layer),
            remedy="Use the units of this very model: trace(model, images).",
        ) from error


def _by_unit(units: Unit | Sequence[Unit], filters: Filters) -> dict[Unit, list[int]]:
    """Return the filters of each unit, from one unit and its filters or from pairs."""
    if isinstance(filters, Tensor):
        filters = [int(index) for index in filters.flatten().tolist()]
    numbers = [filters] if isinstance(filters, int) else list(filters)
    pairs = [units] * len(numbers) if isinstance(units, Unit) else list(units)
    if len(pairs) != len(numbers):
        raise ModelError(
            "one unit for every filter",
            got=f"{len(pairs)} units and {len(numbers)} filters",
            remedy="Give one unit, or as many units as filters.",
        )
    wanted: dict[Unit, list[int]] = {}
    for unit, number in zip(pairs, numbers, strict=True):
        wanted.setdefault(unit, []).append(number)
    return wanted


def _touched(
    model: nn.Module, wanted: dict[Unit, list[int]]
) -> list[tuple[nn.Parameter, int, Tensor]]:
    """Return each tensor to change with the indices to silence; everything is checked first."""
    touched: list[tuple[nn.Parameter, int, Tensor]] = []
    for unit, filters in wanted.items():
        _check_range(unit.layer, filters, unit.filters)
        for tensor in own_tensors(model, unit):
            if len(tensor) != unit.filters:
                raise ModelError(
                    f"{unit.filters} filters in {unit.layer}",
                    got=f"{len(tensor)}",
                    remedy="Use the units of this very model: trace(model, images).",
                )
            touched.append((tensor, 0, torch.tensor(filters, device=tensor.device)))
    return touched
