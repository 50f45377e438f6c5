"""The files of a source by their relative paths: what is a part, what a class, what is left out, and what is refused."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from rco.core.errors import InputError
from rco.data.dataset import PARTS
from rco.data.image_file import SUFFIXES
from rco.data.sources.layout import named
from rco.data.sources.parts import is_filler, part_folders, spelling_of

Parts = tuple[str, ...]  # of a path
#: What the names of pictures end in that are not read here: a class of these must not vanish.
_OTHER_PICTURES = (
    *(".heic", ".heif", ".jp2", ".j2k", ".jpx", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw", ".psd", ".svg"),
    *(".tga", ".ico", ".exr", ".hdr", ".dcm", ".pfm", ".ras", ".sgi", ".pcx", ".eps", ".emf", ".wmf"),
)
_ANNOTATIONS = (".csv", ".txt", ".tsv", ".json")
_HOW_TO_SORT = (
    "Sort them into one folder for each class, or list them with their labels in a CSV file and give that; or leave the folder "
    "out: part_folders = train={train}"
)


@dataclass
class Tree:
    """The files of a source, as they are sorted out.

    Attributes:
        named: part -> folder, if the user says so; empty: no parts.
        images: paths of image files.
        others: names of files that are not, by their names.
        where: part -> the folder that it is taken from, for people.
        left_out: why -> names.
        remarks: what else was decided.
        depth: how many folders lie around it all.
        deeper: images that lie in folders inside a class folder.
    """

    source: str
    named: dict[str, str] | None
    images: list[Parts] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    where: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    remarks: list[str] = field(default_factory=list)
    depth: int = 0
    deeper: list[str] = field(default_factory=list)

    def sort(self, names: Iterable[str], broken_links: Sequence[str], empty_folders: Sequence[str]) -> None:
        """Tell images from other files by their names."""
        for name in sorted(names):
            parts = PurePosixPath(name).parts
            if is_hidden(parts):
                continue
            ending = PurePosixPath(parts[-1]).suffix.lower() if parts else ""
            if ending in SUFFIXES:
                self.images.append(parts)
            else:
                self.others.append(name)
                why = f"they end in {ending}, which is not read" if ending else "their names have no ending"
                self.left_out[why].append(name)
        self.images.sort()
        if empty := [name for name in sorted(empty_folders) if name and not is_hidden(PurePosixPath(name).parts)]:
            self.left_out["folders with nothing in them"] += empty
        links = [name for name in sorted(broken_links) if not is_hidden(PurePosixPath(name).parts)]
        if links:
            self.left_out["links that lead nowhere"] += links

    def parts(self) -> dict[str, dict[str, list[str]]]:
        """Part -> class -> paths.

        Raises:
            InputError: as `lay_out`.
        """
        if self.named is None:
            self.depth = _depth(self.images)
            self._drop_strays()
            folders = self._part_folders()
        else:
            self.depth = _depth(self.images) if not self.named else 0
            self._drop_strays()
            folders = {part: PurePosixPath(folder).parts for part, folder in self.named.items()}
        found = self._parts_of(folders) if folders else self._classes_alone()
        if self.deeper:
            images = named(self.deeper, "image", "images", shown=3)
            self.remarks.append(f"in folders inside a class folder: {images}, of the class of the outer one")
        return found

    def _name(self, path: Parts) -> str:
        return "/".join(path)

    def _drop_strays(self) -> None:
        """Images that lie beside the class folders, or beside the folder that wraps them all."""
        if all(len(path) <= self.depth + 1 for path in self.images):
            hint = "Put them into one folder for each class"
            lists = [name for name in self.others if name.lower().endswith(".csv")]
            if lists:
                hint += f"; or, if {lists[0]} lists them with their labels, give it: dataset = .../{lists[0]}"
            raise InputError("dataset", self.source, "has images, but not in class folders", hint)
        around = next(path[: self.depth] for path in self.images if len(path) > self.depth + 1)
        strays = [path for path in self.images if len(path) <= self.depth + 1 or path[: self.depth] != around]
        self._leave_out_flat(strays)
        if strays:
            lost = set(strays)
            self.images = [path for path in self.images if path not in lost]

    def _part_folders(self) -> dict[str, Parts]:
        """Part -> path of its folder; empty: there are none.

        Raises:
            InputError: folders that could be parts or classes.
        """
        depth = self.depth
        top: dict[str, set[str]] = defaultdict(set)  # folder -> folders in it that hold images
        for path in self.images:
            top[path[depth]].update(path[depth + 1 : depth + 2] if len(path) > depth + 2 else ())
        parts = part_folders(top)
        trained = any(top[folder] for folder in parts.get("train", ()))
        if not trained:
            self._refuse_parts_alone(top)
            self._refuse_inner_parts(top)
            self._refuse_repeated(top)
            return {}
        for part, folders in parts.items():
            if len(folders) > 1:
                raise InputError(
                    "dataset",
                    self.source,
                    f"has {len(folders)} folders that are the part {part} by their names: {', '.join(folders)}",
                    f"Rename or join them, or say which it is: part_folders = {part}={folders[0]},...",
                )
        chosen = {part: folders[0] for part, folders in parts.items()}
        beside = sorted(set(top) - set(chosen.values()))
        if beside and len(chosen) == 1:
            train = chosen["train"]
            raise InputError(
                "dataset",
                self.source,
                f"has a folder {train} with folders in it, and beside it {named(beside, 'folder', 'folders')}: "
                f"{train} may be the training part or a class",
                f"Say which: part_folders = train={self._name((*self._around(), train))}, or part_folders = none",
            )
        return {part: (*self._around(), folder) for part, folder in chosen.items()}

    def _around(self) -> Parts:
        return self.images[0][: self.depth]

    def _refuse_parts_alone(self, top: Mapping[str, set[str]]) -> None:
        """Refuse folders that are all parts by their names, and none of them a training part with class folders."""
        spelled = [spelling_of(folder) for folder in top]
        if len({spelling and spelling.rest for spelling in spelled}) != 1 or None in spelled:
            return
        listed = ", ".join(sorted(top))
        raise InputError(
            "dataset",
            self.source,
            f"has no train/CLASS folders: its {len(self.images):,} images lie in {listed}, parts by their names",
            "Lay it out as train/CLASS/*, test/CLASS/* or CLASS/*; or list the images with their labels in a CSV file; "
            "if these are classes: part_folders = none",
        )

    def _refuse_inner_parts(self, top: Mapping[str, set[str]]) -> None:
        """Refuse a folder that holds the parts, where there are other folders beside it."""
        held = {folder: part_folders(inner) for folder, inner in sorted(top.items())}
        if all(len(parts) > 1 for parts in held.values()):
            return  # their names are classes; this is refused next
        for folder, parts in held.items():
            if len(parts) > 1:
                listed = ", ".join(name for part in PARTS for name in parts.get(part, ()))
                raise InputError(
                    "dataset",
                    self.source,
                    f"has the parts {listed} in its folder {folder}, and beside it "
                    f"{named(sorted(set(top) - {folder}), 'folder', 'folders')}",
                    f"Give the one folder: dataset = .../{folder}; if they are classes: part_folders = none",
                )

    def _refuse_repeated(self, top: Mapping[str, set[str]]) -> None:
        """Refuse folders that all hold the same folders: they may be parts under names of their own, and no classes."""
        direct = {path[self.depth] for path in self.images if len(path) == self.depth + 2}
        inner = set.intersection(*top.values()) if top else set()
        if self.named is not None or len(top) < 2 or len(inner) < 2 or direct:
            return
        folders, repeated = sorted(top), sorted(inner)
        if all(spelling_of(name) for name in repeated):
            what = f"its folders {', '.join(folders[:5])} each hold the parts {', '.join(repeated)}"
            remedy = "Turn it round (train/CLASS/*, test/CLASS/*), or list the images in a CSV file"
        else:
            what = (
                f"its folders {', '.join(folders[:5])} all hold the same folders ({', '.join(repeated[:5])}): parts or classes?"
            )
            around = self._around()
            first, second = (self._name((*around, folder)) for folder in folders[:2])
            remedy = f"If parts: part_folders = train={first},test={second}, say; if classes: part_folders = none"
        raise InputError("dataset", self.source, what, remedy)

    def _classes_alone(self) -> dict[str, dict[str, list[str]]]:
        found: dict[str, list[str]] = defaultdict(list)
        for path in self.images:
            found[path[self.depth]].append(self._name(path))
            if len(path) > self.depth + 2:
                self.deeper.append(self._name(path))
        self.where = {"train": self._name(self._around()) or "the whole set"}
        return {"train": dict(found)}

    def _parts_of(self, folders: Mapping[str, Parts]) -> dict[str, dict[str, list[str]]]:
        found: dict[str, dict[str, list[str]]] = {}
        used: set[Parts] = set()
        # Train first: its classes tell how the others are read.
        for part in sorted(folders, key=PARTS.index):
            folder = folders[part]
            paths = [path for path in self.images if path[: len(folder)] == folder]
            if not paths:
                raise InputError(
                    "part_folders",
                    f"{part}={self._name(folder)}",
                    f"is no folder of {self.source} with images",
                    "Check the name",
                )
            used.update(paths)
            found[part] = self._classes_of(part, folder, paths, set(found.get("train", ())))
        beside = [path for path in self.images if path not in used]
        for path in beside:
            name = self._name(path[: self.depth + 1])
            self.left_out[f"{name}/ is none of the parts"].append(self._name(path))
        return found

    def _classes_of(self, part: str, folder: Parts, paths: list[Parts], known: set[str]) -> dict[str, list[str]]:
        """Class -> paths of one part.

        Raises:
            InputError: its images are not in class folders.
        """
        at = len(folder)
        while (only := self._wrap_of(part, paths, at, known)) is not None:
            self._leave_out_flat([path for path in paths if len(path) == at + 1])
            folder, at = (*folder, only), at + 1
            paths = [path for path in paths if len(path) > at]
        inside = {path[at] for path in paths if len(path) > at + 1}
        flat = [path for path in paths if len(path) == at + 1]
        where = self._name(folder)
        self.where[part] = where
        unsorted = flat if not inside else []
        # Tiny ImageNet's way: all in one folder that is not a class, and a list beside it.
        if not unsorted and known and len(inside) == 1 and not inside & known:
            (only,) = inside
            if is_filler(only) or spelling_of(only):
                unsorted, where = paths, f"{where}/{only}"
        if unsorted:
            self._refuse_unsorted(part, where, len(unsorted), folder)
        self._leave_out_flat(flat)
        found: dict[str, list[str]] = defaultdict(list)
        for path in paths:
            if len(path) > at + 1:
                found[path[at]].append(self._name(path))
            if len(path) > at + 2:
                self.deeper.append(self._name(path))
        return dict(found)

    def _wrap_of(self, part: str, paths: Sequence[Parts], at: int, known: set[str]) -> str | None:
        """The one folder of a part that holds its class folders, if there is one."""
        inside = {path[at] for path in paths if len(path) > at + 1}
        if len(inside) != 1 or inside & known:
            return None
        (only,) = inside
        spelling, inner = spelling_of(only), [path for path in paths if len(path) > at + 1]
        if (spelling is not None and spelling.part == part) or is_filler(only):
            return only if any(len(path) > at + 2 for path in inner) else None
        # Of one class nothing can be learnt.
        return only if part == "train" and all(len(path) > at + 2 for path in inner) else None

    def _leave_out_flat(self, paths: Sequence[Parts]) -> None:
        if paths:
            self.left_out["images that lie in no class folder"] += [self._name(path) for path in paths]

    def _refuse_unsorted(self, part: str, where: str, count: int, folder: Parts) -> None:
        near = [name for name in self.others if name.startswith(self._name(folder[:-1])) and name.endswith(_ANNOTATIONS)]
        inside = [name for name in near if PurePosixPath(name).parts[: len(folder)] == folder]
        says = f" ({(inside or near)[0]} may say what they are)" if inside or near else ""
        train = self.where.get("train", "train")
        raise InputError(
            "dataset",
            self.source,
            f"the part {part} ({where}/) has {count:,} images that lie in no class folders{says}",
            _HOW_TO_SORT.format(train=train),
        )

    def require_no_lost_class(self, found: Mapping[str, Mapping[str, list[str]]]) -> None:
        """Refuse class folders that would vanish because nothing in them can be read; note those that hold no picture at all.

        Raises:
            InputError: pictures, by their names, that are not read, or links that lead nowhere, are all that a folder holds.
        """
        roots = {part: PurePosixPath(self.where[part]).parts for part in found}
        if self.where.get("train") == "the whole set":
            roots = {"train": ()}
        links = set(self.left_out.get("links that lead nowhere", ()))
        lost: dict[str, list[str]] = defaultdict(list)
        for name in sorted({*self.others, *links}):
            path = PurePosixPath(name).parts
            for part, root in roots.items():
                if path[: len(root)] == root and len(path) > len(root) + 1 and path[len(root)] not in found[part]:
                    picture = name in links or name.lower().endswith(_OTHER_PICTURES)
                    if picture:
                        lost["/".join(path[: len(root) + 1])].append(name)
        if lost:
            folder, names = next(iter(lost.items()))
            raise InputError(
                "dataset",
                self.source,
                f"{named(list(lost), 'class folder has', 'class folders have')} no image that can be read: {folder} holds "
                f"{named(names, 'picture', 'pictures', 3)}",
                f"Convert them to one of {', '.join(SUFFIXES[:4])}, mend the links, or remove the folder",
            )


def _depth(paths: Sequence[Parts]) -> int:
    """How many folders lie around it all: one alone, that is not a part by its name and holds folders with images itself.
    Images beside such a folder do not count."""
    depth = 0
    while True:
        inner = [path for path in paths if len(path) > depth + 1]
        folders = {path[depth] for path in inner}
        if len(folders) != 1:
            return depth
        (only,) = folders
        spelling = spelling_of(only)
        if spelling and not spelling.rest:
            named_parts = any(spelling_of(path[depth + 1]) for path in inner if len(path) > depth + 2)
            if spelling.part == "train" or not named_parts:
                return depth
        if not any(len(path) > depth + 2 for path in inner):
            return depth
        # Images in it, beside folders with images: it is a class with more folders, or a wrap with strays. Of one class nothing
        # can be learnt, so it is the latter.
        depth += 1
        paths = inner


def is_image(name: str) -> bool:
    """Whether a file of this name is read as an image."""
    path = PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES and not is_hidden(path.parts)


def is_hidden(parts: Parts) -> bool:
    """Whether a path is passed over in silence."""
    return any(part.startswith((".", "__MACOSX")) for part in parts)
