"""The kinds of source there are: which of them a data set is, and what it holds."""

from __future__ import annotations

from contextlib import AbstractContextManager
from difflib import get_close_matches
from pathlib import Path

from rco.core.errors import InputError
from rco.core.storage.addresses import local_path
from rco.data.config import DataConfig
from rco.data.sources.base import Info, Source, SourceKind, as_dataset
from rco.data.sources.digits import Digits
from rco.data.sources.folder import Folder
from rco.data.sources.published import PublishedFiles
from rco.data.sources.remote import Remote
from rco.data.sources.tar import TARS, Tar

# Asked in this order.
_KINDS: tuple[SourceKind, ...] = (Digits(), PublishedFiles(), Remote(), Tar(), Folder())


def source_digest(config: DataConfig) -> str:
    """What the source holds now, as a cache key: it changes with any file. Cheap: no torch, no decoding.

    For digits, the version of the package that brings them; for the rest, see `rco.core.storage.contents.fingerprint`. A
    published data set that is missing is downloaded if it may be: only its files tell what it holds.

    Raises:
        InputError: there is no such source, or it cannot be downloaded.
    """
    return _kind_of(config).digest(config)


def check_source(config: DataConfig) -> Info:
    """What is known of a source before anything expensive is done with it; only the first image's header is read.

    A tar in an S3 store is downloaded for that, to a temporary folder.

    Raises:
        InputError: no such source, missing files, no images, a bad layout, or a class too small to be split.
    """
    return _kind_of(config).check(config)


def open_source(config: DataConfig, scratch: Path) -> AbstractContextManager[Source]:
    """Read a source.

    Args:
        scratch: the folder for files that come out of a store or a tar, while the source is open.

    Raises:
        InputError: as `check_source`, a download that fails, or files that cannot be read.
    """
    return _kind_of(config).open(config, scratch)


def _kind_of(config: DataConfig) -> SourceKind:
    for kind in _KINDS:
        if kind.accepts(config):
            return kind
    name = config.dataset
    with as_dataset():
        path = local_path(name)
    if path.is_file():
        raise InputError(
            "dataset", name, "is a file, but not a tar", f"Give a folder, or a file that ends in {', '.join(TARS)}"
        )
    names = tuple(name for kind in _KINDS for name in kind.names)
    near = get_close_matches(name.lower(), names, n=1)
    raise InputError(
        "dataset",
        name,
        "is neither a known data set nor an existing folder or tar",
        (f"Did you mean {near[0]!r}? " if near else "") + f"Known: {', '.join(names)}; else give a path or an s3:// address",
    )
