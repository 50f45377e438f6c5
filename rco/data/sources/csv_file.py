"""CSV files that list images, one a line: path, label and, if there is such a column, part.

    path,label,split
    birds/0001.jpg,wren,train
    birds/0002.jpg,kite,test

A local file may list any local file that its user can read; one in a store, or with images in a store, lists what lies below
`csv_root` only, and what it lists is fetched. A path that is listed twice alike counts once. Without a column of the part,
validation and test part are held out, as for image folders (`class_folders`).
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, ClassVar

from rco.core.errors import InputError
from rco.core.settings import no_credentials, setting
from rco.core.storage.addresses import Entry, bucket_and_key, is_remote, local_path
from rco.data.sources.base import SOURCES, Info, Source
from rco.data.sources.csv_rows import MOST_BYTES, Columns, Complaints, Row, read_rows
from rco.data.sources.files import ImageFiles
from rco.data.sources.places import as_dataset, existing_file, has_csv_name, is_local_folder

if TYPE_CHECKING:
    from rco.data.config import DataConfig
    from rco.data.sources.layout import Layout


@dataclass(frozen=True)
class Listed:
    """The images that a CSV file lists.

    Attributes:
        root: local folder, or s3:// address without a slash at its end.
        found: part -> class -> paths relative to `root`, sorted; no path twice.
        entries: of a root in a store, what it says of each path.
    """

    root: str
    found: dict[str, dict[str, list[str]]]
    entries: dict[str, Entry]

    @property
    def paths(self) -> list[str]:
        """Of all images, sorted."""
        return sorted(path for classes in self.found.values() for paths in classes.values() for path in paths)


@SOURCES.register("csv")
@dataclass(frozen=True, kw_only=True)
class CsvFile(ImageFiles):
    """A CSV file, local or in a store."""

    summary: ClassVar[str] = "a CSV file of paths and labels, or an s3:// address of one"

    csv_path_column: str = setting("path", "column of the images' paths")
    csv_label_column: str = setting("label", "column of their labels")
    csv_part_column: str = setting(
        "", "column of the part: train, val or test (empty: one called split or part, if there is one; none: no column)"
    )
    csv_root: str = setting("", "folder or s3:// address that paths are relative to (empty: where the CSV file lies)")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("csv_path_column", "csv_label_column"):
            if not getattr(self, name).strip():
                raise InputError(name, getattr(self, name), "is empty", "Name a column of the header")
        no_credentials("csv_root", self.csv_root)

    @classmethod
    def claims(cls, value: str) -> bool:
        return has_csv_name(value) and not is_local_folder(value)

    def digest(self, config: DataConfig) -> str:
        """Of the CSV file and of all files that it lists: see `rco.core.storage.contents.fingerprint`."""
        from rco.core.storage.contents import fingerprint
        from rco.core.storage.local import content_digest, digest_of, reads_of
        from rco.data.sources.class_order import ordered_digest

        with as_dataset():
            listed = self._listed(config.dataset)
            if is_remote(listed.root):
                entries = [listed.entries[path] for path in listed.paths]
                files = digest_of((entry.name, f"{entry.size} {entry.etag}") for entry in entries)
            else:
                with reads_of(Path(listed.root)):
                    files = content_digest(Path(listed.root), listed.paths)
            return ordered_digest(digest_of([("list", fingerprint(config.dataset)), ("files", files)]), self.class_order)

    def check(self, config: DataConfig) -> Info:
        from rco.data.images import FileImages
        from rco.data.sources.class_folders import info_of
        from rco.data.sources.remote_headers import shape_of

        with as_dataset():
            listed = self._listed(config.dataset)
            layout, paths = self._laid_out(config, listed)
            if is_remote(listed.root):
                shape = shape_of(listed.root, paths, self)
            else:
                shape = FileImages.of(Path(listed.root), paths, 0, self.decoding, self.image_channels).shape
            return info_of(layout, shape, config)

    @contextmanager
    def open(self, config: DataConfig, scratch: Path) -> Iterator[Source]:
        from rco.core.storage.transfer import fetch
        from rco.data.images import FileImages

        with TemporaryDirectory(dir=scratch, prefix=".source-") as temporary:
            with as_dataset():
                listed = self._listed(config.dataset)
                layout, paths = self._laid_out(config, listed)
                root, address = Path(listed.root), ""
                if is_remote(listed.root):
                    root, address = fetch(f"{listed.root}/", Path(temporary) / "fetched", only=set(paths)), listed.root
            images = FileImages.of(root, paths, config.image_size, self.decoding, self.image_channels)
            yield Source(layout, images, address)

    def _laid_out(self, config: DataConfig, listed: Listed) -> tuple[Layout, list[str]]:
        from rco.data.sources.layout import Notes, laid_out_files

        notes = Notes(parts={part: f"rows of {part}" if len(listed.found) > 1 else "all rows" for part in listed.found})
        return laid_out_files(config.dataset, listed.found, config.open_classes, class_order=self.class_order, notes=notes)

    def _listed(self, dataset: str) -> Listed:
        columns = Columns(self.csv_path_column, self.csv_label_column, self.csv_part_column)
        if is_remote(dataset):
            with TemporaryDirectory() as scratch:
                rows = read_rows(_fetched(dataset, Path(scratch)), dataset, columns)
        else:
            rows = read_rows(existing_file(dataset), dataset, columns)
        root = self._root(dataset)
        return _in_store(rows, dataset, root) if is_remote(root) else _local(rows, dataset, root)

    def _root(self, dataset: str) -> str:
        if is_remote(self.csv_root or dataset):
            return (self.csv_root or dataset.rpartition("/")[0]).rstrip("/")
        if not self.csv_root:
            return os.path.abspath(local_path(dataset).parent)
        try:
            folder = local_path(self.csv_root)
        except InputError as error:
            raise error.renamed("csv_root") from None
        if not folder.is_dir():
            raise InputError("csv_root", self.csv_root, "is not a folder", "Name the one that the paths are relative to")
        return os.path.abspath(folder)


def _fetched(address: str, into: Path) -> Path:
    from rco.core.storage.contents import listing
    from rco.core.storage.transfer import fetch

    entries = listing(address)
    if [entry.key for entry in entries] != [bucket_and_key(address)[1]]:
        raise InputError("dataset", address, "is a folder in the store, not a CSV file", "Set source = s3, or name the file")
    if entries[0].size > MOST_BYTES:
        raise InputError("dataset", address, f"has more than {MOST_BYTES / 2**30:g} GiB, as no list of images", "Name another")
    return fetch(address, into)


def _in_store(rows: list[Row], dataset: str, root: str) -> Listed:
    from rco.core.storage.contents import listing

    entries = {entry.name: entry for entry in listing(f"{root}/")}
    where = [_below(row.path.removeprefix(f"{root}/")) for row in rows]
    found = _sorted_out(rows, where, dataset, root, lambda path: path in entries)
    return Listed(root, found, entries)


def _local(rows: list[Row], dataset: str, root: str) -> Listed:
    """The files may lie anywhere if the CSV file is local too: below `root`, or else below the folder that holds them all."""
    if is_remote(dataset):
        where = [path and os.path.join(root, path) for path in (_below(row.path) for row in rows)]
    else:
        where = [_full(root, row.path) for row in rows]
    found = _sorted_out(rows, where, dataset, root, os.path.isfile)
    full = [path for classes in found.values() for paths in classes.values() for path in paths]
    inside = os.path.join(root, "")  # with a slash at its end
    if not all(path.startswith(inside) for path in full):
        root = os.path.commonpath([os.path.dirname(path) for path in full])
        inside = os.path.join(root, "")
    below = {
        part: {label: [path[len(inside) :] for path in paths] for label, paths in classes.items()}
        for part, classes in found.items()
    }
    return Listed(root, below, {})


def _below(path: str) -> str:
    """A relative path in its plainest form; empty if it leads out of the folder that it is relative to."""
    plain = posixpath.normpath(path)
    return "" if "\0" in path or plain.startswith(("/", "../")) or plain in ("..", ".") else plain


def _full(root: str, path: str) -> str:
    """The absolute form of a path; empty if no file can have it."""
    if "\0" in path:
        return ""
    joined = os.path.join(root, path)
    return os.path.realpath(joined) if ".." in path.split("/") else os.path.normpath(joined)  # a/.. is not . if a is a link


def _sorted_out(
    rows: Sequence[Row], where: Sequence[str], dataset: str, root: str, exists: Callable[[str], bool]
) -> dict[str, dict[str, list[str]]]:
    """Part -> class -> paths, sorted and without repetitions.

    Args:
        where: of every row, its path in plain form; empty: it leads out of `root`, or no file can have it.
        exists: whether there is such a file.

    Raises:
        InputError: rows that cannot be images, or no rows to train on.
    """
    from rco.data.image_file import SUFFIXES

    complaints, seen = Complaints(dataset), dict[str, Row]()
    found: dict[str, dict[str, list[str]]] = {}
    for row, path in zip(rows, where, strict=True):
        before = seen.setdefault(path, row)
        if not path:
            complaints.add(row.line, f"lists paths that lead out of {root}", "List what lies below csv_root", row.path)
        elif not path.lower().endswith(SUFFIXES):
            complaints.add(row.line, "lists files that are no images by their names", f"List {', '.join(SUFFIXES)}", row.path)
        elif before is row and not exists(path):
            complaints.add(
                row.line,
                "lists files that do not exist",
                "Write paths with /, not with backslashes"
                if "\\" in row.path
                else f"Paths are relative to {root}; set csv_root if they are not",
                row.path,
            )
        elif before is row:
            found.setdefault(row.part, {}).setdefault(row.label, []).append(path)
        elif before.label != row.label:
            complaints.add(row.line, "lists files again with another label", "Give each file one label", row.path)
        elif before.part != row.part:
            complaints.add(row.line, "lists files again in another part", "Put each file into one part", row.path)
    complaints.tell()
    if "train" not in found:
        listed = f"lists images of {' and '.join(found)} only" if found else "lists no images"
        raise InputError("dataset", dataset, listed, "List images of the part train, of every class")
    return {part: {label: sorted(paths) for label, paths in classes.items()} for part, classes in found.items()}
