"""Local tars of an image folder (`unpack`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rco.data.sources.archive_file import ArchiveFile
from rco.data.sources.base import SOURCES
from rco.data.sources.places import TARS


@SOURCES.register("tar")
@dataclass(frozen=True, kw_only=True)
class Tar(ArchiveFile):
    """A local tar of an image folder."""

    summary: ClassVar[str] = "a tar of an image folder"
    endings: ClassVar[tuple[str, ...]] = TARS
