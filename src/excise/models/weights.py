"""Read a stranger's weights file without running what it holds.

The kind of a file is decided by its content, never by its suffix. Safetensors go through the
safetensors library, which holds no code; everything else goes through ``torch.load`` with
``weights_only=True``, which refuses every name outside a short list, once what it would call is
known to be harmless (:mod:`excise.models.calls`). Sizes are summed before anything is read.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from excise.errors import ModelError, UnsafeFileError
from excise.models.calls import AGAIN, SAVE_WEIGHTS, check_archive_calls, check_calls
from excise.models.checking import shorten

__all__ = ["MAX_BYTES", "check_archive", "file_size", "named_tensors", "read_weights"]

#: The largest file that is read unless the caller allows more: 2 GiB.
MAX_BYTES = 2 * 1024**3

# The safetensors library reads no larger header either.
_MAX_HEADER = 100_000_000
# Torch stores weights uncompressed. Real weights shrink by little, zeros a thousandfold.
_MAX_RATIO = 100
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params")


def read_weights(path: Path, *, max_bytes: int = MAX_BYTES) -> dict[str, Tensor]:
    """Return the tensors of a weights file by name, on the CPU.

    Understood are safetensors, what ``torch.save`` writes (zip archives and the format before
    torch 1.6), and wrappers such as ``{"state_dict": …}``, whose other entries are ignored.

    Args:
        path: the file.
        max_bytes: the largest file, and the largest sum of all tensors, in bytes.

    Raises:
        ModelError: no such file, or one that holds no named tensors.
        UnsafeFileError: a file that would run code, or that is or becomes larger than allowed.
    """
    size = file_size(path, max_bytes)
    with path.open("rb") as file:
        head = file.read(9)
    content: object
    if head.startswith(b"PK\x03\x04"):
        content = _read_torch(path, check_archive(path, size, max_bytes), check_archive_calls)
    elif head[8:] == b"{" and _plausible_header(path, int.from_bytes(head[:8], "little"), size):
        content = _read_safetensors(path)
    elif head.startswith(b"\x80"):
        content = _read_torch(path, size, check_calls)
    else:
        raise ModelError(
            "a weights file (safetensors, or what torch.save writes)",
            got=f"{path}, which starts with {head[:8]!r}",
            remedy=AGAIN,
        )
    return named_tensors(_unwrap(content), path, max_bytes)


def file_size(path: Path, max_bytes: int) -> int:
    """Return the size of a regular file that is neither empty nor larger than allowed.

    Raises:
        ModelError: no such file, something else than a file, or an empty one.
        UnsafeFileError: it is too large.
    """
    # A pipe or a device would block or never end, so only regular files are opened.
    if not path.is_file():
        got = "a directory" if path.is_dir() else "something else" if path.exists() else "nothing"
        raise ModelError(f"a file at {path}", got=got, remedy="Check the path.")
    size = path.stat().st_size
    if size == 0:
        raise ModelError(f"weights in {path}", got="an empty file", remedy=AGAIN)
    if size > max_bytes:
        raise UnsafeFileError(
            f"at most {max_bytes:,} bytes in {path}", got=f"{size:,}", remedy=_allow(size)
        )
    return size


def _allow(size: int) -> str:
    return f"If you trust the file, allow more: max_bytes={size} (--max-bytes {size})."


def _plausible_header(path: Path, length: int, size: int) -> bool:
    """Return whether a header of this length fits; refuse one made to exhaust the reader."""
    if length > size - 8:
        raise ModelError(
            f"a safetensors header inside {path} ({size:,} bytes)",
            got=f"one of {length:,} bytes",
            remedy=AGAIN,
        )
    if length > _MAX_HEADER:
        raise UnsafeFileError(
            f"a safetensors header of at most {_MAX_HEADER:,} bytes in {path}",
            got=f"{length:,}",
            remedy="No classifier needs that many names; do not use the file.",
        )
    return length >= 2


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise ModelError(
            f"whole safetensors in {path}", got=shorten(str(error)), remedy=AGAIN
        ) from error
    return tensors


def check_archive(path: Path, size: int, max_bytes: int) -> int:
    """Return to how many bytes an archive grows, judged by its directory alone.

    Raises:
        ModelError: it is damaged.
        UnsafeFileError: it becomes too large, or is a program.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        raise ModelError(
            f"a whole archive in {path}", got=shorten(str(error)), remedy=AGAIN
        ) from error
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > max_bytes:
        raise UnsafeFileError(
            f"at most {max_bytes:,} bytes inside {path}",
            got=f"{unpacked:,} bytes once unpacked",
            remedy=_allow(unpacked),
        )
    if unpacked > _MAX_RATIO * size:
        raise UnsafeFileError(
            f"an archive that grows at most {_MAX_RATIO} times",
            got=f"{path}, which grows from {size:,} to {unpacked:,} bytes",
            remedy="Weights do not compress that well; do not use the file.",
        )
    if any(entry.filename.endswith("constants.pkl") for entry in entries):
        raise UnsafeFileError(
            f"weights in {path}",
            got="a TorchScript program, which would run its own code",
            remedy=SAVE_WEIGHTS,
        )
    return unpacked


