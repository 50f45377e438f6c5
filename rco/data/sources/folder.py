"""Local image folders: classes are folders (`class_folders`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rco.core.errors import InputError
from rco.core.storage.addresses import local_path
from rco.data.sources.base import SOURCES, Info, Source
from rco.data.sources.files import ClassFolders
from rco.data.sources.places import as_dataset, has_archive_name, has_csv_name, not_remote, not_there

if TYPE_CHECKING:
    from rco.data.config import DataConfig


@SOURCES.register("folder")
@dataclass(frozen=True, kw_only=True)
class Folder(ClassFolders):
    """A local image folder; it takes what no other kind claims."""

    summary: ClassVar[str] = "an image folder"

    def require(self, dataset: str) -> None:
        not_remote(dataset, "folder")

    def digest(self, config: DataConfig) -> str:
        """See `rco.core.storage.contents.fingerprint`."""
        from rco.core.storage.contents import fingerprint
        from rco.data.sources.class_order import ordered_digest

        _existing(config.dataset)
        with as_dataset():
            return ordered_digest(fingerprint(config.dataset), self.class_order)

    def check(self, config: DataConfig) -> Info:
        from rco.data.images import FileImages
        from rco.data.sources.class_folders import files_source, info_of

        source = files_source(config, _existing(config.dataset))
        assert isinstance(source.images, FileImages)
        return info_of(source.layout, source.images.shape, config)

    @contextmanager
    def open(self, config: DataConfig, scratch: Path) -> Iterator[Source]:
        from rco.data.sources.class_folders import files_source

        yield files_source(config, _existing(config.dataset))


def _existing(dataset: str) -> Path:
    with as_dataset():
        path = local_path(dataset)
    if path.is_file():
        problem, remedy = "is a file, and source = folder reads folders", "Leave source = auto"
        if not (has_archive_name(dataset) or has_csv_name(dataset)):
            problem = "is a file, but not a tar, a ZIP or a CSV file by its name"
            remedy = "Give a folder, or say what the file is: source = tar, source = zip or source = csv"
        raise InputError("dataset", dataset, problem, remedy)
    if not path.is_dir():
        raise not_there(dataset)
    return path
