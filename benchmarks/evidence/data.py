"""The data of a plan's settings: prepared once, in the cache; of large sets a part, cut from a folder or a tar."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.evidence.plan import Setting, Subset
from rco.config.parameters import RunConfig
from rco.core.errors import InputError
from rco.core.settings import jsonable
from rco.data.dataset import Dataset
from rco.data.prepare import prepare
from rco.data.sources.kinds import source_digest
from rco.training.identity import name_of


def prepared(setting: Setting, cache: Path, source: Path | None) -> Dataset:
    """The data set of a setting.

    Args:
        source: folder that holds the archives; needed only if the part that is asked for is not in the cache yet.

    Raises:
        InputError: the archive is not there, or has fewer classes or images.
    """
    config = RunConfig.from_flat(setting.parameters).data
    folder = cache / f"data-{name_of(jsonable({'data': config, 'subset': setting.subset}), 16)}"
    if not folder.is_dir():
        half = cache / f"{folder.name}.half-{os.getpid()}"
        shutil.rmtree(half, ignore_errors=True)
        if setting.subset is not None:
            _cut(setting.subset, source, half / "images")
            config = config.with_values(dataset=str(half / "images"))
        half.mkdir(parents=True, exist_ok=True)
        prepare(config, half, source_digest(config))
        shutil.rmtree(half / "images", ignore_errors=True)
        put(half, folder)
    return Dataset.open(folder)


def put(half: Path, folder: Path) -> None:
    """Give a folder that is whole its name; another process may have been faster."""
    try:
        half.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(half, ignore_errors=True)


def sweep(cache: Path) -> None:
    """Remove what processes of this machine have left half made: they were ended, and nothing goes on from there."""
    for half in cache.glob("*.half-*"):
        number = half.name.rpartition("-")[2]
        if number.isdigit() and not Path(f"/proc/{number}").exists():
            shutil.rmtree(half, ignore_errors=True)


def _cut(subset: Subset, source: Path | None, target: Path) -> None:
    """Write the images of a part: target/{train,test}/CLASS/FILE."""
    remedy = f"Give DATA=DIR, a folder with {subset.archive}.tar.xz or the folder {subset.archive} in it"
    if source is None:
        raise InputError("data", "", f"is not named, and {subset.archive} is needed", remedy)
    files = dict(_files(source, subset.archive, remedy))
    by_class: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in sorted(files):
        part, label, _ = name.split("/")
        by_class[part, label].append(name)
    labels = sorted({label for part, label in by_class if part == "train"})
    if len(labels) < subset.classes:
        raise InputError("classes", subset.classes, f"are more than the {len(labels)} of {subset.archive}", "Want fewer")
    wanted = set[str]()
    for label in (labels[i * len(labels) // subset.classes] for i in range(subset.classes)):
        if len(by_class["train", label]) < subset.images:
            raise InputError(
                "images", subset.images, f"are more than the {len(by_class['train', label])} of {label}", "Want fewer"
            )
        wanted.update(by_class["train", label][: subset.images], by_class["test", label])
    for name in sorted(wanted):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(files[name]())


def _files(source: Path, archive: str, remedy: str) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """PART/CLASS/FILE of every image of an archive, and what gives its bytes; those of a tar (some 50 MB) are held."""
    folder, tar = source / archive, source / f"{archive}.tar.xz"
    if folder.is_dir():
        for path in folder.glob("*/*/*"):
            yield path.relative_to(folder).as_posix(), path.read_bytes
    elif tar.is_file():
        with tarfile.open(tar) as opened:
            for member in opened:
                parts = Path(member.name).parts[-3:]
                if member.isfile() and len(parts) == 3 and parts[0] in ("train", "test"):
                    file = opened.extractfile(member)
                    assert file is not None
                    yield "/".join(parts), partial(bytes, file.read())
    else:
        raise InputError("data", str(source), f"has no {archive}", remedy)
