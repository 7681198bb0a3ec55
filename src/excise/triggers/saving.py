"""Triggers on disk: ``trigger.json`` names the class and its plain fields, tensors lie beside it.

A field may be a plain value, a tensor, or a mapping of names to tensors (the weights of a trained
trigger). Nothing a trigger file says can name code: the class comes from the registry's rows.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from excise.errors import InputError, TriggerError, UnsafeFileError
from excise.files import write_json
from excise.registry import find, rows
from excise.types import Trigger

__all__ = ["load_trigger", "save_trigger"]

_FILES = ("trigger.json", "trigger.safetensors")
_MAX_BYTES = 64 * 1024**2


def save_trigger(directory: Path, trigger: Trigger) -> None:
    """Write a trigger of the registry into ``directory``.

    Raises:
        TriggerError: no registry row knows its class.
    """
    name = next((r.name for r in rows("trigger") if r.load() is type(trigger)), None)
    if name is None:
        raise TriggerError(
            "a trigger of the registry",
            got=type(trigger).__qualname__,
            remedy="Only these can be saved: " + ", ".join(r.name for r in rows("trigger")) + ".",
        )
    fields = {f.name: getattr(trigger, f.name) for f in dataclasses.fields(cast(Any, trigger))}
    tensors: dict[str, torch.Tensor] = {}
    plain: dict[str, Any] = {}
    for key, value in fields.items():
        if isinstance(value, torch.Tensor):
            tensors[key] = value.detach().contiguous().cpu()
        elif isinstance(value, Mapping):
            named = {f"{key}/{name}": tensor for name, tensor in value.items()}
            tensors |= {name: tensor.detach().contiguous().cpu() for name, tensor in named.items()}
        else:
            plain[key] = value
    description, pictures = (directory / name for name in _FILES)
    save_file(tensors, pictures)
    write_json(description, {"version": 1, "name": name, "fields": plain})


def load_trigger(directory: Path) -> Trigger:
    """Read the trigger that :func:`save_trigger` wrote into ``directory``.

    Raises:
        TriggerError: there is none, or it cannot be read.
        SpecError: no registry row has its name.
        UnsafeFileError: a file larger than 64 MiB.
    """
    description, pictures = (directory / name for name in _FILES)
    try:
        for file in (description, pictures):
            if file.stat().st_size > _MAX_BYTES:
                raise UnsafeFileError(
                    f"at most {_MAX_BYTES:,} bytes in {file}",
                    got=f"{file.stat().st_size:,}",
                    remedy="A trigger is no larger than a picture; do not use this bundle.",
                )
        said: dict[str, Any] = json.loads(description.read_text(encoding="utf-8"))
        tensors: dict[str, Any] = {}
        for name, tensor in load_file(pictures).items():
            key, slash, part = name.partition("/")
            if slash:
                tensors.setdefault(key, {})[part] = tensor
            else:
                tensors[name] = tensor
        kind = find("trigger", said["name"]).load()
        return cast(Trigger, kind(**said["fields"], **tensors))
    except (
        OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RuntimeError,
        SafetensorError,
    ) as error:  # fmt: skip
        if isinstance(error, InputError):
            raise
        raise TriggerError(
            "a directory with trigger.json and trigger.safetensors",
            got=f"{directory} ({type(error).__name__}: {error})",
            remedy="Give a victim made by `excise plant`, or describe the trigger: "
            "badnets,size=3,row=-3,column=-3,target=0",
        ) from error
