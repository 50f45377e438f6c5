"""Local tars of an image folder (`unpack`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, ClassVar

from rco.core.storage.addresses import is_remote
from rco.data.sources.base import SOURCES, Info, Source, SourceKind
from rco.data.sources.places import as_dataset, existing_file, has_tar_name, is_local_folder, not_remote

if TYPE_CHECKING:
    from rco.data.config import DataConfig


@SOURCES.register("tar")
@dataclass(frozen=True, kw_only=True)
class Tar(SourceKind):
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

        existing_file(config.dataset)
        with as_dataset():
            return fingerprint(config.dataset)

    def check(self, config: DataConfig) -> Info:
        from rco.data.sources.unpack import check_tar

        return check_tar(config, existing_file(config.dataset))

    @contextmanager
    def open(self, config: DataConfig, scratch: Path) -> Iterator[Source]:
        from rco.data.sources.class_folders import files_source
        from rco.data.sources.unpack import extract

        path = existing_file(config.dataset)
        with TemporaryDirectory(dir=scratch, prefix=".source-") as temporary:
            yield files_source(config, extract(path, Path(temporary) / "extracted", config.dataset))
