"""What the address of a source names: a file, a folder, nothing at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

from rco.core.errors import InputError
from rco.core.storage.addresses import is_remote, local_path
from rco.data.sources.base import SOURCES

#: What the names of tars end in.
TARS = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2")
ZIP = ".zip"
CSV = ".csv"


def has_tar_name(address: str) -> bool:
    """Whether a file of this name would be a tar."""
    return address.lower().endswith(TARS)


def has_zip_name(address: str) -> bool:
    """Whether a file of this name would be a ZIP file."""
    return address.lower().endswith(ZIP)


def has_archive_name(address: str) -> bool:
    """Whether a file of this name would be a tar or a ZIP file."""
    return has_tar_name(address) or has_zip_name(address)


def has_csv_name(address: str) -> bool:
    """Whether a file of this name would be a CSV file."""
    return address.lower().endswith(CSV)


def is_local_folder(address: str) -> bool:
    """Whether there is a local folder, whatever its name.

    Raises:
        InputError: an address that cannot be read.
    """
    with as_dataset():
        return not is_remote(address) and local_path(address).is_dir()


def existing_file(dataset: str) -> Path:
    """The local file that `dataset` names.

    Raises:
        InputError: there is none.
    """
    with as_dataset():
        path = local_path(dataset)
    if path.is_dir():
        raise InputError("dataset", dataset, "is a folder, and this source a file", "Leave source = auto")
    if not path.is_file():
        raise not_there(dataset)
    return path


def not_there(dataset: str) -> InputError:
    """The refusal of a path where nothing is: it may be a name that was misspelt."""
    names = tuple(name for kind in SOURCES for name in kind.names)
    if dataset in names:
        problem = "is the name of a data set, and no file or folder is called so"
        return InputError("dataset", dataset, problem, "Leave source = auto, or give a path")
    near = get_close_matches(dataset.lower(), names, n=1)
    return InputError(
        "dataset",
        dataset,
        "is neither a known data set nor an existing folder, tar, ZIP or CSV file",
        (f"Did you mean {near[0]!r}? " if near else "") + f"Known: {', '.join(names)}; else give a path or an s3:// address",
    )


def not_remote(dataset: str, kind: str) -> None:
    """Raise InputError if `dataset` lies in a store, which this kind does not read."""
    if is_remote(dataset):
        raise InputError("dataset", dataset, f"is in a store, and source = {kind} reads local files", "Leave source = auto")


@contextmanager
def as_dataset() -> Iterator[None]:
    """Complaints about an address become complaints about the setting it came from."""
    try:
        yield
    except InputError as error:
        raise (error.renamed("dataset") if error.parameter == "uri" else error) from None
