"""What local archives of an image folder have in common: a tar and a ZIP file differ in their names and, in `unpack`, in their
reader. No NumPy: flags are made of this."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, ClassVar

from rco.core.storage.addresses import is_remote
from rco.data.sources.base import Info, Source
from rco.data.sources.files import ClassFolders
from rco.data.sources.places import as_dataset, existing_file, is_local_folder, not_remote

if TYPE_CHECKING:
    from rco.data.config import DataConfig


@dataclass(frozen=True, kw_only=True)
class ArchiveFile(ClassFolders):
    """A local archive of an image folder."""

    #: What its name ends in, in small letters.
    endings: ClassVar[tuple[str, ...]]

    @classmethod
    def claims(cls, value: str) -> bool:
        return value.lower().endswith(cls.endings) and not is_remote(value) and not is_local_folder(value)

    def require(self, dataset: str) -> None:
        not_remote(dataset, self.plugin_name)

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
            source = extracted_source(config, path, Path(temporary) / "extracted")
            yield replace(source, address=str(path.resolve()), archive=path)
