"""What the pickles of a weights file call is looked at before torch calls it.

``torch.load`` with ``weights_only=True`` imports nothing outside a short list, but what is on it is
called with whatever the file says: ``bytearray(10**12)`` takes a terabyte, forty times
``_codecs.encode`` into hexadecimal digits another, and so does a set of the numbers of a view that
repeats one. Here every pickle is carried out on plain data first (:mod:`excise.models.pickled`). A
call passes in the form alone in which ``torch.save`` writes it, with no more to copy than the file
holds. Names that the caller told torch to trust (``torch.serialization.add_safe_globals``) pass.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import torch

from excise.errors import ModelError, UnsafeFileError
from excise.models.checking import shorten
from excise.models.pickled import DTYPES, Answers, Name, Thing, are_counts, run_pickle

__all__ = ["AGAIN", "SAVE_WEIGHTS", "check_archive_calls", "check_calls"]

#: What to do with a file that cannot be read to its end.
AGAIN = "The file is truncated, damaged or no weights file; fetch it again."
#: What to do with a file that holds more than weights.
SAVE_WEIGHTS = "Save the weights alone: torch.save(model.state_dict(), FILE), or safetensors."

# The format before torch 1.6: a magic number, a version, the system, what was saved, and the
# names of its storages.
_PICKLES = 5
# What these take is decided by how much they are given, not by a number in it.
_FROM_ARGUMENTS = {
    "builtins.complex", "torch.device", "torch.serialization._get_layout",
    "torch._utils._rebuild_meta_tensor_no_storage", "torch._utils._rebuild_wrapper_subclass",
    "torch._utils._rebuild_device_tensor_from_numpy", "torch._utils._rebuild_sparse_tensor",
    "torch._utils._rebuild_nested_tensor",
}  # fmt: skip
_FROM_STORAGE = {
    "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3", "torch._utils._rebuild_qtensor",
}  # fmt: skip
_PARAMETERS = {
    "torch.nn.parameter.Parameter", "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
}  # fmt: skip


def check_archive_calls(file: IO[bytes], path: Path, size: int) -> None:
    """Refuse an archive of ``torch.save`` whose pickle calls what ``torch.save`` never writes.

    Args:
        file: the archive.
        path: what it is called in messages.
        size: bytes of all that is in it, as far as is known.

    Raises:
        ModelError: it is damaged, or its tensors need more than is there.
        UnsafeFileError: such a call.
    """
    try:
        # One file can have two directories for two readers; what counts is the one torch finds.
        reader = torch._C.PyTorchFileReader(file)
        # Without this call (older versions of torch) the size that is known has to do.
        measure = getattr(reader, "get_record_size", lambda name: 0)
        records = {name: int(measure(name)) for name in reader.get_all_records()}
        there = sum(records.values())
        data = reader.get_record("data.pkl") if there <= size else b""
    except Exception as error:  # hostile bytes make the reader raise of any kind
        raise _damaged(path, f"{type(error).__name__}: {shorten(str(error), 120)}") from error
    if there > size:
        raise _damaged(path, f"{there:,} bytes by one of two directories, {size:,} by the other")
    _check(io.BytesIO(data), path, size, {name.lower(): held for name, held in records.items()})


def check_calls(file: IO[bytes], path: Path, size: int) -> None:
    """Refuse pickles in a row, as torch wrote them before 1.6, likewise.

    Raises:
        ModelError: as :func:`check_archive_calls`.
    """
    for _ in range(_PICKLES):
        if file.tell() < size:  # too few are for torch to refuse
            _check(file, path, size, {})


def _check(file: IO[bytes], path: Path, size: int, records: Mapping[str, int]) -> None:
    looks = _Weights(str(path), size, size=size, records=records, trusted=_trusted())
    try:
        run_pickle(file, looks)
    except UnsafeFileError:
        raise
    except ModelError as error:
        raise _damaged(path, error.got) from error


def _trusted() -> frozenset[str]:
    """Return the names that the caller told torch to trust."""
    return frozenset(
        one[1] if isinstance(one, tuple) else f"{one.__module__}.{one.__qualname__}"
        for one in torch.serialization.get_safe_globals()
    )


def _damaged(where: object, got: str) -> ModelError:
    return ModelError(f"whole weights in {where}", got=got, remedy=AGAIN)


@dataclass(frozen=True)
class _Storage:
    """So many numbers of so many bytes, in the file."""

    length: int
    itemsize: int


@dataclass(eq=False)
class _Tensor:
    """A tensor: what a copy of it takes, and whether it may repeat numbers of its storage."""

    bytes: int = 0
    repeats: bool = False


@dataclass
class _Weights(Answers):
    """Looks at everything that would be made; nothing is made here either.

    Args:
        size: bytes that are in the file, once unpacked.
        records: bytes of each part of an archive, by its name in small letters, because torch
            finds ``data/a`` under ``data/A`` too. Some versions read it whole, whatever is asked.
        trusted: names that may be called with anything.
    """

    size: int = field(kw_only=True)
    records: Mapping[str, int] = field(kw_only=True)
    trusted: frozenset[str] = field(kw_only=True)
    _claimed: dict[str | int, int] = field(default_factory=dict)
    _needed: int = 0

    def call(self, maker: object, args: object) -> object:
        """Return what stands for a call that is harmless."""
        if not (isinstance(maker, Name) and isinstance(args, tuple)):
            raise self._unsafe("a pickle of something else")
        name = str(maker).replace("__builtin__.", "builtins.")  # as Python 2 called it
        if name in self.trusted:
            return Thing(maker, args)
        match name, args:
            case ("collections.OrderedDict", ()):
                return {}
            case ("collections.OrderedDict", (list() as pairs,)) if all(map(_is_pair, pairs)):
                self.spend(len(pairs))  # as Python 2 wrote them
                return dict.fromkeys(range(len(pairs)))
            case (
                ("collections.Counter", () | (dict(),))
                | ("builtins.set", () | (list(),))
                | ("builtins.bytearray", () | (bytes(),) | (str(), "latin-1"))
            ):
                self.spend(*map(len, args))
                return Thing(maker, args)
            case ("_codecs.encode", (str(), "latin1")) | ("torch.Size", (tuple(),)):
                return super().call(maker, args)
            case ("torch._tensor._rebuild_from_type_v2", (func, Name(), tuple() as inner, state)):
                return self._with_state(self.call(func, inner), state)
            case (_, (_Storage() as storage, _, size, *more)) if name in _FROM_STORAGE:
                self._look_into(more, copied=True)  # a quantized one's scales become doubles
                return self._view(storage, size)
            case (_, (made, _, _, state)) if name in _PARAMETERS:
                return self._with_state(made, state)
            case (_, (made, *_)) if name in _PARAMETERS:
                return made
            case ("torch._utils._rebuild_device_tensor_from_cpu_tensor", (_Tensor() as made, *_)):
                self._look_into(args, copied=True)
                return _Tensor(made.bytes)
            case (_, ()) if name.startswith("torch.") and name.endswith("Tensor"):
                return _Tensor()
            case _ if name in _FROM_ARGUMENTS:
                self._look_into(args)
                return Thing(maker, args)
        raise self._unsafe(f"a pickle that names {shorten(name, 80)}")

    def fill(self, made: object, state: object) -> None:
        """Look at the attributes that something is to have."""
        if isinstance(made, Thing) and str(made) in self.trusted:
            return
        if isinstance(made, _Tensor) and isinstance(state, tuple):
            self.spend(*(len(part) for part in state if isinstance(part, tuple | list)))
            made.repeats = True  # it is another tensor now
        elif isinstance(made, dict | Thing) and isinstance(state, dict | None):
            self.spend(len(state or ()))
        else:
            raise self._unsafe("a pickle of something else")

    def refer(self, identity: object) -> object:
        """Return what a storage takes, all of which has to lie in the file."""
        match identity:
            case ("storage", Name() as kind, str() | int() as key, _, int() as length, *_):
                itemsize = DTYPES[kind.name].itemsize if kind.name in DTYPES else 1
            case _:
                raise self._unsafe("a pickle of something else")
        before = self._claimed.get(key, 0)
        held = self.records.get(f"data/{key}".lower(), 0)
        self._claimed[key] = max(before, length * itemsize, held)
        self._needed += self._claimed[key] - before
        if length < 0 or self._needed > self.size:
            raise _damaged(self.where, f"tensors that need more than its {self.size:,} bytes")
        return _Storage(length, itemsize)

    def _look_into(self, args: Iterable[object], *, copied: bool = False) -> None:
        """Refuse arguments that are given over and over, and tensors that repeat numbers.

        Args:
            args: plain values, tensors and short rows of them.
            copied: whether the tensors among them are.
        """
        for arg in args:
            held = [arg, *arg] if isinstance(arg, tuple | list) else [arg]
            self.spend(*(len(one) for one in held if isinstance(one, tuple | list)))
            tensors = [one for one in held if isinstance(one, _Tensor)]
            self.spend(*(one.bytes for one in tensors if copied))
            if any(one.repeats for one in tensors):
                raise self._unsafe("a copy of a tensor that repeats its numbers")

    def _view(self, storage: _Storage, size: object) -> _Tensor:
        if not are_counts(size):
            raise _damaged(self.where, "a tensor of an impossible size")
        count = math.prod(size)
        return _Tensor(count * storage.itemsize, count > storage.length)

    def _with_state(self, made: object, state: object) -> object:
        """Return ``made`` with attributes, one of which may make it another tensor."""
        parts = state if isinstance(state, tuple) else (state,)
        self.spend(*(len(part) for part in parts if isinstance(part, dict)))
        if isinstance(made, _Tensor) and state:
            return _Tensor(made.bytes, repeats=True)
        return made

    def _unsafe(self, got: str) -> UnsafeFileError:
        return UnsafeFileError(
            f"nothing but tensors in {self.where}",
            got=got,
            remedy=f"It is not run. {SAVE_WEIGHTS}",
        )


def _is_pair(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2
