"""Image files that a prepared data set does not hold: it says where they are, and what they must be.

A large set that came from a store or out of an archive is not copied once more (`prepare`, `refer`). Whoever reads it brings
the files of the part that it reads, once:

    RCO_IMAGES             a folder for such files; a local run sets HOME/images. Else they are put beside the data set
    RCO_IMAGES/KEY/files/  of one content at one address. A file is there only when it is whole and has its digest; an archive
                           is unpacked elsewhere, and renamed. So what is there is trusted, by its size alone
    RCO_IMAGES/KEY/.lock   of several processes one brings the files, and the others wait

A task that is interrupted goes on with the files that are missing; of an archive it begins again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from rco.core.errors import InputError
from rco.core.files import sha256_of
from rco.data.dataset import Dataset
from rco.data.images import Rows
from rco.data.manifest import Manifest, Origin, digests_file

VARIABLE = "RCO_IMAGES"
_FILES, _LOCK, _UNPACKED = "files", ".lock", ".unpacked-"
_REMEDY = "Put it back as it was, or start the run again: it prepares what is there now"

log = logging.getLogger(__name__)


def open_dataset(folder: Path, images: Path | None = None) -> Dataset:
    """As `Dataset.open`; files that are elsewhere are brought when they are asked for.

    Args:
        images: the folder that receives them; None: RCO_IMAGES, or else beside the data set.
    """
    return Dataset.open(folder, _Bringing(images))


def hand_over(root: Path, origin: Origin) -> None:
    """Leave files that have just been fetched or unpacked, and read, to those that will ask for them, if RCO_IMAGES is set
    and lies on the same file system. `root` is gone then."""
    if not os.environ.get(VARIABLE):
        return
    with suppress(OSError):
        place = _made(Path(os.environ[VARIABLE]) / _key(origin))
        with _alone(place, origin):
            if not (place / _FILES).exists():
                os.rename(root, place / _FILES)


@dataclass(frozen=True)
class _Bringing:
    """See `rco.data.dataset.Bring`."""

    images: Path | None

    def __call__(self, folder: Path, manifest: Manifest, part: str, paths: Sequence[str], rows: Rows | None) -> Path:
        origin = manifest.origin
        place = self._place(folder, origin)
        if origin.archive:
            with _alone(place, origin):
                if not (place / _FILES).is_dir():
                    _unpack(origin, place)
        else:
            _fetch(origin, place, digests_file(folder, part), paths, rows)
        with suppress(OSError):
            os.utime(place)  # it is in use: `rco clean` goes by that
        return place / _FILES

    def _place(self, folder: Path, origin: Origin) -> Path:
        chosen = self.images or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
        if chosen is not None:
            return _made(chosen / _key(origin))
        try:
            return _made(folder / "images")
        except OSError:  # what a task is given may be read-only
            return _made(Path(tempfile.gettempdir()) / f"rco-images-{os.getuid()}" / _key(origin))


def _made(place: Path) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    (place / _LOCK).touch()
    return place


def _key(origin: Origin) -> str:
    return hashlib.sha256(f"{origin.address}\n{origin.sha256}".encode(errors="backslashreplace")).hexdigest()[:32]


@contextmanager
def _alone(place: Path, origin: Origin) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(place / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("another task brings the images of %s; waiting for it", origin.address)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _unpack(origin: Origin, place: Path) -> None:
    from rco.core.storage.addresses import is_remote
    from rco.core.storage.transfer import fetch
    from rco.data.sources.places import as_dataset
    from rco.data.sources.unpack import extract

    for left in place.glob(f"{_UNPACKED}*"):  # by a task that was killed
        shutil.rmtree(left, ignore_errors=True)
    if not is_remote(origin.address) and not os.path.isfile(origin.address):
        problem = "is not on this machine"
        raise InputError("dataset", origin.address, problem, "Mount it under the same path, or put it back as it was")
    with TemporaryDirectory(dir=place, prefix=_UNPACKED) as scratch:
        log.info("bringing the images of %s, once for all that read them here", origin.address)
        with as_dataset():
            path = fetch(origin.address, Path(scratch))
        if not path.is_file() or sha256_of(path) != origin.sha256:
            raise InputError("dataset", origin.address, "has changed since the data set was prepared", _REMEDY)
        root = extract(path, Path(scratch) / _FILES, origin.address)
        os.rename(root, place / _FILES)
    log.info("the images of %s are unpacked", origin.address)


def _fetch(origin: Origin, place: Path, digests: Path, paths: Sequence[str], rows: Rows | None) -> None:
    from rco.core.storage.transfer import ChangedError, Known, fetch_known
    from rco.data.sources.places import as_dataset

    sizes, sha256 = _digests(digests, len(paths))
    wanted = range(len(paths)) if rows is None else [int(row) for row in rows]
    root = place / _FILES

    def missing() -> list[int]:
        return [i for i in wanted if _size(root / paths[i]) != sizes[i]]

    if not missing():
        return
    with _alone(place, origin):
        todo = missing()
        need = sum(int(sizes[i]) for i in todo)
        free = shutil.disk_usage(place).free
        if need > free:
            problem = f"has {need / 1e9:.2f} GB of images that are read here, and {place} has room for {free / 1e9:.2f} GB"
            raise InputError("dataset", origin.address, problem, f"Make room, or name another folder in {VARIABLE}")
        if todo:
            have = f"; {len(wanted) - len(todo):,} are here" if len(todo) < len(wanted) else ""
            log.info("fetching %s images of %s, %.3f GB%s", f"{len(todo):,}", origin.address, need / 1e9, have)
            files = [Known(paths[i], int(sizes[i]), sha256[i].tobytes()) for i in todo]
            try:
                with as_dataset():
                    fetch_known(origin.address, root, files)
            except ChangedError as error:
                problem = f"{error.problem}, since the data set was prepared"
                raise InputError("dataset", origin.address, problem, _REMEDY) from None
            log.info("the images of %s are fetched", origin.address)


def _digests(path: Path, count: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    from rco.core.tensors import read_tensors

    sizes, sha256 = read_tensors(path, ["sizes", "sha256"], "numpy")
    if sizes.shape != (count,) or sha256.shape != (count, 32) or sizes.dtype != np.int64 or sha256.dtype != np.uint8:
        raise InputError("dataset", str(path), "has other digests than its manifest says", "Prepare it again")
    return sizes, sha256


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
