"""Local tars of an image folder (`unpack`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, ClassVar

from rco.core.storage.addresses import is_remote
from rco.data.sources.base import SOURCES, Info, Source
from rco.data.sources.files import ClassFolders
from rco.data.sources.places import as_dataset, existing_file, has_tar_name, is_local_folder, not_remote

if TYPE_CHECKING:
    from rco.data.config import DataConfig


@SOURCES.register("tar")
@dataclass(frozen=True, kw_only=True)
class Tar(ClassFolders):
    """A local tar of an image folder."""

    summary: ClassVar[str] = "a tar of an image folder"

    @classmethod
    def claims(cls, value: str) -> bool:
        return has_tar_name(value) and not is_remote(value) and not is_local_folder(value)

    def require(self, dataset: str) -> None:
        not_remote(dataset, "tar")

    def digest(self, config: DataConfig) -> str:
        """See `rco.core.storage.contents.fingerprint`."""
        from rco.core.storage.contents import fingerprint
        from rco.data.sources.class_order import ordered_digest

        existing_file(config.dataset)
        with as_dataset():
            return ordered_digest(fingerprint(config.dataset), self.class_order)

    def check(self, config: DataConfig) -> Info:
        from rco.data.sources.unpack import check_archive

        return check_archive(config, existing_file(config.dataset))

    @contextmanager
    def open(self, config: DataConfig, scratch: Path) -> Iterator[Source]:
        from rco.data.sources.unpack import extracted_source

        path = existing_file(config.dataset)
        with TemporaryDirectory(dir=scratch, prefix=".source-") as temporary:
            yield extracted_source(config, path, Path(temporary) / "extracted")
