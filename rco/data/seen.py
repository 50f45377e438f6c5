"""What was seen of a source's images when all of them were read: what can be used, and what cannot."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from joblib import cpu_count
from numpy.typing import NDArray

from rco.core.errors import InputError
from rco.data.config import DataConfig
from rco.data.images import FileImages, Images, Pixels, Rows, Survey
from rco.data.sources.files import ImageFiles

_NAMED = 5  # files in a message
_CHECKED = 2048  # files that are decoded between two looks at the clock
_PROGRESS_SECONDS = 10.0

log = logging.getLogger(__name__)


@dataclass
class Seen:
    """What was seen of the images: of each part, in its order.

    Attributes:
        rows: which they are.
        digests: of each image's content.
        traits, sha256: as `rco.data.images.Survey`.
        problems: row of the source -> what is wrong with the file.
        other_sizes: likewise, of files that are not of the size that all must have.
    """

    rows: dict[str, Rows] = field(default_factory=dict)
    digests: dict[str, NDArray[np.uint64]] = field(default_factory=dict)
    traits: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    sha256: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    problems: dict[int, str] = field(default_factory=dict)
    other_sizes: dict[int, str] = field(default_factory=dict)

    def add(self, part: str, rows: Rows, survey: Survey) -> None:
        """Note what was seen of the part's `rows`."""
        self.rows[part], self.digests[part], self.traits[part] = rows, survey.digests, survey.traits
        self.sha256[part] = survey.sha256
        self.problems |= {int(rows[i]): problem for i, problem in survey.problems.items()}
        self.other_sizes |= {int(rows[i]): problem for i, problem in survey.other_sizes.items()}

    def of(self, rows: Rows) -> Survey:
        """What was seen of some rows of files, whichever part they were in."""
        known, digests, traits, sha256 = (
            np.concatenate(list(arrays.values())) for arrays in (self.rows, self.digests, self.traits, self.sha256)
        )
        order = np.argsort(known)
        at = order[np.searchsorted(known, rows, sorter=order)]
        return Survey(digests[at], traits[at], sha256=sha256[at])


def to_be_left_out(seen: Seen, images: Images, config: DataConfig) -> dict[int, str]:
    """The rows that are left out, and why.

    Raises:
        InputError: files that cannot be read, and are not to be left out; files of other sizes.
    """
    paths = images.paths if isinstance(images, FileImages) else ()
    if seen.other_sizes:
        rows = sorted(seen.other_sizes)
        if len(rows) == 1:
            problem = seen.other_sizes[rows[0]]
        else:
            named = "; ".join(seen.other_sizes[row] for row in rows[:2])
            problem = f"{len(rows):,} of {len(paths):,} images are not of the size of the first: {named}"
            problem += "; ..." if len(rows) > 2 else ""
        raise InputError("image_size", config.image_size, problem, "Set image_size, to which all are brought")
    rows = sorted(seen.problems)
    if not (isinstance(config.source, ImageFiles) and config.source.skip_broken):
        named = "; ".join(f"{paths[row]} {seen.problems[row]}" for row in rows[:_NAMED])
        more = f"; and {len(rows) - _NAMED:,} more" if len(rows) > _NAMED else ""
        count = "1 image file" if len(rows) == 1 else f"{len(rows):,} image files"
        raise InputError(
            "dataset",
            config.dataset,
            f"{count} of {len(paths):,} cannot be used: {named}{more}",
            "Repair or remove them, or set skip_broken = true, which leaves them out",
        )
    return seen.problems


class Progress:
    """Says how far the reading of many files is, every few seconds."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.began = self.said = time.monotonic()

    def add(self, count: int) -> None:
        """Count files that were read."""
        self.done += count
        if (now := time.monotonic()) - self.said > _PROGRESS_SECONDS:
            rate = self.done / (now - self.began)
            log.info("decoded %s of %s images once, %.0f a second", f"{self.done:,}", f"{self.total:,}", rate)
            self.said = now


def surveyed(images: FileImages, rows: Rows, progress: Progress) -> Survey:
    """Decode all of `rows`, and keep none of their pixels."""
    surveys = []
    for start in range(0, len(rows), _CHECKED):
        surveys.append(images.survey(rows[start : start + _CHECKED], cpu_count()))
        progress.add(len(surveys[-1].digests))
    return _joined(surveys)


def _joined(surveys: Sequence[Survey]) -> Survey:
    """Surveys of consecutive images as one."""
    problems, other_sizes, start = dict[int, str](), dict[int, str](), 0
    for survey in surveys:
        problems |= {start + i: problem for i, problem in survey.problems.items()}
        other_sizes |= {start + i: problem for i, problem in survey.other_sizes.items()}
        start += len(survey.digests)
    digests, traits, sha256 = (
        np.concatenate(arrays) for arrays in zip(*((s.digests, s.traits, s.sha256) for s in surveys), strict=True)
    )
    return Survey(digests, traits, problems, other_sizes, sha256)


def digests_of(pixels: Pixels) -> NDArray[np.uint64]:
    """Of each image's content."""
    found = (hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in pixels)
    return np.frombuffer(b"".join(found), np.uint64)
