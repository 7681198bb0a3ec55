"""Read what ``torch.save`` wrote as plain data: nothing in it is imported, called or made.

The pickle in the file is carried out on plain containers (:mod:`excise.models.pickled`), so a file
full of a stranger's classes can be searched for the tensors in it, and a file that would run code
does nothing. The bytes of a tensor are read when somebody asks for them.
"""

from __future__ import annotations

import contextlib
import math
import sys
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from excise.errors import ModelError
from excise.models.checking import shorten
from excise.models.pickled import AGAIN, Stored, read_pickle
from excise.models.weights import MAX_BYTES, check_archive, file_size

__all__ = ["Archive"]


class Archive:
    """A zip archive that ``torch.save`` wrote, opened without running what it holds.

    Args:
        path: the file.
        max_bytes: the largest file, and the most that it may unpack to.

    Raises:
        ModelError: no such file, or one that is no such archive.
        UnsafeFileError: it is or becomes larger than allowed, or is a program.
    """

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES) -> None:
        self.path, self.max_bytes = path, max_bytes
        size = file_size(path, max_bytes)
        with path.open("rb") as file:
            head = file.read(4)
        if head != b"PK\x03\x04":
            old = head.startswith(b"\x80")
            kind = "the format before torch 1.6, or a bare pickle" if old else f"head {head!r}"
            remedy = "Where you trust it, load it and save it again with a newer torch."
            raise ModelError(
                f"a zip archive of torch.save in {path}", got=kind, remedy=remedy if old else AGAIN
            )
        check_archive(path, size, max_bytes)
        self._storages: dict[str, Tensor] = {}
        with contextlib.ExitStack() as opened:
            self._zip = opened.enter_context(zipfile.ZipFile(path))
            self._root = self._find_root()
            self._close = opened.pop_all().close

    def _find_root(self) -> str:
        names = self._zip.namelist()
        if len(set(names)) != len(names):
            raise ModelError(f"every entry of {self.path} once", got="one twice", remedy=AGAIN)
        found = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(found) != 1:
            raise ModelError(f"one data.pkl in {self.path}", got=f"{len(found)}", remedy=AGAIN)
        root = found[0].removesuffix("data.pkl")
        order = f"{root}byteorder"
        if order in names and self._read(order) != sys.byteorder.encode():
            raise ModelError(
                f"numbers in {sys.byteorder}-endian order in {self.path}",
                got="the other order, or damage",
                remedy="Save it again on a machine like this one.",
            )
        return root

    def close(self) -> None:
        """Close the file; tensors that were read stay."""
        self._close()

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def content(self) -> object:
        """Return what was saved, in plain containers, :class:`~excise.models.pickled.Stored` and
        :class:`~excise.models.pickled.Thing`.

        Raises:
            ModelError: the pickle is damaged.
            UnsafeFileError: it has more instructions than any honest file.
        """
        return read_pickle(self._read(f"{self._root}data.pkl"), str(self.path))

    def tensor(self, stored: Stored) -> Tensor:
        """Return a tensor's numbers; a view of its storage, so that it takes no more memory.

        Raises:
            ModelError: they are not there, or not all of them.
        """
        wanted = f"{stored.storage} of {self.path} with {stored.length} {stored.dtype} numbers"
        if stored.storage not in self._storages:
            raw = bytearray(self._read(f"{self._root}data/{stored.storage}"))
            self._storages[stored.storage] = torch.frombuffer(raw, dtype=torch.uint8) if raw \
                else torch.empty(0, dtype=torch.uint8)  # fmt: skip
        bytes_ = self._storages[stored.storage]
        if len(bytes_) != stored.length * stored.dtype.itemsize:
            raise ModelError(f"storage {wanted}", got=f"{len(bytes_)} bytes", remedy=AGAIN)
        steps = zip(stored.size, stored.stride, strict=True)
        last = stored.offset + sum((size - 1) * stride for size, stride in steps)
        if math.prod(stored.size) and last >= stored.length:
            raise ModelError(f"storage {wanted}", got=f"a tensor up to {last}", remedy=AGAIN)
        numbers = bytes_.view(stored.dtype) if len(bytes_) else bytes_.to(stored.dtype)
        try:
            return numbers.as_strided(stored.size, stored.stride, stored.offset)
        except RuntimeError as error:  # sizes whose product no number of 64 bits holds
            raise ModelError(
                f"a tensor inside storage {wanted}", got=shorten(str(error), 120), remedy=AGAIN
            ) from error

    def _read(self, name: str) -> bytes:
        try:
            return self._zip.read(name)  # the archive's checksums tell damage
        except Exception as error:  # hostile bytes make the unpacker raise of any kind
            raise ModelError(
                f"a whole {name} in {self.path}",
                got=f"{type(error).__name__}: {shorten(str(error), 120)}",
                remedy=AGAIN,
            ) from error
