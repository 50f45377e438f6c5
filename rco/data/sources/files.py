"""The settings of sources whose images are files. No NumPy: flags are made of this."""

from __future__ import annotations

from dataclasses import dataclass

from rco.core.errors import InputError, UnusedError
from rco.core.settings import setting
from rco.data.decoding import CHANNELS, FITS, MOST_MEGAPIXELS, SIXTEEN_BITS, Decoding
from rco.data.sources.base import SourceKind

#: In place of folders: there are no parts, the folders are classes.
NONE = "none"


@dataclass(frozen=True, kw_only=True)
class ImageFiles(SourceKind):
    """A kind of source whose images are files."""

    class_order: tuple[str, ...] = setting(
        ("sorted",),
        "how classes are numbered: sorted | natural (1, 2, 10) | all names in order | a file of them (a line each, or JSON)",
    )
    skip_broken: bool = setting(False, "leave out image files that cannot be read, and say so (else they are refused)")
    image_fit: str = setting("crop", f"how image_size makes images square: {' | '.join(FITS)} (crop: the centre; pad: black)")
    image_channels: int = setting(0, "1: read all images as grey; 3: as RGB; 0: as grey if all files are, else as RGB")
    alpha_background: str = setting("white", "colour on which transparent images are laid: a name, or #rrggbb")
    max_megapixels: float = setting(MOST_MEGAPIXELS, "largest image that is decoded, in millions of pixels")
    white_level: int = setting(SIXTEEN_BITS, "value of 16-bit grey images that becomes white (4095 for 12 bits)")

    def __post_init__(self) -> None:
        if not all(name.strip() for name in self.class_order):
            raise InputError("class_order", self.class_order, "has an empty name", "Give sorted, natural, names or a file")
        if self.image_channels not in CHANNELS:
            raise InputError("image_channels", self.image_channels, "is not 0, 1 or 3", "0 lets the files decide")
        self.decoding  # noqa: B018 (what cannot work is refused here)

    @property
    def decoding(self) -> Decoding:
        """How the files are decoded."""
        return Decoding(
            fit=self.image_fit,
            alpha_background=self.alpha_background,
            max_megapixels=self.max_megapixels,
            white_level=self.white_level,
        )

    def require_size(self, image_size: int) -> None:
        """Refuse a choice that only resizing would look at.

        Raises:
            UnusedError: images keep their size, and `image_fit` says how they would be resized.
        """
        if not image_size and self.image_fit != "crop":
            raise UnusedError(
                "image_fit", self.image_fit, "means nothing without image_size", "Leave it out, or set image_size"
            )


@dataclass(frozen=True, kw_only=True)
class ClassFolders(ImageFiles):
    """A kind of source whose images lie in class folders."""

    part_folders: tuple[str, ...] = setting(
        (),
        "which folders are parts: train=FOLDER,val=FOLDER,test=FOLDER | none (all are classes); empty: those with the usual "
        "names (train, Training, training_set, valid, val, dev, test, Testing, ...)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        named_parts(self.part_folders)


def named_parts(words: tuple[str, ...]) -> dict[str, str] | None:
    """What `part_folders` says: part -> folder; none: no parts; None: the usual names.

    Raises:
        InputError: it is not readable.
    """
    if not words or words == (NONE,):
        return {} if words else None
    remedy = f"Write train=FOLDER,test=FOLDER (val=FOLDER if there is one), or {NONE}"
    found: dict[str, str] = {}
    for word in words:
        part, separator, folder = word.partition("=")
        part, folder = part.strip().lower(), folder.strip().strip("/").removeprefix("./")
        if not separator or part not in ("train", "val", "test") or not folder:
            raise InputError("part_folders", list(words), f"has {word!r}", remedy)
        if part in found or folder in found.values():
            raise InputError("part_folders", list(words), f"names {word!r} twice", remedy)
        found[part] = folder
    if "train" not in found:
        raise InputError("part_folders", list(words), "lacks the folder of train", remedy)
    return found
