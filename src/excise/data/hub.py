"""Data sets of the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from excise.data.listing import Splits
from excise.data.parquet import find_files, parquet
from excise.errors import DataError

__all__ = ["hub"]


def hub(name: str, *, root: Path | None = None) -> Splits:
    """List a data set of the Hugging Face hub; only its parquet files are downloaded.

    Where a set has no parquet files of its own, the hub's converted copy of it is used.

    Args:
        name: ``OWNER/NAME``.
        root: folder to download into; by default the hub's own cache.

    Raises:
        DataError: a malformed name, a failed download, or no parquet files.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RevisionNotFoundError

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise DataError(
            "hub:OWNER/NAME", got=f"hub:{name}", remedy="Write for example hub:ylecun/mnist."
        )
    for revision in (None, "refs/convert/parquet"):
        try:
            folder = snapshot_download(
                name,
                repo_type="dataset",
                revision=revision,
                cache_dir=root,
                allow_patterns=["*.parquet"],
            )
        except RevisionNotFoundError:  # the hub made no converted copy
            break
        except Exception as error:  # a download fails with the errors of several libraries
            raise DataError(
                f"the data set {name} from the Hugging Face hub",
                got=f"{type(error).__name__}: {_first_line(error)}",
                remedy="Check the name and the network, or download it and use parquet:DIR.",
            ) from error
        if find_files(folder):
            return parquet(folder)
    raise DataError(
        f"parquet files in the data set {name}",
        got="none",
        remedy="Download it in its own format and use a folder with one subfolder per class.",
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
