"""Everything Excise raises on purpose.

::

    ExciseError
    ├── InputError (also ValueError)   what the caller gave cannot be used; the CLI exits 2
    │   ├── SpecError                  an unknown name or key, or a value out of range
    │   ├── DataError                  images, labels, class folders, splits
    │   ├── TriggerError               a trigger that does not fit its images
    │   └── ModelError                 a network or its weights
    │       └── UnsafeFileError        a file that would run code, or is larger than allowed
    └── DivergedError                  a loss stopped being finite; the last good state is kept

Every :class:`InputError` says what was expected, what was got, and what to do about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "DataError",
    "DivergedError",
    "ExciseError",
    "InputError",
    "ModelError",
    "SpecError",
    "TriggerError",
    "UnsafeFileError",
    "nearest",
]


class ExciseError(Exception):
    """Base of every error Excise raises on purpose."""


class InputError(ExciseError, ValueError):
    """What the caller gave cannot be used.

    Args:
        expected: what would have been accepted, without the word "expected".
        got: what was given instead.
        remedy: what to do about it, one sentence.
    """

    def __init__(self, expected: str, *, got: str, remedy: str) -> None:
        super().__init__(f"expected {expected}, got {got}. {remedy}")
        self.expected, self.got, self.remedy = expected, got, remedy

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process borders (data workers, later Ray); keyword-only arguments
        # need this to survive pickling.
        return _rebuild, (type(self), self.expected, self.got, self.remedy)


def _rebuild(kind: type[InputError], expected: str, got: str, remedy: str) -> InputError:
    return kind(expected, got=got, remedy=remedy)


class SpecError(InputError):
    """An unknown name or key, or a value out of its range."""


class DataError(InputError):
    """Images, labels, class folders or splits that cannot be used."""


class TriggerError(InputError):
    """A trigger that does not fit the images it should be put on."""


class ModelError(InputError):
    """A network or its weights that cannot be used."""


class UnsafeFileError(ModelError):
    """A file that would run code when loaded, or that is larger than allowed."""


class DivergedError(ExciseError):
    """A loss stopped being finite."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the sentence that offers the nearest known name, or lists all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"Did you mean {close[0]!r}?"
    return f"Known: {', '.join(names)}." if names else "None is known yet."
