"""Images that lie in class folders.

Image folders, archives of one, and S3 addresses of either are laid out in one of two ways (folders around it all are seen
through):

    train/CLASS/*.jpg, test/CLASS/*.jpg     and, if you like, val/CLASS/*.jpg, under any of their usual names
                                            (`rco.data.sources.parts`). A val/ without a test/ is the test part
                                            (see `rco.data.sources.layout.laid_out_files`)
    CLASS/*.jpg                             validation and test part are held out

What is passed over is noted, by reason; names that begin with a dot are passed over in silence, as everywhere. What could be
read in two ways, or would lose images that somebody thinks are used, is refused: `part_folders` says it then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rco.core.errors import InputError
from rco.core.storage.local import list_files
from rco.data.config import DataConfig
from rco.data.image_file import SUFFIXES, Shape
from rco.data.images import FileImages
from rco.data.sources.base import SOURCES, Info, Source, resized
from rco.data.sources.class_order import SORTED
from rco.data.sources.files import ClassFolders, named_parts
from rco.data.sources.layout import Layout, Notes, laid_out_files, named
from rco.data.sources.places import as_dataset
from rco.data.sources.tree import Tree


def files_source(config: DataConfig, root: Path, others: Sequence[str] = ()) -> Source:
    """The source whose image files lie in class folders below `root`.

    Args:
        others: names of files that are not there because they are not images.
    """
    broken_links, empty_folders = list[str](), list[str]()
    with as_dataset():
        names = list_files(root, broken_links, empty_folders)
        layout, paths = lay_out_as(config, [*names, *others], broken_links, empty_folders)
    kind = folder_settings(config)
    return Source(layout, FileImages.of(root, paths, config.image_size, kind.decoding, kind.image_channels))


def folder_settings(config: DataConfig) -> ClassFolders:
    """The settings of class folders; of another package's kind of source that has none, the defaults."""
    kind = config.source if isinstance(config.source, ClassFolders) else SOURCES["folder"]()
    assert isinstance(kind, ClassFolders)
    return kind


def lay_out_as(
    config: DataConfig, names: Iterable[str], broken_links: Sequence[str] = (), empty_folders: Sequence[str] = ()
) -> tuple[Layout, list[str]]:
    """`lay_out` with the settings of a data set."""
    kind = folder_settings(config)
    return lay_out(
        config.dataset,
        names,
        config.open_classes,
        part_folders=kind.part_folders,
        class_order=kind.class_order,
        broken_links=broken_links,
        empty_folders=empty_folders,
    )


def info_of(layout: Layout, shape: Shape, config: DataConfig) -> Info:
    """What is known of a layout whose images have this shape, (C, H, W)."""
    counts = {part: len(rows) for part, rows in layout.parts.items()}
    return Info(len(layout.class_names), layout.class_names, resized(shape, config), counts)


def lay_out(
    source: str,
    names: Iterable[str],
    open_classes: Sequence[str] = (),
    *,
    part_folders: tuple[str, ...] = (),
    class_order: Sequence[str] = (SORTED,),
    broken_links: Sequence[str] = (),
    empty_folders: Sequence[str] = (),
) -> tuple[Layout, list[str]]:
    """Tell classes and parts from the relative paths of files alone.

    Args:
        open_classes: see `laid_out`.
        part_folders: as the setting.
        class_order: likewise.
        broken_links: relative paths of links that lead nowhere.
        empty_folders: relative paths of folders with nothing in them.

    Returns:
        the layout, and the paths that its rows stand for.

    Raises:
        InputError: no images in class folders, folders that could be read in two ways, or as `laid_out_files`.
    """
    tree = Tree(source, named_parts(tuple(part_folders)))
    tree.sort(names, broken_links, empty_folders)
    if not tree.images:
        others = f", but {named(tree.others, 'other file', 'other files')}" if tree.others else ""
        raise InputError(
            "dataset", source, f"holds no images ({', '.join(SUFFIXES)}){others}", "Put them into one folder for each class"
        )
    found = tree.parts()
    _require_plain(source, found)
    tree.require_no_lost_class(found)
    folders = {part: tree.where[part] for part in found}
    notes = Notes(
        parts=folders,
        left_out={why: tuple(left) for why, left in tree.left_out.items()},
        remarks=tuple(tree.remarks),
    )
    return laid_out_files(
        source,
        found,
        open_classes,
        class_order=class_order,
        notes=notes,
        val_is_test=not tree.named,
    )


def _require_plain(source: str, found: Mapping[str, Mapping[str, object]]) -> None:
    for classes in found.values():
        for name in classes:
            if not name.isprintable():  # it goes into logs, tables and pictures
                raise InputError("dataset", source, f"has a class folder whose name is not plain text: {name!r}", "Rename it")
