"""A pickle as plain data: nothing in it is imported, called or made.

A pickle is a program for a small machine. This one runs every instruction on plain containers
alone: where the file asks for a name to be imported, it gets a :class:`Name` that only remembers
what it was called; where it asks for that name to be called, it gets a :class:`Thing` that only
remembers with what. Tensors become a :class:`Stored`, a note of where their bytes lie in the file
around the pickle.
"""

from __future__ import annotations

import io
import math
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any, TypeGuard

import numpy as np
import torch

from excise.errors import ModelError, UnsafeFileError
from excise.models.checking import shorten

__all__ = [
    "AGAIN",
    "DTYPES",
    "Answers",
    "Name",
    "Stored",
    "Thing",
    "are_counts",
    "array_of",
    "read_pickle",
    "run_pickle",
]

#: Instructions of a pickle that are carried out; a benchmark's file of 20,000 poisoned images has
#: about 400,000.
MAX_STEPS = 10_000_000

#: What the numbers of a storage of torch are, by the name of its class.
DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}  # fmt: skip
_NUMBERS = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}
_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
#: What to do about a file that is not what it should be.
AGAIN = "The file is truncated, damaged or something else; fetch it again."


@dataclass(frozen=True, eq=False)
class Name:
    """What the file wanted imported, and was not."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Thing:
    """What the file wanted made by calling something, and was not.

    Args:
        maker: what it wanted to call, mostly a :class:`Name`.
        args: with what.
        state: what it wanted to fill it with.
    """

    maker: object
    args: object = ()
    state: object = None

    def __str__(self) -> str:
        # A chain of makers, or one that leads back to itself, must not be followed.
        return str(self.maker) if isinstance(self.maker, Name) else "something unnamed"

    __repr__ = __str__


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor that lies in the archive: where its numbers are, and how they are laid out."""

    storage: str
    dtype: torch.dtype
    length: int
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def read_pickle(data: bytes, where: str) -> object:
    """Return what a pickle describes, without importing, calling or making any of it.

    Dictionaries, lists, tuples, texts, bytes and numbers come back as they are, and so do
    OrderedDict (as a dict) and single numbers of numpy; sets are a :class:`Thing`.

    Args:
        data: the pickle.
        where: what it is called in messages.

    Raises:
        ModelError: it is damaged.
        UnsafeFileError: it has more instructions than any honest file, or makes more out of what
            it holds.
    """
    return run_pickle(io.BytesIO(data), Answers(where, len(data)))


def run_pickle(file: IO[bytes], answers: Answers) -> object:
    """Return what the pickle at which ``file`` stands describes; the file stands behind it then.

    Raises:
        ModelError: as :func:`read_pickle`.
    """
    machine = _Machine(answers)
    try:
        for step, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if step >= MAX_STEPS:
                break
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.do(opcode.name, argument)
    except ModelError:
        raise
    except Exception as error:  # hostile or damaged bytes make the parser raise of any kind
        raise ModelError(
            f"a whole pickle in {answers.where}",
            got=f"{type(error).__name__}: {shorten(str(error), 120)}",
            remedy=AGAIN,
        ) from error
    raise UnsafeFileError(
        f"a pickle of at most {MAX_STEPS:,} instructions in {answers.where}",
        got="more",
        remedy="No honest file has that many; do not use it.",
    )


def array_of(value: object) -> np.ndarray[Any, Any] | None:
    """Return an array of numbers that was pickled, rebuilt from its bytes; None if it is none."""
    if not (
        isinstance(value, Thing)
        and isinstance(value.maker, Name)
        and value.maker.name == "_reconstruct"
        and value.maker.module in _NUMPY
        and isinstance(value.state, tuple)
        and len(value.state) == 5
    ):
        return None
    _, shape, dtype, columns_first, raw = value.state
    kind = _number(dtype)
    if kind is None or not isinstance(raw, bytes) or not are_counts(shape):
        return None
    if math.prod(shape) * kind.itemsize != len(raw):
        return None
    return np.frombuffer(raw, kind).reshape(shape, order="F" if columns_first is True else "C")


def _number(dtype: object) -> np.dtype[Any] | None:
    """Return the numpy type a pickle describes, if it is one of plain numbers."""
    if not (isinstance(dtype, Thing) and str(dtype) == "numpy.dtype"):
        return None
    args, state = dtype.args, dtype.state
    code = args[0] if isinstance(args, tuple) and args else None
    order = state[1] if isinstance(state, tuple) and len(state) > 1 else "|"
    if code not in _NUMBERS or order not in ("<", ">", "|", "="):
        return None
    return np.dtype(f"{order}{code}")


