"""The account of a prepared data set: what was taken for what, what was left out and why, and what there is to know before a
training: in the manifest, in the task's log, in MLflow and in `rco inspect`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rco.core.errors import printable
from rco.data.image_file import FRAMES, LARGE, NOT_SQUARE, SIXTEEN, TRANSPARENT, TURNED
from rco.data.images import Rows

_SHOWN = 3
_MOST_REASONS = 8
_LONGEST = 80  # characters of a name


@dataclass(frozen=True, kw_only=True)
class Counted:
    """How many there are, and the first few names."""

    count: int
    first: tuple[str, ...] = ()

    @classmethod
    def of(cls, names: Sequence[str]) -> Counted:
        """Of all names."""
        return cls(count=len(names), first=tuple(_shown(name) for name in names[:_SHOWN]))

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.first) else ""
        return f"{self.count:,}" + (f" ({', '.join(self.first)}{more})" if self.first else "")


@dataclass(frozen=True, kw_only=True)
class PartAccount:
    """One part.

    Args:
        source: the folder that it was taken from, or how it was made.
        images: how many.
        smallest: the fewest images of a class that has any, and that class's name.
        largest: likewise the most.
        without: the classes that have no image in it.
    """

    source: str
    images: int
    smallest: Counted
    largest: Counted
    without: Counted


@dataclass(frozen=True, kw_only=True)
class Account:
    """What became of a source.

    Args:
        parts: of each part.
        class_order: how the classes are numbered.
        classes: how many, and the first few, in order.
        left_out: why -> what was not used.
        files: what was done to image files, in words -> how many.
        duplicates: "test and train" -> images of the first that are in the second, too.
        relabelled: how many of all duplicates have different labels.
        remarks: what else was decided, a sentence each.
        normalisation: where mean and deviation come from.
    """

    parts: dict[str, PartAccount] = field(default_factory=dict)
    class_order: str = ""
    classes: Counted = field(default_factory=lambda: Counted(count=0))
    left_out: dict[str, Counted] = field(default_factory=dict)
    files: dict[str, Counted] = field(default_factory=dict)
    duplicates: dict[str, Counted] = field(default_factory=dict)
    relabelled: Counted = field(default_factory=lambda: Counted(count=0))
    remarks: tuple[str, ...] = ()
    normalisation: str = ""

    @property
    def lines(self) -> list[str]:
        """In words, on one screen; warnings begin with "warning: "."""
        if not self.parts:
            return []
        found = [f"{part}: {_of_part(about)}" for part, about in self.parts.items()]
        found += self.remarks
        found.append(f"classes, in the order of their numbers ({self.class_order}): {self.classes}")
        if self.normalisation:
            found.append(f"normalisation: {self.normalisation}")
        found += [f"{what}: {count}" for what, count in self.files.items()]
        reasons = sorted(self.left_out.items(), key=lambda item: -item[1].count)
        found += [f"left out: {count}: {why}" for why, count in reasons[:_MOST_REASONS]]
        if rest := reasons[_MOST_REASONS:]:
            found.append(f"left out for {len(rest)} other reasons: {sum(count.count for _, count in rest):,}")
        for part, about in self.parts.items():
            if about.without.count:
                found.append(f"warning: {part} has no image of {_classes(about.without.count)}: {about.without}")
        for parts, count in self.duplicates.items():
            first, second = parts.split(" and ")
            found.append(
                f"warning: the same image in {parts}: {count}; what is measured on {first} is partly known from {second}"
            )
        if self.relabelled.count:
            found.append(f"warning: the same image with different labels: {self.relabelled}")
        return [printable(line) for line in found]


def _classes(count: int) -> str:
    return "1 class" if count == 1 else f"{count:,} classes"


def _of_part(about: PartAccount) -> str:
    small, large = about.smallest, about.largest
    if not small.first:
        return f"{about.images:,} images ({about.source})"
    spread = (
        f"{small.count:,} of every class"
        if small.count == large.count
        else f"{small.count:,} ({small.first[0]}) to {large.count:,} ({large.first[0]}) of a class"
    )
    return f"{about.images:,} images ({about.source}); {spread}"


def part_account(source: str, labels: Rows, class_names: Mapping[int, str]) -> PartAccount:
    """Of a part whose images have these labels.

    Args:
        labels: (N,).
        class_names: label -> name, of all classes that the part could have.
    """
    counts = dict(zip(*(values.tolist() for values in np.unique(labels, return_counts=True)), strict=True))
    there = sorted((count, label) for label, count in counts.items())
    least, most = there[0], max(there, key=lambda item: (item[0], -item[1]))
    return PartAccount(
        source=printable(source),
        images=len(labels),
        smallest=Counted(count=least[0], first=(_shown(class_names[least[1]]),)),
        largest=Counted(count=most[0], first=(_shown(class_names[most[1]]),)),
        without=Counted.of([name for label, name in class_names.items() if label not in counts]),
    )


_DONE = {
    TURNED: "turned upright as EXIF says",
    TRANSPARENT: "have transparency, laid on {background}",
    SIXTEEN: "have 16 bits a pixel, scaled to 8 ({white} is white)",
    NOT_SQUARE: "are not square, and {fit}",
    LARGE: "are very large, and shrunk",
    FRAMES: "have several frames or pages, of which the first is read",
}
FITTED = {
    "crop": "cropped to their centre (image_fit = crop; pad and squash are the others)",
    "pad": "padded with black (image_fit = pad)",
    "squash": "squashed (image_fit = squash)",
}


def of_files(
    traits: NDArray[np.uint8], names: Sequence[str], *, resized: bool, background: str, white: int, fit: str
) -> dict[str, Counted]:
    """What was done to image files, in words.

    Args:
        traits: (N,) of the files, as bits (`rco.data.images.Survey`).
        names: of the files.
        resized: whether they were brought to one size.
    """
    found = {}
    for bit, words in _DONE.items():
        if bit in (NOT_SQUARE, LARGE) and not resized:
            continue
        rows = np.flatnonzero(traits & bit)
        if len(rows):
            said = "images that " + words.format(background=background, white=white, fit=FITTED[fit])
            shown = tuple(_shown(names[row]) for row in rows[:_SHOWN])
            found[said] = Counted(count=len(rows), first=shown)
    return found


def duplicates(
    digests: Mapping[str, NDArray[np.uint64]], labels: Mapping[str, Rows], names: Mapping[str, Sequence[str]]
) -> tuple[dict[str, Counted], Counted]:
    """Images that are in two parts, and images that have two labels.

    Args:
        digests: part -> (N,), of each image's content.
        labels: part -> (N,).
        names: part -> of the images.

    Returns:
        "test and train" -> images of test that are in train; and all images of which another, the same, has another label.
    """
    found: dict[str, Counted] = {}
    order = [part for part in ("open", "test", "val", "train") if part in digests]
    for i, part in enumerate(order):
        for other in order[i + 1 :]:
            rows = np.flatnonzero(np.isin(digests[part], digests[other]))
            if len(rows):
                shown = tuple(_shown(names[part][row]) for row in rows[:_SHOWN])
                found[f"{part} and {other}"] = Counted(count=len(rows), first=shown)
    order = [part for part in order if part != "open"]  # whose labels are the source's own
    joined, truth = (np.concatenate([values[part] for part in order]) for values in (digests, labels))
    _, group = np.unique(joined, return_inverse=True)
    least, most = np.full(group.max() + 1, truth.max()), np.full(group.max() + 1, truth.min())
    np.minimum.at(least, group, truth)
    np.maximum.at(most, group, truth)
    rows = np.flatnonzero((least != most)[group])
    if not len(rows):
        return found, Counted(count=0)
    starts = np.cumsum([0, *(len(digests[part]) for part in order)])
    first = []
    for row in rows[:_SHOWN]:
        at = int(np.searchsorted(starts, row, side="right")) - 1
        first.append(_shown(names[order[at]][row - starts[at]]))
    return found, Counted(count=len(rows), first=tuple(first))


def _shown(name: str) -> str:
    name = printable(name)
    return name if len(name) <= _LONGEST else "..." + name[3 - _LONGEST :]
