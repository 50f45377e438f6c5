"""How images are brought to a network: what a student must carry with it to answer about files that it has never seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rco.core.documents import read_as, write_json
from rco.core.errors import InputError
from rco.data.dataset import Manifest
from rco.data.decoding import Decoding
from rco.data.image_file import Shape
from rco.data.images import FileImages

FILE = "inputs.json"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a network was trained on, as far as its answers depend on it.

    Attributes:
        class_names: by the number of the logit.
        image_shape: (C, H, W); one channel is grey, three are RGB.
        mean, std: of each channel of pixels in 0..1.
        decoding: how files become pixels.
    """

    class_names: tuple[str, ...]
    image_shape: Shape
    mean: tuple[float, ...]
    std: tuple[float, ...]
    decoding: Decoding = field(default_factory=Decoding)

    def __post_init__(self) -> None:
        channels, height, width = self.image_shape
        if channels not in (1, 2, 3, 4) or min(height, width) < 1 or max(height, width) > 2**14:
            raise InputError(
                "image_shape", self.image_shape, "is not a shape of images", "Take the file that a run has written"
            )
        if not len(self.mean) == len(self.std) == channels or min(self.std) <= 0:
            raise InputError("std", self.std, "is not of each channel, above 0", "Take the file of a run")

    @classmethod
    def of(cls, manifest: Manifest) -> Inputs:
        """Those of a prepared data set."""
        return cls(
            class_names=manifest.class_names,
            image_shape=manifest.image_shape,
            mean=manifest.mean,
            std=manifest.std,
            decoding=manifest.decoding,
        )

    @classmethod
    def read(cls, folder: Path) -> Inputs:
        """Those of the student in a folder.

        Raises:
            InputError: the file is missing or is not one.
        """
        if not (folder / FILE).is_file():
            problem = f"has no {FILE}, which says how its images are prepared: it is of a version before 0.2"
            raise InputError("student", str(folder), problem, "Run it again: what was trained is found")
        return read_as(cls, folder / FILE, "Run it again: what was trained is found")

    def write(self, folder: Path) -> None:
        """Write them into a student's folder."""
        write_json(folder / FILE, self)

    def pixels(self, paths: Sequence[Path], threads: int = 1) -> NDArray[np.float32]:
        """Image files as in training, but for the normalisation: (N, C, H, W) in 0..1.

        Args:
            paths: of files of any size; they are brought to this one as in training.

        Raises:
            InputError: a file that is not a readable image, or a network that takes other than grey or RGB.
        """
        channels, height, width = self.image_shape
        if channels not in (1, 3):
            raise InputError("image_shape", self.image_shape, "is neither grey nor RGB", "Image files have 1 or 3 channels")
        if height != width:
            raise InputError("image_shape", self.image_shape, "is not square", "Files are brought to a square")
        files = FileImages(Path(), [str(path) for path in paths], self.image_shape, resize=True, decoding=self.decoding)
        return files.read(np.arange(len(paths)), threads).astype(np.float32) / np.float32(255)
