"""Which classes and parts a source has, what was left out of it, and the open classes that are taken out of all parts."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches

import numpy as np

from rco.core.errors import InputError
from rco.data.dataset import PARTS
from rco.data.images import Rows
from rco.data.sources.class_order import SORTED, ordered_classes


@dataclass(frozen=True)
class Notes:
    """What a layout was made of, for people.

    Args:
        parts: part -> where its images come from.
        left_out: why -> names of files or folders.
        class_order: how the classes are numbered.
        remarks: what else was decided, a sentence each.
    """

    parts: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, tuple[str, ...]] = field(default_factory=dict)
    class_order: str = ""
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """Which classes a source has, and which images.

    Args:
        source: its name, for messages.
        class_names: the K classes, by label.
        labels: (N,) int64: 0..K-1 in the parts; of open rows the source's own.
        parts: rows of each part that the source itself tells apart; "train" always, "val" and "test" if it has them.
        open_classes: name -> label of the classes that are held out whole; see `laid_out`.
        open_rows: their rows, whichever part the source has them in.
        notes: what it was made of.

    Raises:
        InputError: fewer than two classes, or a class with too few images to be in every part that is held out.
    """

    source: str
    class_names: tuple[str, ...]
    labels: Rows
    parts: dict[str, Rows]
    open_classes: dict[str, int] = field(default_factory=dict)
    open_rows: Rows = field(default_factory=lambda: np.empty(0, np.int64))
    notes: Notes = field(default_factory=Notes)

    def __post_init__(self) -> None:
        if len(self.class_names) < 2:
            raise InputError(
                "dataset",
                self.source,
                f"has one class only ({', '.join(self.class_names)})",
                "Classification needs two or more",
            )
        if empty := [part for part, rows in self.parts.items() if not len(rows)]:
            raise InputError("dataset", self.source, f"has no image in its part {empty[0]}", "Leave the part out, or fill it")
        # Parts that are missing are held out from the training part.
        needed = 1 + len(set(PARTS) - set(self.parts))
        counts = np.bincount(self.labels[self.parts["train"]], minlength=len(self.class_names))
        if counts.min() < needed:
            raise InputError(
                "dataset",
                self.source,
                f"class {self.class_names[counts.argmin()]!r} has {counts.min()} images to be trained on or held out",
                f"Each of the parts needs one of every class: give it {needed} or more, or leave the class out",
            )

    def without(self, rows: Rows) -> Layout:
        """The same without some rows: as if the source had never had these images.

        Raises:
            InputError: too few images are left.
        """
        parts = {part: kept[~np.isin(kept, rows)] for part, kept in self.parts.items()}
        if empty := [part for part, kept in parts.items() if not len(kept)]:
            raise InputError("dataset", self.source, f"has no image left in its part {empty[0]}", "Mend some of its files")
        return replace(self, parts=parts, open_rows=self.open_rows[~np.isin(self.open_rows, rows)])


def laid_out(
    source: str,
    class_names: tuple[str, ...],
    labels: Rows,
    parts: dict[str, Rows],
    open_classes: Sequence[str] = (),
    notes: Notes | None = None,
) -> Layout:
    """The layout of a source, with the open classes taken out of all its parts: nothing may be trained, chosen or normalised
    on them, so that all of their images are unseen. The remaining classes are numbered anew, in their order.

    Args:
        class_names: of all classes, by label.
        labels: (N,) int64.
        open_classes: names or numbers, as `DataConfig.open_classes`.

    Raises:
        InputError: as `open_labels` and `Layout`, or an open class without two images.
    """
    held_out = open_labels(source, class_names, open_classes)
    notes = notes or Notes()
    if not held_out:
        return Layout(source, class_names, labels, parts, notes=notes)
    is_open = np.isin(labels, held_out)
    counts = np.bincount(labels, minlength=len(class_names))
    for label in held_out:
        if counts[label] < 2:
            raise InputError(
                "open_classes", class_names[label], f"has {counts[label]} images", "An image is compared with another: give 2"
            )
    kept = [label for label in range(len(class_names)) if label not in held_out]
    number = np.arange(len(class_names))
    number[kept] = np.arange(len(kept))
    return Layout(
        source,
        tuple(class_names[label] for label in kept),
        np.where(is_open, labels, number[labels]),
        {part: rows[~is_open[rows]] for part, rows in parts.items()},
        {class_names[label]: label for label in held_out},
        np.flatnonzero(is_open),
        notes,
    )


def open_labels(source: str, class_names: tuple[str, ...], open_classes: Sequence[str]) -> list[int]:
    """The labels that names or numbers of classes mean, sorted. A name goes before a number that is written alike.

    Raises:
        InputError: no such class, one named twice, or fewer than two classes left to train on.
    """
    labels: list[int] = []
    for word in open_classes:
        number = word.removesuffix(".0")  # KFP hands every number over as a float
        if word in class_names:
            label = class_names.index(word)
        elif number in class_names:
            label = class_names.index(number)
        elif number.isdecimal() and int(number) < len(class_names):
            label = int(number)
        else:
            near = get_close_matches(word, class_names, n=1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            shown = ", ".join(class_names[:20]) + (", ..." if len(class_names) > 20 else "")
            raise InputError(
                "open_classes",
                word,
                f"is not a class of {source}",
                f"{hint}Give names or numbers from 0 to {len(class_names) - 1}; the names are {shown}",
            )
        if label in labels:
            raise InputError("open_classes", list(open_classes), f"names class {class_names[label]!r} twice", "Name each once")
        labels.append(label)
    if len(class_names) - len(labels) < 2 and labels:
        left = len(class_names) - len(labels)
        raise InputError("open_classes", list(open_classes), f"leaves {left} of {source}'s classes", "Leave two or more")
    return sorted(labels)


def laid_out_files(
    source: str,
    found: Mapping[str, Mapping[str, Sequence[str]]],
    open_classes: Sequence[str] = (),
    *,
    class_order: Sequence[str] = (SORTED,),
    notes: Notes | None = None,
    val_is_test: bool = True,
) -> tuple[Layout, list[str]]:
    """The layout of image files. A "val" without a "test" (as ImageNet is handed out) is the test part: validation images are
    then held out from the training part. Val and test may lack classes, but have no others than train.

    Args:
        found: part -> class -> paths; "train" is among the parts.
        open_classes: see `laid_out`.
        class_order: see `rco.data.sources.class_order`.
        notes: of where the parts come from; the rest is added.
        val_is_test: whether a "val" without a "test" is the test part; else a test part is held out, too.

    Returns:
        the layout, and the paths that its rows stand for.

    Raises:
        InputError: classes that train does not have, or as `laid_out`.
    """
    notes = notes or Notes(parts={part: part for part in found})
    found, parts_from, remarks = dict(found), dict(notes.parts), list(notes.remarks)
    known = {name for name, paths in found["train"].items() if paths}
    for part, classes in found.items():
        if odd := sorted(name for name, paths in classes.items() if paths and name not in known):
            written = {_folded(name): name for name in known}
            alike = [(name, written[_folded(name)]) for name in odd if _folded(name) in written]
            if alike:
                raise InputError(
                    "dataset",
                    source,
                    f"has {named(odd, 'class', 'classes')} in {parts_from.get(part, part)} that train spells otherwise, in "
                    f"case or in the Unicode form of accents: {alike[0][0]!a} there, {alike[0][1]!a} in train",
                    "Rename the folders, so that a class has one name",
                )
            raise InputError(
                "dataset",
                source,
                f"has {named(odd, 'class', 'classes')} in {parts_from.get(part, part)} that train does not have",
                f"Classes of train: {', '.join(sorted(known)[:5])}{', ...' if len(known) > 5 else ''}. "
                "Give train images of each, or take them out",
            )
    spelled: dict[str, list[str]] = {}
    for name in sorted(known):
        spelled.setdefault(_folded(name), []).append(name)
    if twice := [names for names in spelled.values() if len(names) > 1]:
        shown = "; ".join(", ".join(map(ascii, names)) for names in twice[:3]) + ("; ..." if len(twice) > 3 else "")
        remarks.append(
            f"warning: names that differ in case or in the Unicode form of accents alone are several classes: {shown}"
        )
    if val_is_test and "val" in found and "test" not in found:
        found["test"] = found.pop("val")
        parts_from["test"] = parts_from.pop("val", "val")
        remarks.append(f"no test part: {parts_from['test']} is the test part, and validation images are held out from train")
    class_names = ordered_classes(known, class_order, source)
    ordered, labels, parts = list[str](), list[int](), dict[str, Rows]()
    for part, classes in found.items():
        start = len(ordered)
        for label, name in enumerate(class_names):
            paths = classes.get(name, ())
            ordered += paths
            labels += [label] * len(paths)
        parts[part] = np.arange(start, len(ordered))
    order = ", ".join(class_order) if len(class_order) < 2 else "as listed"
    notes = replace(notes, parts=parts_from, class_order=order or SORTED, remarks=tuple(remarks))
    return laid_out(source, class_names, np.array(labels, np.int64), parts, open_classes, notes), ordered


def _folded(name: str) -> str:
    """A class's name, whatever its case and the Unicode form of its accents (a Mac decomposes them)."""
    return unicodedata.normalize("NFC", name.casefold())


def named(names: Sequence[str], one: str, many: str, shown: int = 5) -> str:
    """Names in a sentence: their number, and the first few."""
    listed = ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")
    return f"{len(names):,} {one if len(names) == 1 else many} ({listed})"