def are_counts(value: object) -> TypeGuard[tuple[int, ...]]:
    """Return whether this can be the size of a tensor: few whole numbers, none absurd."""
    return isinstance(value, tuple) and len(value) <= 64 and all(_is_count(n) for n in value)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**48


@dataclass
class Answers:
    """What the machine is told where a pickle would call, fill or refer to something.

    Args:
        where: what the pickle is called in messages.
        room: how much may be copied. What a call copies lies in an honest pickle once, so the
            pickle's length is enough; a hostile one copies the same megabyte a thousand times.
    """

    where: str
    room: int

    def call(self, maker: object, args: object) -> object:
        """Return plain data for the few calls that stand for plain data, else a note of it."""
        made = _make(maker, args)
        if isinstance(made, bytes | tuple):
            self.spend(len(made))
        return made

    def fill(self, made: object, state: object) -> None:
        """Take a note of the attributes that something is to have."""
        if isinstance(made, Thing):
            made.state = state

    def refer(self, identity: object) -> object:
        """Return a note of what lies beside the pickle."""
        return Thing(Name("torch", "storage"), identity)

    def spend(self, *lengths: int) -> None:
        """Refuse to copy more than there is room for."""
        self.room -= sum(lengths)
        if self.room < 0:
            raise UnsafeFileError(
                f"a pickle in {self.where} that makes no more than it holds",
                got="one whose calls copy the same values over and over",
                remedy="It is made to fill memory; do not use it.",
            )


