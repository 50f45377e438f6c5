"""Export of a student: every file is compared with PyTorch on real images before it counts as written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rco.core.errors import InputError
from rco.data.dataset import MANIFEST, Dataset
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

FORMATS = ("onnx", "pt2", "int8")
_CALIBRATION = 512  # images


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
        data = Dataset.open(manifest.parent)
        if student.data_digest and data.manifest.digest == student.data_digest:
            validation, labels = _pixels(data, "val")
            training, _ = _pixels(data, "train", _CALIBRATION)
            return Images(validation, labels, training, f"{len(validation):,} validation images")
    return None


def images_of(student: Shipped, paths: Sequence[Path]) -> Images:
    """Image files to compare on; the same are used to calibrate."""
    pixels = student.inputs.pixels(paths)
    return Images(pixels, None, pixels[:_CALIBRATION], f"{len(pixels):,} images")


def _pixels(data: Dataset, part: str, most: int | None = None) -> tuple[Pixels, NDArray[np.int64]]:
    """Images of a part as pixels in 0..1, evenly spaced if there are more than so many."""
    split = data.split(part)
    mean, std = (np.array(v, np.float32).reshape(1, -1, 1, 1) for v in (data.manifest.mean, data.manifest.std))
    found, labels, taken = [], [], 0
    every = max(1, len(split) // most) if most else 1
    for x, y in split.batches(256):
        keep = np.arange((-taken) % every, len(y), every)
        found.append(np.clip(x.numpy()[keep] * std + mean, 0, 1).astype(np.float32))
        labels.append(y.numpy()[keep])
        taken += len(y)
    return np.concatenate(found)[:most], np.concatenate(labels)[:most]


def export(student: Shipped, formats: Sequence[str], folder: Path, images: Images, *, probabilities: bool = False) -> list[Row]:
    """Write a student in these formats and measure them; the first row is PyTorch's.

    Raises:
        InputError: a format whose answers differ from PyTorch's by more than `TOLERANCE` (8 bits may: their accuracy is said);
            the file is not kept. Or as the writers of `rco.exporting.formats`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plain = eager(final(student, probabilities))
    expected = in_batches(plain, images.pixels)
    rows = [_row("PyTorch", None, plain, expected, expected, images, student)]
    made: dict[str, Exported] = {}
    for name in formats:
        if name == "pt2":
            made[name] = to_pt2(student, folder / "student.pt2", probabilities=probabilities)
        elif name == "onnx" or "onnx" not in made:
            made["onnx"] = to_onnx(student, folder / "student.onnx", probabilities=probabilities)
        if name == "int8":
            made[name] = to_int8(made["onnx"], folder / "student-int8.onnx", images.calibration)
        found = in_batches(made[name].answers, images.pixels)
        if name != "int8" and not (apart := difference(expected, found)) <= TOLERANCE:
            made[name].path.unlink()
            problem = f"answers {images.where} otherwise than PyTorch: by {apart:.2g} of the largest answer"
            raise InputError(
                "format", name, problem, f"More than {TOLERANCE:g} is not kept; export another format, and report it"
            )
        rows.append(_row(name, made[name].path, made[name].answers, expected, found, images, student))
    return rows


def _row(
    name: str,
    path: Path | None,
    answers: Answers,
    expected: Pixels,
    found: Pixels,
    images: Images,
    student: Shipped,
) -> Row:
    best = images.labels if images.labels is not None else expected.argmax(1)
    return Row(
        format=name,
        path=str(path) if path else "",
        size=path.stat().st_size if path else sum(t.numel() * t.element_size() for t in student.network.state_dict().values()),
        latency_ms=latency_ms(answers, student.inputs.image_shape),
        difference=difference(expected, found),
        accuracy=float((found.argmax(1) == best).mean()),
    )
