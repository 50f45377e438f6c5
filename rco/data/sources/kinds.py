"""What a data set holds, whatever its kind of source."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from rco.data.config import DataConfig
from rco.data.sources.base import Info, Source


def source_digest(config: DataConfig) -> str:
    """What the source holds now, as a cache key: it changes with any file. Cheap: no torch, no decoding.

    For digits, the version of the package that brings them; for the rest, see `rco.core.storage.contents.fingerprint`. A
    published data set that is missing is downloaded if it may be: only its files tell what it holds.

    Raises:
        InputError: there is no such source, or it cannot be downloaded.
    """
    return config.source.digest(config)


def check_source(config: DataConfig) -> Info:
    """What is known of a source before anything expensive is done with it: headers are read, as many as it takes to tell how
    many channels images have, and nothing is decoded.

    An archive in an S3 store is downloaded for that, to a temporary folder.

    Raises:
        InputError: no such source, missing files, no images, a bad layout, or a class too small to be split.
    """
    return config.source.check(config)


def open_source(config: DataConfig, scratch: Path) -> AbstractContextManager[Source]:
    """Read a source.

    Args:
        scratch: the folder for files that come out of a store or an archive, while the source is open.

    Raises:
        InputError: as `check_source`, a download that fails, or files that cannot be read.
    """
    return config.source.open(config, scratch)
