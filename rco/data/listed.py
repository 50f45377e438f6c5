"""A part of a data set whose images are files: what its JSON lists, and the worker processes that decode it."""

from __future__ import annotations

from dataclasses import dataclass

from rco.core.errors import InputError
from rco.data.images import FileImages, Pixels, Rows


@dataclass(frozen=True, kw_only=True)
class Listed:
    """What a part's JSON file holds: of each image, its path below the data set's root, and its label."""

    paths: tuple[str, ...]
    labels: tuple[int, ...]


def outlive_signals(worker: int) -> None:
    """Of a worker process: whoever ends a whole process group leaves it to the process that trains to finish its step; a worker
    ends when that one does."""
    import signal

    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@dataclass(frozen=True)
class Decoder:
    """What a worker process runs: the chunk's images, or what is wrong with them (a raised exception would lose its type)."""

    images: FileImages
    rows: Rows | None

    def __len__(self) -> int:
        return len(self.images.paths)

    def __getitem__(self, chunk: Rows) -> Pixels | InputError:
        try:
            return self.images.read(chunk if self.rows is None else self.rows[chunk])
        except InputError as error:
            return error
