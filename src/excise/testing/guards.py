"""What a method must leave alone, and how to see that it did: networks, generators, storage."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from excise import registry
from excise.errors import SpecError
from excise.types import OnRound, Row

__all__ = [
    "Interruption",
    "Snapshot",
    "differences",
    "interrupt_at",
    "nothing_global_changes",
    "rebuilt_from_spec",
    "shared_storage",
]


class Interruption(Exception):  # noqa: N818
    """Stands for Ctrl-C or a full disk in the middle of a method."""


def interrupt_at(number: int) -> OnRound:
    """Return a progress callback that raises :class:`Interruption` on call ``number``, from 1."""
    calls = 0

    def on_round(row: Row) -> None:
        nonlocal calls
        calls += 1
        if calls >= number:
            raise Interruption(f"interrupted at call {calls}")

    return on_round


class Snapshot:
    """Remembers a network: values, flags, gradients, hooks, and which objects it is made of.

    Args:
        model: the network to watch.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._before = _facts(model)

    def changes(self) -> list[str]:
        """Return a line for everything that is no longer as it was; empty if all is."""
        after = _facts(self._model)
        changed = [
            f"{name}: was {old}, is {after[name]}"
            for name, old in self._before.items()
            if name in after and not _same(old, after[name])
        ]
        gone = [f"{name} is gone" for name in self._before if name not in after]
        return changed + gone + [f"{name} is new" for name in after if name not in self._before]


def _facts(model: nn.Module) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        facts[f"module {name!r}"] = id(module)
        facts[f"training flag of {name!r}"] = module.training
        # A replaced forward, a stray attribute or a hook all stand in the module's dictionary.
        held = {k: len(v) if k.endswith("_hooks") else None for k, v in vars(module).items()}
        facts[f"attributes and numbers of hooks of {name!r}"] = held
    for name, parameter in model.named_parameters(remove_duplicate=False):
        facts[f"parameter {name}"] = id(parameter)
        facts[f"requires_grad of {name}"] = parameter.requires_grad
        facts[f"gradient of {name}"] = _copy(parameter.grad)
        facts[f"hooks of {name}"] = len(parameter._backward_hooks or {})
        facts[f"value of {name}"] = _copy(parameter)
    for name, buffer in model.named_buffers(remove_duplicate=False):
        facts[f"value of buffer {name}"] = _copy(buffer)
    return facts


def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone()


def _same(old: Any, new: Any) -> bool:
    if isinstance(old, Tensor) and isinstance(new, Tensor):
        return _identical(old, new)
    if isinstance(old, Tensor) or isinstance(new, Tensor):
        return False
    return bool(old == new)


def _identical(one: Tensor, other: Tensor) -> bool:
    return (
        one.dtype == other.dtype
        and one.device == other.device
        and one.shape == other.shape
        # NaN differs from itself; here it may not.
        and bool(((one == other) | (one.isnan() & other.isnan())).all())
    )


def differences(one: nn.Module, other: nn.Module) -> list[str]:
    """Return the names of the parameters and buffers in which two networks differ in any bit."""
    left = {**dict(one.named_parameters()), **dict(one.named_buffers())}
    right = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    return [
        name
        for name in dict.fromkeys((*left, *right))
        if name not in left or name not in right or not _identical(left[name], right[name])
    ]


def shared_storage(one: nn.Module, other: nn.Module) -> list[str]:
    """Return the names of modules and tensors of ``other`` that ``one`` holds too."""
    modules = {id(module) for module in one.modules()}
    places = {_place(tensor) for tensor in _tensors(one).values() if tensor.numel()}
    return [name for name, module in other.named_modules() if id(module) in modules] + [
        name
        for name, tensor in _tensors(other).items()
        if tensor.numel() and _place(tensor) in places
    ]


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    gradients = {f"gradient of {n}": t.grad for n, t in tensors.items() if t.grad is not None}
    return {**tensors, **gradients}


def _place(tensor: Tensor) -> tuple[torch.device, int]:
    return tensor.device, tensor.untyped_storage().data_ptr()


@contextmanager
def nothing_global_changes() -> Iterator[None]:
    """Fail if the block moves a global generator or a global switch of torch.

    Python's, NumPy's and torch's generators, gradient mode, default type, determinism and threads
    must all be afterwards as they were before.
    """
    before = _world()
    yield
    after = _world()
    changed = [name for name in before if not _same(before[name], after[name])]
    assert changed == [], f"changed for everybody: {', '.join(changed)}"


def _world() -> dict[str, Any]:
    world: dict[str, Any] = {
        "random.getstate": random.getstate(),
        "numpy.random.get_state": repr(np.random.get_state(legacy=False)),
        "torch.get_rng_state": torch.get_rng_state(),
        "torch.is_grad_enabled": torch.is_grad_enabled(),
        "torch.is_inference_mode_enabled": torch.is_inference_mode_enabled(),
        "torch.get_default_dtype": torch.get_default_dtype(),
        "torch.get_num_threads": torch.get_num_threads(),
        "torch.are_deterministic_algorithms_enabled": torch.are_deterministic_algorithms_enabled(),
        "torch.backends.cudnn.benchmark": torch.backends.cudnn.benchmark,
        "torch.backends.cudnn.deterministic": torch.backends.cudnn.deterministic,
    }
    if torch.cuda.is_available():
        for number, state in enumerate(torch.cuda.get_rng_state_all()):
            world[f"torch.cuda.get_rng_state({number})"] = state
    return world


def rebuilt_from_spec(kind: registry.Kind, method: Any) -> Any:
    """Return a method built again from its recorded spec, after a trip through JSON.

    Fields marked ``told`` are in no record; they are taken from the method, as the runner takes
    them from the victim's bundle.
    """
    spec = json.loads(json.dumps(registry.spec_of(kind, method), allow_nan=False))
    name = spec.pop("name")
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        if field.metadata.get("told"):
            spec[field.name] = value
        elif field.name in registry.KINDS and value is not None:
            spec[field.name] = rebuilt_from_spec(field.name, value)
    try:
        make: type = registry.find(kind, name).load()
    except SpecError:
        return type(method)(**spec)  # a class of one's own: no row knows it
    built = registry.build(kind, name, spec)
    assert type(built) is make
    return built
