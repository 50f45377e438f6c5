"""Images that lie in class folders.

Image folders, tars of one, and S3 addresses of either are laid out in one of two ways (one folder around it all is allowed):

    train/CLASS/*.jpg, test/CLASS/*.jpg     and, if you like, val/CLASS/*.jpg. A val/ without a test/ is the test part
                                            (see `rco.data.sources.layout.laid_out_files`)
    CLASS/*.jpg                             validation and test part are held out

Other files, and names that begin with a dot, are passed over.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from rco.core.errors import InputError
from rco.core.storage.local import list_files
from rco.data.config import DataConfig
from rco.data.dataset import PARTS
from rco.data.images import SUFFIXES, FileImages, Shape
from rco.data.sources.base import Info, Source, resized
from rco.data.sources.layout import Layout, laid_out_files
from rco.data.sources.places import as_dataset


def files_source(config: DataConfig, root: Path) -> Source:
    """The source whose image files lie in class folders below `root`."""
    with as_dataset():
        layout, paths = lay_out(config.dataset, list_files(root), config.open_classes)
    return Source(layout, FileImages.of(root, paths, config.image_size))


def info_of(layout: Layout, shape: Shape, config: DataConfig) -> Info:
    """What is known of a layout whose first image has this shape, (C, H, W)."""
    counts = {part: len(rows) for part, rows in layout.parts.items()}
    return Info(len(layout.class_names), layout.class_names, resized(shape, config), counts)


def lay_out(source: str, names: Iterable[str], open_classes: Sequence[str] = ()) -> tuple[Layout, list[str]]:
    """Tell classes and parts from the relative paths of files alone.

    Args:
        open_classes: see `laid_out`.

    Returns:
        the layout, and the paths that its rows stand for.

    Raises:
        InputError: no images in class folders, or as `laid_out_files`.
    """
    paths = sorted(PurePosixPath(name).parts for name in names if is_image(name))
    if not paths:
        raise InputError(
            "dataset", source, f"holds no images ({', '.join(SUFFIXES)})", "Put them into one folder for each class"
        )
    depth = 0
    while len({p[depth] for p in paths}) == 1 and paths[0][depth] not in PARTS and min(len(p) for p in paths) > depth + 2:
        depth += 1
    split = any(p[depth] == "train" and len(p) > depth + 2 for p in paths)
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))  # part -> class -> paths
    for path in paths:
        *folders, _ = path[depth:]
        if not split and folders:
            found["train"][folders[0]].append("/".join(path))
        elif split and len(folders) > 1 and folders[0] in PARTS:
            found[folders[0]][folders[1]].append("/".join(path))
    if not found:
        raise InputError("dataset", source, "has images, but not in class folders", "Put them into one folder for each class")
    if not split and set(found["train"]) <= set(PARTS):
        raise InputError(
            "dataset", source, "has no train/CLASS folders", "Lay it out as train/CLASS/*, test/CLASS/* or CLASS/*"
        )
    for classes in found.values():
        for name in classes:
            if not name.isprintable():  # it goes into logs, tables and pictures
                raise InputError("dataset", source, f"has a class folder whose name is not plain text: {name!r}", "Rename it")
    return laid_out_files(source, found, open_classes)


def is_image(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES and not any(part.startswith((".", "__MACOSX")) for part in path.parts)
