"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["whole_directory", "whole_file", "write_bytes", "write_json", "write_text"]

#: Bytes: less is a full disk.
_LITTLE = 2**20


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; move it there when the block ends without error.

    An exception, Ctrl-C included, removes the temporary file and leaves ``path`` as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        # mkstemp makes files only their owner can read; give what open() would have given.
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o666 & ~umask)
        _to_disk(part)
        part.replace(path)
    except BaseException as error:
        full = _full(error, path)
        part.unlink(missing_ok=True)
        if full is not None:
            raise full from error
        raise


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory beside ``path``; move it there when the block ends.

    An existing directory at ``path`` is replaced only after the new one is complete.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        yield part
        umask = os.umask(0)
        os.umask(umask)
        for written in part.rglob("*"):
            # Some libraries make files that their owner alone can read.
            written.chmod((0o777 if written.is_dir() else 0o666) & ~umask)
            if written.is_file():
                _to_disk(written)
        part.chmod(0o777 & ~umask)
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
            try:
                path.replace(old / path.name)
                part.replace(path)
            except BaseException:
                if not path.exists() and (old / path.name).exists():
                    (old / path.name).replace(path)
                old.rmdir()
                raise
            shutil.rmtree(old)
        else:
            part.replace(path)
    except BaseException as error:
        full = _full(error, path)
        shutil.rmtree(part, ignore_errors=True)
        if full is not None:
            raise full from error
        raise


def _to_disk(path: Path) -> None:
    """Have a file's content on the disk before its name is: else a power cut may leave it empty."""
    with path.open("rb") as written:
        os.fsync(written.fileno())


def _full(error: BaseException, path: Path) -> OSError | None:
    """Return the system's own error where a library hides that the disk is full behind its own."""
    if not isinstance(error, Exception) or isinstance(error, OSError):
        return None
    # What torch says when a write of its archive fails, whatever the reason.
    said = "inline_container" in str(error) and shutil.disk_usage(path.parent).free < _LITTLE
    if not said and "No space left" not in str(error):
        return None
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, whole or not at all."""
    with whole_file(path) as part:
        part.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write ``content`` to ``path`` as UTF-8, whole or not at all.

    A file's name may hold bytes that are no text; they are written as ``\\udcXX``.
    """
    write_bytes(path, content.encode(errors="backslashreplace"))


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` to ``path`` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
