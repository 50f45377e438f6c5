"""Local ZIP files of an image folder (`unpack`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rco.data.sources.archive_file import ArchiveFile
from rco.data.sources.base import SOURCES
from rco.data.sources.places import ZIP


@SOURCES.register("zip")
@dataclass(frozen=True, kw_only=True)
class Zip(ArchiveFile):
    """A local ZIP file of an image folder."""

    summary: ClassVar[str] = "a ZIP file of an image folder"
    endings: ClassVar[tuple[str, ...]] = (ZIP,)
