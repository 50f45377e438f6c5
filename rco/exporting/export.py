"""Export of a student: every file is compared with PyTorch on real images before it counts as written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from rco.core.errors import InputError
from rco.data.dataset import MANIFEST, Dataset
from rco.data.referred import open_dataset
from rco.exporting.config import FILES
from rco.exporting.formats import (
    TOLERANCE,
    Answers,
    Exported,
    Pixels,
    difference,
    eager,
    final,
    in_batches,
    latency_ms,
    to_int8,
    to_onnx,
    to_pt2,
)
from rco.exporting.shipped import Shipped

_CALIBRATION = 512  # images
_COMPARED = 2**29  # bytes of images that are compared on, in float32


@dataclass(frozen=True)
class Images:
    """Real images to compare on.

    Attributes:
        pixels: (N, C, H, W) in 0..1.
        labels: (N,); None: not known.
        calibration: training images, likewise in 0..1.
        where: what they are, in words.
    """

    pixels: Pixels
    labels: NDArray[np.int64] | None
    calibration: Pixels
    where: str


@dataclass(frozen=True)
class Row:
    """One format of a student.

    Attributes:
        format: "PyTorch" for the eager student.
        path: of the file.
        size: bytes.
        latency_ms: of one image, median.
        difference: largest difference to PyTorch's answers, as a part of the largest one.
        accuracy: on the images, 0 to 1; without labels the part of images with the same best class as PyTorch says.
    """

    format: str
    path: str
    size: int
    latency_ms: float
    difference: float
    accuracy: float


def prepared_images(student: Shipped, home: Path) -> Images | None:
    """The validation part of the data set that the student was trained on, if it is in this home."""
    for manifest in sorted(home.glob(f"pipeline/*/prepare-data*/dataset/{MANIFEST}")):
        data = open_dataset(manifest.parent, home / "images")
        if student.data_digest and data.manifest.digest == student.data_digest:
            return images_of_data(data)
    return None


def images_of_data(data: Dataset) -> Images:
    """The validation part of a prepared data set, and training images to calibrate; of a large part what fits into 512 MiB."""
    most = max(_CALIBRATION, _COMPARED // (4 * math.prod(data.manifest.image_shape)))
    pixels, labels = _pixels(data, "val", most)
    calibration, _ = _pixels(data, "train", _CALIBRATION)
    whole = data.manifest.sizes["val"]
    return Images(pixels, labels, calibration, f"{len(pixels):,} {f'of {whole:,} ' if whole > most else ''}validation images")


def images_of(student: Shipped, paths: Sequence[Path]) -> Images:
    """Image files to compare on; the same are used to calibrate."""
    pixels = student.inputs.pixels(paths)
    return Images(pixels, None, pixels[:_CALIBRATION], f"{len(pixels):,} images")


def _pixels(data: Dataset, part: str, most: int) -> tuple[Pixels, NDArray[np.int64]]:
    """Images of a part as pixels in 0..1, evenly spaced if there are more than so many."""
    mean, std = (np.array(v, np.float32).reshape(1, -1, 1, 1) for v in (data.manifest.mean, data.manifest.std))
    found, labels = [], []
    for x, y in data.some(part, most).batches(256):
        found.append(np.clip(x.numpy() * std + mean, 0, 1).astype(np.float32))
        labels.append(y.numpy())
    return np.concatenate(found), np.concatenate(labels)


def export(student: Shipped, formats: Sequence[str], folder: Path, images: Images, *, probabilities: bool = False) -> list[Row]:
    """Write a student in these formats and measure them; the first row is PyTorch's.

    Raises:
        InputError: as `Writer.write`.
    """
    writer = Writer(student, folder, images, probabilities=probabilities)
    return [writer.eager(), *(writer.write(name) for name in formats)]


class Writer:
    """A student, written in one format after the other.

    Args:
        folder: for the files.
        images: to compare on.
        probabilities: put out probabilities, not logits.
    """

    def __init__(self, student: Shipped, folder: Path, images: Images, *, probabilities: bool = False) -> None:
        self.student, self.folder, self.images, self.probabilities = student, folder, images, probabilities
        self._plain = eager(final(student, probabilities))
        self._expected = in_batches(self._plain, images.pixels)
        self._onnx: Exported | None = None  # 8 bits are made of it
        folder.mkdir(parents=True, exist_ok=True)

    def eager(self) -> Row:
        """PyTorch's own row."""
        size = sum(t.numel() * t.element_size() for t in self.student.network.state_dict().values())
        return self._row("PyTorch", "", size, self._plain, self._expected)

    def write(self, name: str) -> Row:
        """One format, compared with PyTorch.

        Raises:
            InputError: a format whose answers differ from PyTorch's by more than `TOLERANCE` (8 bits may: their accuracy is
                said); the file is not kept. Or as the writers of `rco.exporting.formats`.
        """
        made = self._made(name, self.folder / FILES[name])
        found = in_batches(made.answers, self.images.pixels)
        if name != "int8" and not (apart := difference(self._expected, found)) <= TOLERANCE:
            made.path.unlink()
            problem = f"answers {self.images.where} otherwise than PyTorch: by {apart:.2g} of the largest answer"
            raise InputError(
                "format", name, problem, f"More than {TOLERANCE:g} is not kept; export another format, and report it"
            )
        return self._row(name, str(made.path), made.path.stat().st_size, made.answers, found)

    def _made(self, name: str, path: Path) -> Exported:
        if name == "pt2":
            return to_pt2(self.student, path, probabilities=self.probabilities)
        if name == "onnx":
            self._onnx = to_onnx(self.student, path, probabilities=self.probabilities)
            return self._onnx
        with TemporaryDirectory() as scratch:
            source = self._onnx or to_onnx(self.student, Path(scratch) / FILES["onnx"], probabilities=self.probabilities)
            return to_int8(source, path, self.images.calibration)

    def _row(self, name: str, path: str, size: int, answers: Answers, found: Pixels) -> Row:
        best = self.images.labels if self.images.labels is not None else self._expected.argmax(1)
        return Row(
            format=name,
            path=path,
            size=size,
            latency_ms=latency_ms(answers, self.student.inputs.image_shape),
            difference=difference(self._expected, found),
            accuracy=float((found.argmax(1) == best).mean()),
        )
