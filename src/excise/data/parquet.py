"""Parquet files of encoded pictures and labels, in the layout the Hugging Face hub uses."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from excise.data.decode import Encoded
from excise.data.listing import Listing, Splits, expanded, paired
from excise.errors import DataError

__all__ = ["find_files", "parquet"]

_IMAGE_NAMES = ("image", "img", "picture", "pixels")
_LABEL_NAMES = ("label", "labels", "fine_label")
_SPLITS = {"train": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}
_ROWS = 512


def parquet(where: str | Path, *, mirror: bool = False) -> Splits:
    """List the parquet files in a folder (at any depth), or those a pattern matches.

    A file belongs to a split if its name, or its folder's, begins with the split's name
    (``train-00000-of-00005.parquet``, ``test/0000.parquet``); where no file does, all are
    training images, and so are all that a pattern matches if none is for training. Validation
    images stand in for a test split that is absent or unlabeled.

    Raises:
        DataError: no such files; several data sets among them; columns that cannot be used.
    """
    files = find_files(where)
    folder = expanded(where)
    if not files:
        raise DataError(
            "parquet files", got=f"none at {str(where)!r}", remedy="Check the folder or pattern."
        )
    splits: dict[str, list[Path]] = {}
    for path in files:
        splits.setdefault(_split_of(path, folder), []).append(path)
    if "train" not in splits and not folder.is_dir():
        splits = {"": files}  # a pattern that names only test files means just these
    _check_one_set(splits, where)
    train = splits.get("train") or splits.get("")
    if not train:
        raise DataError(
            "training images",
            got=f"parquet files of {' and '.join(sorted(splits))} only",
            remedy="Name the files directly, as in parquet:DIR/test-*.parquet.",
        )
    listing = _listing(train, mirror)
    if listing is None:
        raise DataError(
            "labeled training images",
            got="the label -1 on all of them",
            remedy="Use a data set whose labels are public.",
        )
    for name in ("test", "val"):
        if name in splits and (test := _listing(splits[name], mirror)) is not None:
            return paired(listing, test)
    return Splits(listing)


def find_files(where: str | Path) -> list[Path]:
    """Return the parquet files in a folder, at any depth, or matching a pattern, sorted."""
    folder = expanded(where)
    if folder.is_dir():
        return sorted(folder.rglob("*.parquet"))
    # Path.glob takes no absolute pattern.
    found = (Path(name) for name in glob.glob(str(folder), recursive=True))  # noqa: PTH207
    return sorted(path for path in found if path.is_file())


def _split_of(path: Path, folder: Path) -> str:
    # The folder the caller named says nothing: it may itself be called "test".
    for word in (path.name,) if path.parent == folder else (path.name, path.parent.name):
        first = re.split(r"[-_.]", word.lower())[0]
        if first in _SPLITS:
            return _SPLITS[first]
    return ""


def _check_one_set(splits: dict[str, list[Path]], where: str | Path) -> None:
    """Refuse a folder that holds several data sets: their labels would be mixed."""
    for files in splits.values():
        folders = sorted({str(path.parent) for path in files})
        if len(folders) > 1:
            raise DataError(
                f"one data set at {str(where)!r}",
                got=f"several: {', '.join(folders[:5])}",
                remedy=f"Choose one, for example parquet:{folders[0]}",
            )


def _listing(files: Sequence[Path], mirror: bool) -> Listing | None:
    """Return the labels of some files now and their pictures when asked; None if unlabeled."""
    schemas = [_guard(path, lambda p=path: pq.read_schema(p)) for path in files]
    columns_of = [
        (_image_column(schema, path), _label_column(schema, path))
        for schema, path in zip(schemas, files, strict=True)
    ]
    if len(set(columns_of)) > 1:
        shown = " and ".join(sorted({f"({', '.join(names)})" for names in columns_of}))
        raise DataError(
            "the same columns in every file",
            got=f"{shown} in {files[0].parent}",
            remedy="Move the files of other data sets elsewhere.",
        )
    (image, label), schema = columns_of[0], schemas[0]
    tables = [_guard(path, lambda p=path: pq.read_table(p, columns=[label])) for path in files]
    counts = [table.num_rows for table in tables]
    values = [value for table in tables for value in table.column(0).to_pylist()]
    if not values or None in values:
        raise DataError(
            "a label for every picture",
            got="an empty label" if values else "no rows",
            remedy=f"Remove rows without {label!r} from {files[0].parent}.",
        )
    if set(values) == {-1}:  # how the hub marks hidden labels
        return None
    names = _class_names(schema, label)
    if isinstance(values[0], str):
        names = sorted(set(values))
        number = {name: k for k, name in enumerate(names)}
        values = [number[value] for value in values]
    labels = torch.tensor(values, dtype=torch.int64)
    classes = tuple(names) if names else tuple(str(k) for k in range(int(labels.max()) + 1))

    def pictures(index: Sequence[int]) -> Iterator[tuple[str, Encoded]]:
        starts = torch.tensor([0, *counts]).cumsum(0).tolist()
        file_of = torch.bucketize(torch.tensor(index), torch.tensor(starts[1:]), right=True)
        for k, group in groupby(
            zip(file_of.tolist(), index, strict=True), key=lambda pair: pair[0]
        ):
            yield from _read(files[k], image, [row - starts[k] for _, row in group])

    return Listing(labels, classes, pictures, bool(names), mirror)


def _read(path: Path, image: str, rows: list[int]) -> Iterator[tuple[str, Encoded]]:
    """Yield the pictures in some rows of one file, in ascending order, a batch at a time."""
    file = _guard(path, lambda: pq.ParquetFile(path))
    wanted = torch.zeros(file.metadata.num_rows, dtype=torch.bool)
    wanted[rows] = True
    start = 0
    # A struct's `path` field is not needed, so only its bytes are read.
    for batch in file.iter_batches(batch_size=_ROWS, columns=[image]):
        column = batch.column(0)
        if pa.types.is_struct(column.type):
            column = column.field("bytes")
        for offset in wanted[start : start + len(column)].nonzero().flatten().tolist():
            yield f"{path.name} row {start + offset}", column[offset].as_py()
        start += len(column)


def _image_column(schema: Any, path: Path) -> str:
    """Return the column of encoded pictures, as pyarrow selects it."""
    found = {}
    for column in schema:
        if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
            found[column.name] = f"{column.name}.bytes"
        elif pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
            found[column.name] = column.name
    named = [name for name in _IMAGE_NAMES if name in found]
    if not named and len(found) != 1:
        raise DataError(
            "one column of encoded pictures (bytes, or a struct with bytes)",
            got=f"columns {', '.join(schema.names)} in {path.name}",
            remedy="Name it 'image'.",
        )
    return found[named[0]] if named else next(iter(found.values()))


def _label_column(schema: Any, path: Path) -> str:
    named = [name for name in _LABEL_NAMES if name in schema.names]
    features = _features(schema)
    marked = [name for name, f in features.items() if f.get("_type") == "ClassLabel"]
    if not named and len(marked) != 1:
        raise DataError(
            f"a label column ({', '.join(_LABEL_NAMES)})",
            got=f"columns {', '.join(schema.names)} in {path.name}",
            remedy="Rename the column of class numbers to 'label'.",
        )
    name = named[0] if named else marked[0]
    kind = schema.field(name).type
    if not (
        pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
    ):
        raise DataError(
            "labels that are whole numbers or names",
            got=f"{kind} in column {name!r} of {path.name}",
            remedy="Store one class number per picture.",
        )
    return name


def _class_names(schema: Any, label: str) -> list[str] | None:
    names = _features(schema).get(label, {}).get("names")
    return [str(name) for name in names] if names else None


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """Return the columns' descriptions the hub's library wrote into the file, if any."""
    try:
        described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = described["info"]["features"]
        return {name: f for name, f in features.items() if isinstance(f, dict)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _guard(path: Path, read: Any) -> Any:
    """Return ``read()``, turning pyarrow's complaint about a damaged file into ours."""
    try:
        return read()
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise DataError(
            "a readable parquet file",
            got=f"{path} ({error})",
            remedy="Download or write it again.",
        ) from error
