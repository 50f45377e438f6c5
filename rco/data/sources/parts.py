"""How the parts of a data set are called in folders and lists: Training and Testing, training_set, valid, TEST, val2017."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

SPELLINGS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "validate", "dev", "development"),
    "test": ("test", "testing", "tst", "eval", "evaluation", "holdout"),
}
_PARTS = {spelling: part for part, spellings in SPELLINGS.items() for spelling in spellings}
#: Words that say no more than that there are images in it.
_FILLERS = frozenset(
    (
        *("set", "sets", "data", "dataset", "datasets", "image", "images", "img", "imgs", "picture", "pictures", "photo"),
        *("photos", "part", "split", "subset", "folder", "dir", "files", "file", "samples", "examples", "jpg", "jpeg"),
        *("png", "seg"),
    )
)


class Spelling(NamedTuple):
    """What the name of a folder says of a part.

    Attributes:
        part: "train", "val" or "test".
        rest: the words of the name that say neither this nor nothing: of "cifar_train", "cifar".
    """

    part: str
    rest: tuple[str, ...]


def is_filler(name: str) -> bool:
    """Whether the name of a folder says nothing: images, data."""
    words = [word for word in _words(name) if not word.isdecimal()]
    return bool(words) and all(word in _FILLERS for word in words)


def spelling_of(name: str) -> Spelling | None:
    """What the name of a folder says of a part; None: it is not that of a part."""
    parts, rest = list[str](), list[str]()
    for word in _words(name):
        if part := _part_of(word):
            parts.append(part)
        elif word not in _FILLERS and not word.isdecimal():
            rest.append(word)
    return Spelling(parts[0], tuple(rest)) if len(parts) == 1 else None


def plain_part(name: str) -> str:
    """The part that a name means by itself, as a cell of a list; empty: none."""
    spelling = spelling_of(name)
    return spelling.part if spelling and not spelling.rest else ""


def part_folders(names: Iterable[str]) -> dict[str, list[str]]:
    """Those of the folders that are parts of one data set: part -> folders. Only names that differ in the part alone count, so
    that train_station and test_tube stay classes; without a training part there are none."""
    groups: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for name in sorted(names):
        if spelling := spelling_of(name):
            groups.setdefault(spelling.rest, {}).setdefault(spelling.part, []).append(name)
    if "train" in groups.get((), {}):
        return groups[()]
    named = [group for group in groups.values() if "train" in group and len(group) > 1]
    return named[0] if len(named) == 1 else {}


def _words(name: str) -> list[str]:
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return re.findall(r"[^\W\d_]+|\d+", parted.lower())


def _part_of(word: str) -> str:
    if word in _PARTS:
        return _PARTS[word]
    for spelling, part in _PARTS.items():  # trainset, testdata
        if word.startswith(spelling) and word.removeprefix(spelling) in _FILLERS:
            return part
    return ""
