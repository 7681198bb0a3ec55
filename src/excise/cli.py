"""The command line: ``excise COMMAND``. Each command is a dataclass in :mod:`excise.commands`.

Exit status: 0 fine, 1 a finding (the repair is incomplete), 2 bad input, 3 an unexpected failure;
130 if interrupted; 141 if who reads what it prints has gone.
"""

from __future__ import annotations

import errno
import importlib
import io
import keyword
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from types import FrameType
from typing import Any

from excise.errors import DivergedError, InputError, nearest

__all__ = ["main"]

#: What each command does, in the order a newcomer meets them; modules load only when used.
COMMANDS = {
    "demo": "a backdoored network planted, repaired, reported: no download, under a minute",
    "plant": "train a network with a backdoor in it, or its clean twin, into a bundle",
    "scan": "is there a backdoor in a network? Which class it leads to, and what it looks like",
    "repair": "cut the backdoor out of a network with a few clean images",
    "evaluate": "measure a network, or compare two: accuracy, attack success, recovery",
    "scan-images": "which pictures of a folder look as if they carried a trigger, and why",
    "sweep": "run a grid of experiments that survives interruption and remembers every result",
    "gallery": "a page of victims side by side: every attack on the same images, and its spectrum",
    "leaderboard": "rank the defenses of a sweep: tables, and a page that sorts and filters",
    "import": "make a bundle of a network that another project's tools wrote",
    "report": "write the page of a finished repair again",
    "list": "what there is: attacks, defenses, inverters, scanners, detectors, models, data",
}

#: Errors of the system that mean a wrong or full place was given, not a fault of ours.
_PLACE = {
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EROFS,
    errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG, errno.EEXIST,
    errno.EBUSY, errno.EXDEV,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console that has no ρ gets a question mark
            stream.reconfigure(errors="replace")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help", "help"):
        print(_help())
        return 0
    if name in ("-V", "--version"):
        print(f"excise {version('excise')}")
        return 0
    if name not in COMMANDS:
        _complain(f"excise: expected a command, got {name!r}. {nearest(name, COMMANDS)}")
        return 2
    with _told_to_end(), _plain_warnings():
        return _run(name, arguments[1:])


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Say our own warnings as messages, without the line of code that they come from."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **how: Any) -> None:
            if category.__module__.partition(".")[0] == "excise":
                _complain(f"warning: {message}")
            else:
                usual(message, category, *where, **how)

        warnings.showwarning = show
        yield


@contextmanager
def _told_to_end() -> Iterator[None]:
    """Treat SIGTERM, a scheduler's way to end a job, like Ctrl-C: nothing half-written stays."""
    if threading.current_thread() is not threading.main_thread():  # no signals there
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _run(name: str, arguments: list[str]) -> int:
    try:
        # No module can be called import.
        module = name.replace("-", "_") + "_" * keyword.iskeyword(name)
        status = importlib.import_module(f"excise.commands.{module}").run(arguments)
        sys.stdout.flush()
    except SystemExit as stop:  # the parser's own: 0 after --help, 2 after a wrong flag
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        _complain(f"excise {name}: interrupted; nothing was left half-written.")
        return 130
    except (InputError, DivergedError) as error:
        _complain(f"excise {name}: {error}")
        return 2
    except BrokenPipeError:  # who read on, such as head, had enough: what a shell says of SIGPIPE
        # What is left in the buffer would raise once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in _PLACE:
            return _fail(name)
        where = f" ({error.filename})" if error.filename else ""
        _complain(
            f"excise {name}: expected a readable input and a writable output, "
            f"got: {error.strerror}{where}. Check the path and the free space."
        )
        return 2
    except Exception:  # the outermost place: say so, with all there is to report it
        return _fail(name)
    return int(status)


def _fail(name: str) -> int:
    traceback.print_exc()
    _complain(f"excise {name}: an unexpected failure; please report it with the lines above.")
    return 3


def _complain(message: str) -> None:
    print(message, file=sys.stderr)


def _help() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return f"""\
usage: excise COMMAND [OPTIONS]

Cuts backdoors out of trained image classifiers with a handful of clean images.

commands:
{commands}

  excise COMMAND --help shows a command's options; excise --version the version.

exit status: 0 fine, 1 a finding (the repair is incomplete), 2 bad input, 3 an unexpected failure
"""
