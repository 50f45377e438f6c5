"""A student's answers about image files."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rco.core.errors import InputError
from rco.core.settings import from_dict
from rco.core.storage.local import list_files
from rco.data.decoding import Decoding
from rco.data.image_file import SUFFIXES
from rco.data.inputs import Inputs
from rco.exporting.formats import Answers, eager, metadata_of, open_onnx, require_onnx
from rco.exporting.shipped import shipped

_BATCH = 64


@dataclass(frozen=True)
class Answer:
    """What a student says of one image.

    Attributes:
        classes: (name, probability), the most likely first; empty: the image could not be read.
        problem: why it could not.
    """

    path: str
    classes: tuple[tuple[str, float], ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class Predictor:
    """A student that is asked about images; `probabilities` says whether its answers are such."""

    answers: Answers
    inputs: Inputs
    probabilities: bool = False

    def ask(self, paths: Sequence[Path], top: int) -> Iterator[Answer]:
        """The answers, in order; an image that cannot be read ends nothing."""
        for start in range(0, len(paths), _BATCH):
            readable, pixels, problems = self._read(paths[start : start + _BATCH])
            found = list(self._probabilities(self.answers(np.stack(pixels)))) if pixels else list[np.ndarray]()
            by_path = dict(zip(readable, found, strict=True))
            for path in paths[start : start + _BATCH]:
                if path in problems:
                    yield Answer(str(path), problem=problems[path])
                    continue
                best = np.argsort(-by_path[path], kind="stable")[:top]
                yield Answer(str(path), tuple((self.inputs.class_names[k], float(by_path[path][k])) for k in best))

    def _read(self, paths: Sequence[Path]) -> tuple[list[Path], list[np.ndarray], dict[Path, str]]:
        readable, pixels, problems = list[Path](), list[np.ndarray](), dict[Path, str]()
        for path in paths:
            try:
                pixels.append(self.inputs.pixels([path])[0])
                readable.append(path)
            except InputError as error:
                problems[path] = f"{error.value} {error.problem}"
        return readable, pixels, problems

    def _probabilities(self, answers: np.ndarray) -> np.ndarray:
        if self.probabilities:
            return answers
        powers = np.exp(answers.astype(np.float64) - answers.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))


@contextmanager
def predictor(where: str, home: Path, *, model: str = "") -> Iterator[Predictor]:
    """A student that answers.

    Args:
        where: as for `rco.exporting.shipped.folder_of`, or an .onnx file that `rco export` wrote.
        home, model: as for `rco.exporting.shipped.shipped`.

    Raises:
        InputError: there is no such student.
    """
    if where.endswith(".onnx"):
        require_onnx()
        path = Path(where)
        if not path.is_file():
            raise InputError("student", where, "is not a file", "Write one with: rco export")
        exported, about = open_onnx(path), metadata_of(path)
        try:
            names, shape = json.loads(about["class_names"]), json.loads(about["image_shape"])
            decoding = from_dict(Decoding, json.loads(about["decoding"]))
            probabilities = about["output"] == "probabilities"
        except (KeyError, ValueError):
            raise InputError("student", where, "does not name its classes", "Write it with: rco export") from None
        plain = (0.0,) * shape[0], (1.0,) * shape[0]  # normalisation is inside
        inputs = Inputs(class_names=tuple(names), image_shape=tuple(shape), mean=plain[0], std=plain[1], decoding=decoding)
        yield Predictor(exported.answers, inputs, probabilities)
        return
    with shipped(where, home, model=model) as student:
        yield Predictor(eager(student.normalised), student.inputs)


def image_paths(given: Iterable[str], column: str = "path") -> list[Path]:
    """The image files that are meant: files, all images below folders, and those that CSV files list.

    Raises:
        InputError: one that is not there, a folder without images, a CSV file without the column.
    """
    paths: list[Path] = []
    for one in given:
        path = Path(one).expanduser()
        if path.is_dir():
            below = [path / name for name in list_files(path) if name.lower().endswith(SUFFIXES)]
            if not below:
                raise InputError("image", one, f"holds no images ({', '.join(SUFFIXES)})", "Name another folder")
            paths += below
        elif path.suffix.lower() == ".csv" and path.is_file():
            paths += _listed(path, column)
        elif path.is_file():
            paths.append(path)
        else:
            raise InputError("image", one, "is neither a file nor a folder", "Check the path")
    return paths


def _listed(path: Path, column: str) -> list[Path]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        if column not in (reader.fieldnames or ()):
            raise InputError("image", str(path), f"has no column {column!r}", "Begin it with a line that names the columns")
        listed = [row[column] for row in reader if row.get(column)]
    return [found if (found := Path(cell)).is_absolute() else path.parent / found for cell in listed]