def _read_torch(path: Path, size: int, check: Callable[[IO[bytes], Path, int], None]) -> object:
    try:
        # An open file, because newer versions of torch judge a path by its suffix.
        with path.open("rb") as file, warnings.catch_warnings():
            # Torch warns about old storages and pickles; what matters is raised below.
            warnings.simplefilter("ignore")
            check(file, path, size)
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except ModelError:
        raise
    except pickle.UnpicklingError as error:
        # "GLOBAL" stands before a name that was refused.
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise UnsafeFileError(
            f"nothing but tensors in {path}",
            got=f"a pickle that names {named[1]}" if named else "a pickle of something else",
            remedy=f"It is not run. {SAVE_WEIGHTS}",
        ) from error
    except Exception as error:  # hostile or damaged bytes make the unpickler raise of any kind
        raise ModelError(
            f"whole weights in {path}",
            got=f"{type(error).__name__}: {shorten(str(error), 120)}",
            remedy=AGAIN,
        ) from error


def _unwrap(content: object) -> object:
    """Return the state dict inside the wrappers people save: ``{"state_dict": …}``."""
    for _ in range(3):
        if not isinstance(content, Mapping):
            break
        inner = (content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping))
        found = next(inner, None)
        if found is None:
            break
        content = found
    return content


def named_tensors(content: object, path: Path, max_bytes: int) -> dict[str, Tensor]:
    """Return ``content`` if it is nothing but plain tensors by name, and not too many.

    Raises:
        ModelError: it is something else.
        UnsafeFileError: the tensors take more memory than allowed.
    """
    if not isinstance(content, Mapping) or not content:
        got = type(content).__name__ if not isinstance(content, Mapping) else "an empty one"
        raise ModelError(f"a state dict in {path}", got=got, remedy=SAVE_WEIGHTS)
    for name, value in content.items():
        if not (isinstance(name, str) and _plain(value)):
            raise ModelError(
                f"plain tensors by name in {path}",
                got=f"{shorten(repr(name), 80)}: {_kind(value)}",
                remedy=SAVE_WEIGHTS,
            )
    # A view repeats one number as often as it likes: a file of a kilobyte can hold a terabyte.
    total = sum(value.numel() * value.element_size() for value in content.values())
    if total > max_bytes:
        raise UnsafeFileError(
            f"at most {max_bytes:,} bytes of tensors in {path}",
            got=f"{total:,}",
            remedy=_allow(total),
        )
    return dict(content)


def _plain(value: object) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and not value.is_complex()
    )


def _kind(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"a {value.dtype} tensor, {value.layout} on {value.device}"
