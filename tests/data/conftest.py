"""What several tests of this room need: pictures as bytes, parquet files, folder trees."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

Png = Callable[..., bytes]
Tree = Callable[..., Path]


def _png(
    value: int | tuple[int, ...] = 0, size: tuple[int, int] = (4, 4), mode: str = "RGB"
) -> bytes:
    """A picture of one color; ``size`` is (height, width)."""
    file = io.BytesIO()
    Image.new(mode, size[::-1], value).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def png() -> Png:
    return _png


@pytest.fixture
def noise_png() -> Callable[[int], bytes]:
    def make(seed: int, size: tuple[int, int] = (4, 4)) -> bytes:
        pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()

    return make


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Write ``{"cat": [bytes, …]}`` as a folder per class and return the folder above."""

    def make(classes: dict[str, Sequence[bytes]], name: str = "pictures") -> Path:
        for folder, pictures in classes.items():
            (tmp_path / name / folder).mkdir(parents=True, exist_ok=True)
            for k, content in enumerate(pictures):
                (tmp_path / name / folder / f"{k}.png").write_bytes(content)
        return tmp_path / name

    return make


@pytest.fixture
def write_parquet() -> Callable[..., None]:
    """Write pictures and labels as the hub does: a struct of bytes and path, and names."""

    def make(
        path: Path,
        pictures: Sequence[bytes | None],
        labels: Sequence[Any],
        *,
        names: Sequence[str] | None = None,
        columns: tuple[str, str] = ("image", "label"),
        plain: bool = False,
        label_type: pa.DataType | None = None,
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if plain:
            image = pa.array(pictures, pa.binary())
        else:
            rows = [{"bytes": content, "path": None} for content in pictures]
            image = pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        table = pa.table(
            {
                "extra": [0] * len(labels),
                columns[0]: image,
                columns[1]: pa.array(labels, label_type),
            }
        )
        if names is not None:
            features = {
                columns[0]: {"_type": "Image"},
                columns[1]: {"_type": "ClassLabel", "names": list(names)},
            }
            note = json.dumps({"info": {"features": features}})
            table = table.replace_schema_metadata({"huggingface": note})
        pq.write_table(table, path, row_group_size=3)

    return make
