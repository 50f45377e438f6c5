"""Image folders and archives in an S3 store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, ClassVar

from rco.core.errors import InputError
from rco.core.storage.addresses import is_remote
from rco.data.sources.base import SOURCES, Info, Source
from rco.data.sources.files import ClassFolders
from rco.data.sources.places import as_dataset, has_archive_name, has_csv_name

if TYPE_CHECKING:
    from rco.data.config import DataConfig


@SOURCES.register("s3")
@dataclass(frozen=True, kw_only=True)
class Remote(ClassFolders):
    """An S3 address of an image folder or of an archive."""

    summary: ClassVar[str] = "an s3:// address of an image folder, a tar or a ZIP file"

    @classmethod
    def claims(cls, value: str) -> bool:
        return is_remote(value) and not has_csv_name(value)

    def require(self, dataset: str) -> None:
        if not is_remote(dataset):
            raise InputError("dataset", dataset, "is not an s3:// address, as source = s3 needs it", "Leave source = auto")

    def digest(self, config: DataConfig) -> str:
        """See `rco.core.storage.contents.fingerprint`."""
        from rco.core.storage.contents import fingerprint
        from rco.data.sources.class_order import ordered_digest

        with as_dataset():
            return ordered_digest(fingerprint(config.dataset), self.class_order)

    def check(self, config: DataConfig) -> Info:
        """An archive is downloaded for that, to a temporary folder; of a folder, the first image, and while all are grey, the
        next ones."""
        from rco.core.storage.contents import listing
        from rco.core.storage.transfer import fetch
        from rco.data.sources.class_folders import info_of, lay_out_as
        from rco.data.sources.remote_headers import shape_of
        from rco.data.sources.unpack import check_archive

        address = config.dataset
        with as_dataset(), TemporaryDirectory() as scratch:
            if has_archive_name(address):
                return check_archive(config, fetch(address, Path(scratch)))
            layout, paths = lay_out_as(config, (entry.name for entry in listing(address)))
            return info_of(layout, shape_of(address.rstrip("/"), paths, self), config)

    @contextmanager
    def open(self, config: DataConfig, scratch: Path) -> Iterator[Source]:
        from rco.core.storage.transfer import fetch
        from rco.data.sources.class_folders import files_source
        from rco.data.sources.unpack import extracted_source

        with TemporaryDirectory(dir=scratch, prefix=".source-") as temporary:
            with as_dataset():
                root = fetch(config.dataset, Path(temporary) / "fetched")
            if has_archive_name(config.dataset):
                source = extracted_source(config, root, Path(temporary) / "extracted")
                yield replace(source, address=config.dataset, archive=root)
            else:
                yield replace(files_source(config, root), address=config.dataset)
