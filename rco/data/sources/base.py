"""What a kind of data source is, and what is known of a source before its images are read. No NumPy: flags are made of this."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rco.core.errors import InputError
from rco.core.plugins import Plugin, Registry

if TYPE_CHECKING:
    from rco.data.config import DataConfig
    from rco.data.image_file import Shape
    from rco.data.images import Images
    from rco.data.sources.layout import Layout


@dataclass(frozen=True)
class Info:
    """What can be told of a source without decoding its images.

    Args:
        num_classes: how many classes, without the open ones.
        class_names: their names; empty if only reading the source tells them.
        image_shape: (C, H, W), as the headers of the images promise: as many are looked at as it takes.
        counts: images of each part that the source has.
    """

    num_classes: int
    class_names: tuple[str, ...]
    image_shape: Shape
    counts: dict[str, int]


@dataclass(frozen=True)
class Source:
    """A source that is open: its layout, and images whose rows the layout speaks of.

    Args:
        address: of the folder or archive that files were fetched or unpacked from, if they can be had there again: all tasks
            see it, and the paths of the images are relative to it. Empty: there is no such place.
        archive: the local copy of what is there, if it is an archive.
    """

    layout: Layout
    images: Images
    address: str = ""
    archive: Path | None = None


class SourceKind(Plugin, ABC):
    """One kind of source: `dataset` is a name or an address of this kind. `claims` says so by the text of `dataset`."""

    #: The data sets that it knows by name; of addresses, none.
    names: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def claims(cls, value: str) -> bool:
        return value in cls.names

    def require(self, dataset: str) -> None:
        """Refuse, by its text alone, a data set that this kind cannot read, if it was chosen by its name.

        Raises:
            InputError: it is of another kind.
        """
        if self.names and dataset not in self.names:
            raise InputError(
                "dataset",
                dataset,
                f"is not one of source = {self.plugin_name}, which are {', '.join(self.names)}",
                "Name one of these, or leave source = auto",
            )

    @abstractmethod
    def digest(self, config: DataConfig) -> str:
        """As `rco.data.sources.kinds.source_digest`."""

    @abstractmethod
    def check(self, config: DataConfig) -> Info:
        """As `rco.data.sources.kinds.check_source`."""

    @abstractmethod
    def open(self, config: DataConfig, scratch: Path) -> AbstractContextManager[Source]:
        """As `rco.data.sources.kinds.open_source`."""


SOURCES: Registry[SourceKind] = Registry(
    "source",
    SourceKind,  # type: ignore[type-abstract]
    package="rco.data.sources",
    helpers=(
        *("archive_file", "base", "class_folders", "class_order", "csv_rows", "files", "kinds", "layout", "parts", "places"),
        *("published_files", "remote_headers", "tree", "unpack", "unzip"),
    ),
    group="rco.sources",
    follows="dataset",
    otherwise="folder",
)


def resized(shape: Shape, config: DataConfig) -> Shape:
    """The shape (C, H, W) that an image of this shape is brought to."""
    channels, height, width = shape
    return channels, config.image_size or height, config.image_size or width
