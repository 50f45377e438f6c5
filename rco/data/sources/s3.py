"""Image folders and tars in an S3 store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, ClassVar

from rco.core.errors import InputError
from rco.core.storage.addresses import is_remote
from rco.data.sources.base import SOURCES, Info, Source, SourceKind
from rco.data.sources.places import as_dataset, has_csv_name, has_tar_name

if TYPE_CHECKING:
    from rco.data.config import DataConfig


@SOURCES.register("s3")
@dataclass(frozen=True, kw_only=True)
class Remote(SourceKind):
    """An S3 address of an image folder or of a tar."""

    summary: ClassVar[str] = "an s3:// address of an image folder or of a tar"

    @classmethod
    def claims(cls, value: str) -> bool:
        return is_remote(value) and not has_csv_name(value)

    def require(self, dataset: str) -> None:
        if not is_remote(dataset):
            raise InputError("dataset", dataset, "is not an s3:// address, as source = s3 needs it", "Leave source = auto")

    def digest(self, config: DataConfig) -> str:
        """See `rco.core.storage.contents.fingerprint`."""
        from rco.core.storage.contents import fingerprint

        with as_dataset():
            return fingerprint(config.dataset)

    def check(self, config: DataConfig) -> Info:
        """A tar is downloaded for that, to a temporary folder; of a folder, one image."""
        from rco.core.storage.contents import listing
        from rco.core.storage.transfer import fetch
        from rco.data.images import header
        from rco.data.sources.class_folders import info_of, lay_out
        from rco.data.sources.unpack import check_tar

        address = config.dataset
        with as_dataset(), TemporaryDirectory() as scratch:
            if has_tar_name(address):
                return check_tar(config, fetch(address, Path(scratch)))
            layout, paths = lay_out(address, (entry.name for entry in listing(address)), config.open_classes)
            first = fetch(f"{address.rstrip('/')}/{paths[0]}", Path(scratch))
            return info_of(layout, header(first, paths[0]), config)

    @contextmanager
    def open(self, config: DataConfig, scratch: Path) -> Iterator[Source]:
        from rco.core.storage.transfer import fetch
        from rco.data.sources.class_folders import files_source
        from rco.data.sources.unpack import extract

        with TemporaryDirectory(dir=scratch, prefix=".source-") as temporary:
            with as_dataset():
                root = fetch(config.dataset, Path(temporary) / "fetched")
            if has_tar_name(config.dataset):
                root = extract(root, Path(temporary) / "extracted", config.dataset)
            yield files_source(config, root)