@dataclass
class _Machine:
    """The pickle machine on plain data; every method is one of its instructions."""

    answers: Answers
    stack: list[Any] = field(default_factory=list)
    _marks: list[list[Any]] = field(default_factory=list)
    _memo: dict[int, Any] = field(default_factory=dict)

    def do(self, name: str, argument: Any) -> None:
        if name in _PLAIN:
            self.stack.append(argument)
        else:
            _OTHER[name](self, argument)

    # Containers

    def none(self, _: Any) -> None:
        self.stack.append(None)

    def true(self, _: Any) -> None:
        self.stack.append(True)

    def false(self, _: Any) -> None:
        self.stack.append(False)

    def mark(self, _: Any) -> None:
        self._marks.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self._marks.pop()
        return items

    def pop(self, _: Any) -> None:
        # Popping a mark is allowed too.
        if self.stack:
            self.stack.pop()
        else:
            self.since_mark()

    def pop_mark(self, _: Any) -> None:
        self.since_mark()

    def duplicate(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def empty_list(self, _: Any) -> None:
        self.stack.append([])

    def empty_dict(self, _: Any) -> None:
        self.stack.append({})

    def empty_set(self, _: Any) -> None:
        self.stack.append(Thing(Name("builtins", "set")))

    def full_list(self, _: Any) -> None:
        items = self.since_mark()
        self.stack.append(items)

    def full_dict(self, _: Any) -> None:
        items = self.since_mark()
        self.stack.append({})
        self._fill(items)

    def frozen_set(self, _: Any) -> None:
        items = self.since_mark()
        self.stack.append(Thing(Name("builtins", "frozenset"), tuple(items)))

    def append(self, _: Any) -> None:
        item = self.stack.pop()
        if isinstance(self.stack[-1], list):
            self.stack[-1].append(item)

    def extend(self, _: Any) -> None:
        items = self.since_mark()
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def set_item(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill([key, value])

    def set_items(self, _: Any) -> None:
        self._fill(self.since_mark())

    def _fill(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                # Hashing a tuple goes as deep as it does, which a hostile one uses to crash.
                plain = isinstance(key, str | bytes | int | float | None | Name | Thing)
                self.stack[-1][key if plain else Thing(type(key).__name__)] = value

    def full_tuple(self, _: Any) -> None:
        items = self.since_mark()
        self.stack.append(tuple(items))

    def empty_tuple(self, _: Any) -> None:
        self.stack.append(())

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise ValueError("a tuple of more than there is")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    # The memo

    def put(self, number: Any) -> None:
        self._memo[number] = self.stack[-1]

    def memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self.stack[-1]

    def get(self, number: Any) -> None:
        self.stack.append(self._memo[number])

    # What another reader would import, call or fill

    def named(self, argument: Any) -> None:
        module, _, name = str(argument).partition(" ")
        self.stack.append(Name(module, name))

    def named_on_stack(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise TypeError("a name that is no text")
        self.stack.append(Name(module, name))

    def extension(self, number: Any) -> None:
        self.stack.append(Name("copyreg", f"extension {number}"))

    def reduce(self, _: Any) -> None:
        args, maker = self.stack.pop(), self.stack.pop()
        self.stack.append(self.answers.call(maker, args))

    def new(self, _: Any) -> None:
        self.reduce(None)

    def new_with_words(self, _: Any) -> None:
        words, args, maker = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self.stack.append(Thing(maker, (args, words)))

    def new_from_mark(self, _: Any) -> None:
        maker, *args = self.since_mark()
        self.stack.append(self.answers.call(maker, tuple(args)))

    def new_named(self, argument: Any) -> None:
        args = self.since_mark()
        self.named(argument)
        self.stack.append(self.answers.call(self.stack.pop(), tuple(args)))

    def build(self, _: Any) -> None:
        state = self.stack.pop()
        self.answers.fill(self.stack[-1], state)

    def persistent(self, _: Any) -> None:
        self.stack.append(self.answers.refer(self.stack.pop()))

    def persistent_text(self, argument: Any) -> None:
        self.stack.append(Thing(Name("torch", "storage"), (argument,)))

    def buffer(self, _: Any) -> None:
        self.stack.append(Thing(Name("pickle", "buffer")))

    def nothing(self, _: Any) -> None:
        pass


#: Instructions that push what stands behind them: numbers, texts, bytes.
_PLAIN = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip

_OTHER: Mapping[str, Callable[[_Machine, Any], None]] = {
    "NONE": _Machine.none, "NEWTRUE": _Machine.true, "NEWFALSE": _Machine.false,
    "MARK": _Machine.mark, "POP": _Machine.pop, "POP_MARK": _Machine.pop_mark,
    "DUP": _Machine.duplicate, "EMPTY_LIST": _Machine.empty_list,
    "EMPTY_DICT": _Machine.empty_dict, "EMPTY_SET": _Machine.empty_set,
    "EMPTY_TUPLE": _Machine.empty_tuple, "LIST": _Machine.full_list, "DICT": _Machine.full_dict,
    "FROZENSET": _Machine.frozen_set, "ADDITEMS": _Machine.extend, "APPEND": _Machine.append,
    "APPENDS": _Machine.extend, "SETITEM": _Machine.set_item, "SETITEMS": _Machine.set_items,
    "TUPLE": _Machine.full_tuple, "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "PUT": _Machine.put, "BINPUT": _Machine.put, "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize, "GET": _Machine.get, "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get, "GLOBAL": _Machine.named, "STACK_GLOBAL": _Machine.named_on_stack,
    "EXT1": _Machine.extension, "EXT2": _Machine.extension, "EXT4": _Machine.extension,
    "REDUCE": _Machine.reduce, "NEWOBJ": _Machine.new, "NEWOBJ_EX": _Machine.new_with_words,
    "OBJ": _Machine.new_from_mark, "INST": _Machine.new_named, "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent, "PERSID": _Machine.persistent_text,
    "NEXT_BUFFER": _Machine.buffer, "READONLY_BUFFER": _Machine.nothing,
    "PROTO": _Machine.nothing, "FRAME": _Machine.nothing,
}  # fmt: skip


def _make(maker: object, args: object) -> object:
    """Return plain data for the few calls that stand for plain data, else a note of the call."""
    if isinstance(maker, Name) and isinstance(args, tuple):
        match str(maker), args:
            case "collections.OrderedDict", ():
                return {}
            # Protocol 2 has no bytes of its own: they are a text to be encoded.
            case "_codecs.encode", (str() as text, "latin1"):
                return text.encode("latin-1")
            case (("__builtin__.bytes" | "builtins.bytes"), ()):
                return b""
            case "torch.Size", (tuple() as size,):
                return size
            case "torch._utils._rebuild_parameter", (Stored() as stored, *_):
                return stored
            case "torch._utils._rebuild_tensor_v2", (Thing() as storage, offset, size, stride, *_):
                return _stored(storage, offset, size, stride) or Thing(maker, args)
            case (
                ("numpy.core.multiarray.scalar" | "numpy._core.multiarray.scalar"),
                (
                    Thing() as dtype,
                    bytes() as raw,
                ),
            ):
                kind = _number(dtype)
                if kind is not None and len(raw) == kind.itemsize:
                    return np.frombuffer(raw, kind)[0].item()
    return Thing(maker, args)


def _stored(storage: Thing, offset: Any, size: Any, stride: Any) -> Stored | None:
    match storage.args:
        case ("storage", Name(module="torch", name=kind), str() as key, str(), int() as length):
            pass
        case _:
            return None
    counts = are_counts(size) and are_counts(stride) and _is_count(offset) and _is_count(length)
    # A key is a place in the archive; those torch makes are numbers.
    if kind not in DTYPES or not key.isalnum() or not counts or len(size) != len(stride):
        return None
    return Stored(key, DTYPES[kind], length, offset, size, stride)
