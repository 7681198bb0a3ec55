"""A fitted detector on disk: ``detector.safetensors``, described by ``detector.json``."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save_file

from excise.detection.network import LEAST, six_convolutions
from excise.detection.scorer import FrequencyScorer
from excise.errors import ModelError, UnsafeFileError
from excise.files import whole_directory, write_json
from excise.models.checking import check_finite, shorten
from excise.models.weights import read_weights

__all__ = ["load_scorer", "save_scorer"]

_FILES = ("detector.json", "detector.safetensors")
_MAX_JSON = 1024**2
#: A network for 1024 × 1024 pixels fits; it is nearly all its last layer.
_MAX_WEIGHTS = 64 * 1024**2

Side = Annotated[int, Field(ge=LEAST, le=1024)]


class _Description(BaseModel):
    """What a description must say; it may say more."""

    model_config = ConfigDict(strict=True, extra="allow")

    version: Literal[1]
    name: Literal["frequency"]
    channels: Literal[1, 3]
    size: Annotated[list[Side], Field(min_length=2, max_length=2)]
    notes: list[Annotated[str, Field(max_length=1000)]]


def save_scorer(
    directory: Path, scorer: FrequencyScorer, description: Mapping[str, Any] | None = None
) -> None:
    """Write a fitted detector, whole or not at all; what lies there is replaced.

    Args:
        directory: where it is to lie.
        scorer: what :meth:`~excise.detection.Frequency.fit` returned.
        description: what else the description is to say, as plain JSON values.
    """
    channels, height, width = scorer.shape
    with whole_directory(directory) as part:
        save_file(
            {name: value.cpu().contiguous() for name, value in scorer.weights.items()},
            part / _FILES[1],
        )
        said = {
            "version": 1, "name": "frequency", "channels": channels, "size": [height, width],
            "notes": list(scorer.notes),
            "created_by": f"excise {importlib.metadata.version('excise')}",
        }  # fmt: skip
        write_json(part / _FILES[0], dict(description or {}) | said)


def load_scorer(directory: Path) -> tuple[FrequencyScorer, dict[str, Any]]:
    """Return the detector of a directory, on the CPU, and its description. Runs nothing in it.

    Raises:
        ModelError: no detector there, or a damaged one.
        UnsafeFileError: a file that would run code, or that is larger than allowed.
    """
    said = _read(directory / _FILES[0])
    description = _validated(said, directory / _FILES[0])
    shape = (description.channels, description.size[0], description.size[1])
    path = directory / _FILES[1]
    weights = read_weights(path, max_bytes=_MAX_WEIGHTS)
    expected = _shapes(shape)
    found = {name: (tuple(value.shape), value.dtype) for name, value in weights.items()}
    if found != expected:
        wrong = sorted(
            name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)
        )
        raise ModelError(
            f"the weights of a frequency detector for {shape[1]} × {shape[2]} pixels in {path}",
            got=f"{len(wrong)} tensors that are missing or different: {shorten(str(wrong), 120)}",
            remedy="Fit the detector again.",
        )
    check_finite(weights.items())
    return FrequencyScorer(weights, shape, tuple(description.notes)), said


def _shapes(shape: tuple[int, int, int]) -> dict[str, Any]:
    with torch.device("meta"):
        state = six_convolutions(*shape).state_dict()
    return {name: (tuple(value.shape), value.dtype) for name, value in state.items()}


def _read(path: Path) -> Any:
    if not path.is_file():
        raise ModelError(
            f"a detector in {path.parent} ({' and '.join(_FILES)})",
            got=f"no {path.name}",
            remedy="Give the directory `detector` that `excise scan-images` wrote.",
        )
    with path.open("rb") as file:
        text = file.read(_MAX_JSON + 1)
    if len(text) > _MAX_JSON:
        raise UnsafeFileError(
            f"at most {_MAX_JSON:,} bytes in {path}", got="more", remedy="Do not use this detector."
        )
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"JSON in {path}", got=shorten(str(error)), remedy="Fit the detector again."
        ) from error


def _validated(said: Any, path: Path) -> _Description:
    try:
        return _Description.model_validate(said)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise ModelError(
            f"{where} of {path} to be right",
            got=f"{shorten(repr(first['input']), 80)}: {first['msg']}",
            remedy="Fit the detector again.",
        ) from error
