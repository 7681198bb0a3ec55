"""The feature maps of a network, found by running it: the last of each resolution before pooling.

Distilling defenses compare such maps; others cut the network in two at the last one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules import pooling
from torch.utils.hooks import RemovableHandle

from excise.errors import ModelError
from excise.models.checking import logits_of
from excise.models.modes import device_of, dtype_of, in_mode
from excise.types import Images

__all__ = ["feature_maps", "tapped"]

_POOLS = (
    pooling._AdaptiveAvgPoolNd,
    pooling._AdaptiveMaxPoolNd,
    pooling._AvgPoolNd,
    pooling._LPPoolNd,
    pooling._MaxPoolNd,
)


def feature_maps(model: nn.Module, images: Images, *, smallest: int = 1) -> list[str]:
    """Return the modules that give the last feature map of each resolution, largest maps first.

    The last one gives the last feature map before pooling. Of a larger resolution it is what a
    stage gives, not what the next stage makes of that before it reduces it. The network is run
    once, in eval mode, on the first image, and comes back as it was.

    Args:
        model: any classifier of images.
        images: ``(n, c, h, w)`` in [0, 1] of the size it classifies; one is enough.
        smallest: maps ``h × w`` of fewer pixels than this are left out.

    Returns:
        Names of modules, each called once a forward pass, whose outputs are ``(n, c, h, w)`` and
        have ever fewer pixels. Pooled features and squeezed factors ``(n, c, 1, 1)`` are none; a
        map that a strided convolution made 1 × 1 is one.

    Raises:
        ModelError: the network has no such maps (transformers, plain linear networks), or its
            forward pass fails.
    """
    image = images[:1].detach().to(device_of(model), dtype_of(model))
    calls = _calls(model, image)
    maps = _candidates(calls, image)
    # Backward from the end: what does not grow is no last map of its resolution.
    last: list[_Call] = []
    for call in reversed(maps):
        if not last or call.pixels > last[-1].pixels:
            last.append(call)
    if not last or last[-1].pixels < smallest or _tokens_after(calls, last[0]):
        least = f" of at least {smallest} pixels" if smallest > 1 else ""
        raise ModelError(
            f"a network with feature maps (n, channels, height, width){least} before its pooling",
            got=f"{type(model).__name__} without any",
            remedy="Choose a convolutional network, or a defense that needs no feature maps.",
        )
    found = [last[0]]
    for call, smaller in zip(last[1:], last, strict=False):
        found.append(_before_reduction(calls, maps, call, smaller))
    return [call.name for call in reversed(found) if call.pixels >= smallest]


@contextmanager
def tapped(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Keep the latest output of each named module, with its graph, while the block runs.

    Args:
        model: the network.
        names: of its modules, as :func:`feature_maps` gives them.

    Yields:
        A dictionary that every forward pass fills anew.
    """
    seen: dict[str, Tensor] = {}
    modules = {name: model.get_submodule(name) for name in names}

    def keep(name: str, module: nn.Module) -> RemovableHandle:
        return module.register_forward_hook(
            # A copy: the next operation may work in place, as ``out += x`` does.
            lambda _module, _given, output: seen.__setitem__(name, output.clone())
        )

    handles = [keep(name, module) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, eq=False)
class _Call:
    """One call of a module: the shape of the map it was given, if any, and what it gave."""

    name: str
    module: nn.Module
    given: torch.Size | None
    output: Tensor

    @property
    def learns(self) -> bool:
        """Whether the module has weights of its own."""
        return next(self.module.parameters(recurse=False), None) is not None

    @property
    def pixels(self) -> int:
        return self.output.shape[-2] * self.output.shape[-1]

    @property
    def pools(self) -> bool:
        """Whether it says that it pools, or changes a map's size without weights."""
        if isinstance(self.module, _POOLS):
            return True
        weightless = next(self.module.parameters(), None) is None
        return weightless and self.given is not None and self.given[-2:] != self.output.shape[-2:]


def _calls(model: nn.Module, image: Images) -> list[_Call]:
    """Return every call of every module but the root, in the order in which they end."""
    calls: list[_Call] = []

    def watch(name: str, module: nn.Module) -> RemovableHandle:
        def note(_module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
            if isinstance(output, Tensor):
                given = inputs[0] if inputs else None
                shape = given.shape if isinstance(given, Tensor) and given.ndim == 4 else None
                calls.append(_Call(name, module, shape, output))

        return module.register_forward_hook(note)

    handles = [watch(name, module) for name, module in model.named_modules() if name]
    try:
        with in_mode(model), torch.no_grad():
            logits_of(model, image)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _candidates(calls: Sequence[_Call], image: Images) -> list[_Call]:
    """Return the calls that give a map ``(n, c, h, w)`` which is not pooled."""
    times = Counter(call.name for call in calls)
    # A container that ends with pooling gives the very tensor that its pooling gave.
    pooled = {id(call.output) for call in calls if call.output.ndim == 4 and call.pools}
    found: list[_Call] = []
    learned = reduced = False
    for call in calls:
        # Images that were only normalized are no features yet.
        learned = learned or call.learns
        if call.output.ndim != 4:
            continue
        if call.learns and call.given is not None:
            reduced = reduced or (call.pixels == 1 < call.given[-2] * call.given[-1])
        if (
            learned
            and times[call.name] == 1
            and id(call.output) not in pooled
            and _is_shaped_like(call.output, image)
            # 1 × 1 is a map where a convolution made it so, not where squeezing did.
            and (call.pixels > 1 or reduced)
        ):
            found.append(call)
    return found


def _is_shaped_like(output: Tensor, image: Images) -> bool:
    """Whether the last two dimensions can be the image's, reduced; (n, h, w, c) is refused so."""
    (h, w), (height, width) = output.shape[-2:], image.shape[-2:]
    return h <= height and w <= width and abs(h * width - w * height) < max(height, width)


def _before_reduction(
    calls: Sequence[_Call], maps: Sequence[_Call], call: _Call, smaller: _Call
) -> _Call:
    """Return the last map of the size of ``call`` that is not inside what reduces it one step."""
    size, next_size = call.output.shape[-2:], smaller.output.shape[-2:]
    reducing = tuple(
        f"{one.name}."
        for one in calls
        if one.given is not None and one.given[-2:] == size and one.output.shape[-2:] == next_size
    )
    outside = [
        one for one in maps if one.output.shape[-2:] == size and not one.name.startswith(reducing)
    ]
    return outside[-1] if outside else call


def _tokens_after(calls: Sequence[_Call], last: _Call) -> bool:
    """Whether layers with weights work on tokens ``(n, length, c)`` after the map, as attention."""
    return any(
        call.learns and (call.output.ndim == 3 or _is_linear_on_maps(call))
        for call in calls[calls.index(last) + 1 :]
    )


def _is_linear_on_maps(call: _Call) -> bool:
    return isinstance(call.module, nn.Linear) and call.output.ndim == 4
