"""Which folder, or named label, stands for which output of the network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from excise.errors import DataError, nearest
from excise.types import Labelled

__all__ = ["ClassMap", "Names", "class_map", "describe_classes"]

#: Names in the order of the network's outputs, or {name: output}, or a JSON file with either.
Names = Sequence[str] | Mapping[str, int] | str | Path


@dataclass(frozen=True)
class ClassMap:
    """Names matched to outputs.

    Args:
        classes: a name for each output of the network.
        outputs: for each name found in the data, the output it stands for; empty where the data
            has no names and label k is output k.
    """

    classes: tuple[str, ...]
    outputs: tuple[int, ...]


def class_map(found: Sequence[str] | None, given: Names) -> ClassMap:
    """Match the names found in the data to the outputs the caller stated.

    Args:
        found: the names in the data, by label; None where the data has only numbers.
        given: see :data:`Names`. An output no name is given for is called ``class 7``. An output
            without data is fine; data without an output is not.

    Raises:
        DataError: the map is malformed, or a name in the data is missing from it.
    """
    outputs = _outputs(_from_json(given) if isinstance(given, str | Path) else given)
    names = {output: name for name, output in outputs.items()}
    classes = tuple(names.get(k, f"class {k}") for k in range(max(names) + 1))
    if found is None:
        return ClassMap(classes, ())
    for name in found:
        if name not in outputs:
            raise DataError(
                f"every image to be of one of the {len(outputs)} known classes",
                got=f"images of {name!r}",
                remedy=nearest(name, outputs),
            )
    return ClassMap(classes, tuple(outputs[name] for name in found))


def describe_classes(images: Labelled, *, given: bool = False) -> str:
    """Return which class stands for which output, one line each, for a person to check.

    Args:
        images: what :func:`excise.data.load_images` or ``list_images`` returned.
        given: whether the caller stated the order (``classes=``).
    """
    names = images.classes
    head = "Classes in the order of the network's outputs"
    if not given:
        head += (
            " (sorted by name, since no order was given; give a class map if the network's differs)"
        )
    lines = [f"{head}:"]
    numeric = all(name.isdigit() for name in names)
    if not given and numeric and list(names) != sorted(names, key=int):
        lines.append("  Note: names are sorted as text, so 10 comes before 2.")
    for output, (name, count) in enumerate(zip(names, images.counts(), strict=True)):
        lines.append(f"  {output:>3}  {name}  ({count} image{'s' * (count != 1)})")
    return "\n".join(lines)


def _from_json(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            "a JSON file with the class names in output order, or {name: output}",
            got=f"{str(path)!r} ({error})",
            remedy="Check the path and that it is valid JSON.",
        ) from error


def _outputs(given: Any) -> dict[str, int]:
    """Return {name: output} from a list of names or from such a mapping, checked."""
    if isinstance(given, Mapping):
        outputs = dict(given)
    elif isinstance(given, Sequence) and not isinstance(given, str):
        outputs = {name: output for output, name in enumerate(given)}
        if len(outputs) < len(given):
            twice = next(name for name in given if list(given).count(name) > 1)
            raise DataError(
                "every class name once", got=f"{twice!r} twice", remedy="Give each its own name."
            )
    else:
        outputs = {}
    if not outputs or not all(isinstance(name, str) for name in outputs):
        raise DataError(
            "class names in output order, or {name: output}",
            got=repr(given)[:80],
            remedy='Write for example ["cat", "dog"] or {"cat": 0, "dog": 1}.',
        )
    taken: dict[int, str] = {}
    for name, output in outputs.items():
        if not isinstance(output, int) or isinstance(output, bool) or output < 0:
            raise DataError(
                "output numbers from 0", got=f"{name!r}: {output!r}", remedy="Count outputs from 0."
            )
        if output in taken:
            raise DataError(
                "every output once",
                got=f"output {output} for both {taken[output]!r} and {name!r}",
                remedy="Give each class an output of its own.",
            )
        taken[output] = name
    return outputs
