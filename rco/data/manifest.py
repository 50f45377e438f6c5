"""What a prepared data set is, as its manifest says."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from os.path import isabs
from pathlib import Path, PurePath
from typing import Any

from rco.core.errors import InputError
from rco.core.settings import has_credentials, jsonable
from rco.data.account import Account
from rco.data.config import LARGEST_IMAGE
from rco.data.decoding import Decoding
from rco.data.image_file import Shape

MANIFEST = "manifest.json"
PARTS = ("train", "val", "test")
OPEN = "open"
_LARGEST = 2**16  # pixels


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where image files lie that are neither in the prepared data set nor in a folder that every task sees.

    Args:
        address: of a folder in a store, or of an archive, in a store or on a file system that every task sees; empty: none.
        archive: whether it is an archive. Of the files of a folder there are digests (`digests_file`).
        sha256: hex: of the archive; of a folder, of the names and digests of all files that are used.
    """

    address: str = ""
    archive: bool = False
    sha256: str = ""

    def __post_init__(self) -> None:
        if not (self.address or self.archive or self.sha256):
            return
        there = self.address.startswith("s3://") or (self.archive and isabs(self.address))
        if not there or has_credentials(self.address) or not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise InputError("origin", "...", "is not a place from which image files are brought", "Prepare it again")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a prepared data set is.

    Args:
        source: what the user called it.
        source_digest: what the source held; see `source_digest`.
        digest: hex sha256 of the prepared content, wherever it lies.
        storage: "arrays" or "files".
        root: folder of the files, absolute or relative to the data set; empty for arrays, and where there is an origin.
        resize: whether files are brought to `image_shape` when read; else they have it.
        num_classes: K.
        class_names: of the K classes, by label. Open classes are not among them.
        image_shape: (C, H, W), as the student takes them.
        mean: of each channel of the training images scaled to 0..1 (files: of 4,096 images, evenly spaced); or `image_mean`.
        std: likewise; at least one grey level, for it is divided by; or `image_std`.
        sizes: images in "train", "val" and "test", and in "open" if there are open classes.
        probe: the validation images, by number, on which hardness is measured.
        open_classes: name -> label of the classes that nothing is trained on; the labels are those of the source.
        decoding: how files become pixels.
        account: what became of the source, for people; older data sets have none.
        kept_size: height and width of the images as they are kept, where they are larger than the student takes them: for a
            teacher (`rco.data.network_input`); 0: as `image_shape` says.
        origin: from where the files are brought when they are asked for (`rco.data.referred`).
    """

    source: str
    source_digest: str
    digest: str
    storage: str
    root: str
    resize: bool
    num_classes: int
    class_names: tuple[str, ...]
    image_shape: Shape
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sizes: dict[str, int]
    probe: tuple[int, ...]
    open_classes: dict[str, int] = field(default_factory=dict)
    decoding: Decoding = field(default_factory=Decoding)
    account: Account = field(default_factory=Account)
    kept_size: int = 0
    origin: Origin = field(default_factory=Origin)

    def __post_init__(self) -> None:
        channels, height, width = self.image_shape
        colours = (1, 3) if self.storage == "files" else (1, 2, 3, 4)  # files are decoded as grey or as colour
        wrong = {
            "storage": self.storage not in ("arrays", "files"),
            "num_classes": self.num_classes < 2,
            "class_names": len(self.class_names) != self.num_classes,
            "image_shape": channels not in colours or not (1 <= height <= _LARGEST and 1 <= width <= _LARGEST),
            "resize": self.resize and (height != width or height > LARGEST_IMAGE),
            "mean": len(self.mean) != channels or not all(map(math.isfinite, self.mean)),
            "std": len(self.std) != channels or not all(math.isfinite(v) and v > 0 for v in self.std),
            "sizes": set(self.sizes) != {*PARTS, *([OPEN] if self.open_classes else [])} or min(self.sizes.values()) < 0,
            "probe": not all(0 <= row < self.sizes.get("val", 0) for row in self.probe),
            "kept_size": self.kept_size != 0 and not max(height, width) < self.kept_size <= LARGEST_IMAGE,
            "root": ".." in PurePath(self.root).parts,
            "origin": bool(self.origin.address) and (self.storage != "files" or self.root != ""),
        }
        for name, is_wrong in wrong.items():
            if is_wrong:
                raise InputError(name, getattr(self, name), "is not what a prepared data set has", "Prepare it again")

    @property
    def kept_shape(self) -> Shape:
        """(C, H, W) of the images as they are kept, and augmented."""
        channels, height, width = self.image_shape
        return channels, self.kept_size or height, self.kept_size or width

    @property
    def written(self) -> dict[str, Any]:
        """As it is written. What is as it was before there was a choice is left out: such data sets are older."""
        words = jsonable(self)
        defaults = {"open_classes": {}, "decoding": Decoding(), "account": Account(), "kept_size": 0, "origin": Origin()}
        for name, default in defaults.items():
            if getattr(self, name) == default:
                del words[name]
        return dict(words)


def part_file(folder: Path, manifest: Manifest, part: str) -> Path:
    """Where one part's labels are, with its images or their paths."""
    return folder / f"{part}.{'json' if manifest.storage == 'files' else 'safetensors'}"


def digests_file(folder: Path, part: str) -> Path:
    """Where the sizes and digests of a part's files are, if they lie in a store: `sizes` (N,) int64, `sha256` (N, 32) uint8."""
    return folder / f"{part}.digests.safetensors"
