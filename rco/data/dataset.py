"""Prepared data sets, read as normalised, augmented batches. `rco.data.prepare` writes them.

A prepared data set is a folder:

    manifest.json                               what is in it (`Manifest`)
    open.safetensors or open.json               likewise all images of the open classes, which are in no other part, if any
    train.safetensors, val..., test...          images (N, C, H, W) uint8 and labels (N,) int64, if all fit into 2 GiB;
    train.json, val.json, test.json             else paths of image files, which are decoded as they are needed, and labels
    images/                                     those files, if they came out of a tar or a store

The file of the test part is opened only where that part is asked for. Preparing needs no torch; reading batches does.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rco.core.documents import read_as
from rco.core.errors import InputError, choice
from rco.core.settings import jsonable
from rco.core.tensors import read_tensors
from rco.data.account import Account
from rco.data.config import AUGMENTATIONS, LARGEST_IMAGE
from rco.data.decoding import Decoding
from rco.data.image_file import Shape
from rco.data.images import FileImages, Pixels, Rows
from rco.data.order import balanced_order
from rco.data.share import WHOLE, Share

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MANIFEST = "manifest.json"
PARTS = ("train", "val", "test")
OPEN = "open"
_LARGEST = 2**16  # pixels


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a prepared data set is.

    Args:
        source: what the user called it.
        source_digest: what the source held; see `source_digest`.
        digest: hex sha256 of the prepared content, wherever it lies.
        storage: "arrays" or "files".
        root: folder of the files, absolute or relative to the data set; empty for arrays.
        resize: whether files are brought to `image_shape` when read; else they have it.
        num_classes: K.
        class_names: of the K classes, by label. Open classes are not among them.
        image_shape: (C, H, W).
        mean: of each channel of the training images scaled to 0..1 (files: of 4,096 images, evenly spaced); or `image_mean`.
        std: likewise; at least one grey level, for it is divided by; or `image_std`.
        sizes: images in "train", "val" and "test", and in "open" if there are open classes.
        probe: the validation images, by number, on which hardness is measured.
        open_classes: name -> label of the classes that nothing is trained on; the labels are those of the source.
        decoding: how files become pixels.
        account: what became of the source, for people; older data sets have none.
    """

    source: str
    source_digest: str
    digest: str
    storage: str
    root: str
    resize: bool
    num_classes: int
    class_names: tuple[str, ...]
    image_shape: Shape
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sizes: dict[str, int]
    probe: tuple[int, ...]
    open_classes: dict[str, int] = field(default_factory=dict)
    decoding: Decoding = field(default_factory=Decoding)
    account: Account = field(default_factory=Account)

    def __post_init__(self) -> None:
        channels, height, width = self.image_shape
        colours = (1, 3) if self.storage == "files" else (1, 2, 3, 4)  # files are decoded as grey or as colour
        wrong = {
            "storage": self.storage not in ("arrays", "files"),
            "num_classes": self.num_classes < 2,
            "class_names": len(self.class_names) != self.num_classes,
            "image_shape": channels not in colours or not (1 <= height <= _LARGEST and 1 <= width <= _LARGEST),
            "resize": self.resize and (height != width or height > LARGEST_IMAGE),
            "mean": len(self.mean) != channels or not all(map(math.isfinite, self.mean)),
            "std": len(self.std) != channels or not all(math.isfinite(v) and v > 0 for v in self.std),
            "sizes": set(self.sizes) != {*PARTS, *([OPEN] if self.open_classes else [])} or min(self.sizes.values()) < 0,
            "probe": not all(0 <= row < self.sizes.get("val", 0) for row in self.probe),
            "root": ".." in PurePath(self.root).parts,
        }
        for name, is_wrong in wrong.items():
            if is_wrong:
                raise InputError(name, getattr(self, name), "is not what a prepared data set has", "Prepare it again")

    @property
    def written(self) -> dict[str, Any]:
        """As it is written. What is as it was before there was a choice is left out: such data sets are older."""
        words = jsonable(self)
        for name, default in (("open_classes", {}), ("decoding", Decoding()), ("account", Account())):
            if getattr(self, name) == default:
                del words[name]
        return dict(words)


def part_file(folder: Path, manifest: Manifest, part: str) -> Path:
    """Where one part's labels are, with its images or their paths."""
    return folder / f"{part}.{'json' if manifest.storage == 'files' else 'safetensors'}"


class Dataset:
    """A prepared data set."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self._splits: dict[str, Split] = {}

    @classmethod
    def open(cls, folder: Path) -> Dataset:
        """Read the manifest of the folder; images are read when they are asked for.

        Raises:
            InputError: there is no whole prepared data set.
        """
        return cls(folder, read_as(Manifest, folder / MANIFEST, "Prepare it again", surrogates=True))

    def split(self, part: str) -> Split:
        """One of "train", "val" and "test", or "open" if there are open classes. Asked again, the same object."""
        choice("part", part, tuple(self.manifest.sizes))
        if part not in self._splits:
            self._splits[part] = self._open(part)
        return self._splits[part]

    def probe(self) -> Split:
        """The fixed, stratified part of the validation images on which hardness is measured."""
        return self._open("val", np.array(self.manifest.probe, np.int64))

    def some(self, part: str, most: int) -> Split:
        """A part, or so many of its images, evenly spaced, if it has more."""
        size = self.manifest.sizes[part]
        return self.split(part) if size <= most else self._open(part, np.linspace(0, size - 1, most).astype(np.int64))

    def _open(self, part: str, rows: Rows | None = None) -> Split:
        kind = _FileSplit if self.manifest.storage == "files" else _ArraySplit
        return kind(self.folder, self.manifest, part, rows)


class Split(ABC):
    """One part of a prepared data set.

    Args:
        folder: of the data set.
        part: "train", "val", "test" or "open".
        rows: only these images of the part.
    """

    def __init__(self, folder: Path, manifest: Manifest, part: str, rows: Rows | None = None) -> None:
        self.folder, self.manifest, self.part, self.rows = folder, manifest, part, rows
        self.file = part_file(folder, manifest, part)

    def __len__(self) -> int:
        return self.manifest.sizes[self.part] if self.rows is None else len(self.rows)

    def num_batches(self, batch_size: int) -> int:
        """Training batches of an epoch: a last batch of a single image is left out."""
        whole, rest = divmod(len(self), batch_size)
        return whole + (rest > 1)

    @property
    @abstractmethod
    def labels(self) -> Tensor:
        """(N,) int64."""

    def batches(
        self,
        batch_size: int,
        *,
        device: str | torch.device = "cpu",
        seed: int | None = None,
        epoch: int = 0,
        augment: str = "none",
        workers: int = 2,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Pass over the images once.

        Args:
            batch_size: images in a batch; the last one may be shorter. In training, what would be a last batch of one image
                is left out (unless all are of one): BatchNorm cannot learn from it.
            device: where batches lie, and where they are augmented. Arrays are moved there once, and stay.
            seed: None: all images in order, as they are. Else for training: order and augmentation are functions of
                (seed, epoch), the same on every device, with any number of workers, and for any batch size.
            augment: one of `rco.data.config.AUGMENTATIONS`; see `rco.data.augment`.
            workers: processes that decode files; 0: this one. Arrays need none.

        Yields:
            (x, y): (B, C, H, W) float32, normalised by the manifest's mean and std, and (B,) int64.

        Raises:
            InputError: an unknown augmentation, or one without a seed; during the pass, a file that cannot be read.
        """
        indexed = self.indexed_batches(
            batch_size, device=device, seed=seed, epoch=epoch, augment=augment, workers=workers, view=None
        )
        return ((x, y) for x, y, _ in indexed)

    def indexed_batches(
        self,
        batch_size: int,
        *,
        device: str | torch.device = "cpu",
        seed: int | None = None,
        epoch: int = 0,
        augment: str = "none",
        workers: int = 2,
        view: int | None = None,
        skip: int = 0,
        count: int | None = None,
        share: Share = WHOLE,
        balanced: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor, Rows]]:
        """As `batches`, and which images they are.

        Args:
            view: augmentation is then a function of (view, image), whatever seed and epoch; these still make the order.
            skip: batches to leave out at the beginning, unread; those that follow are the same as ever.
            count: batches to yield then, at most; None: all.
            share: of every batch, the part to yield; the images in it are the same as in the whole.
            balanced: show every class as often, and not every image once (`balanced_order`); needs a seed.

        Yields:
            (x, y, rows): rows is (B,), the numbers of the images in this part.
        """
        choice("augment", augment, AUGMENTATIONS)
        if seed is None and view is None and augment != "none":
            raise InputError("augment", augment, "is random, but there is no seed", "Give a seed, or augment = none")
        rng = None if seed is None else np.random.default_rng((seed, epoch))
        last = None if count is None else skip + count
        if rng is None:
            order = np.arange(len(self))
        elif balanced:
            order = balanced_order(self.labels.numpy(), rng)
        else:
            order = rng.permutation(len(self))
        return self._batches(batch_size, device, rng, order, augment, workers, view, slice(skip, last), share)

    def _batches(
        self,
        batch_size: int,
        device: str | torch.device,
        rng: np.random.Generator | None,
        order: Rows,
        augment: str,
        workers: int,
        view: int | None,
        which: slice,
        share: Share,
    ) -> Iterator[tuple[Tensor, Tensor, Rows]]:
        import torch

        from rco.data.augment import draws_of, transformed, view_draws

        device = torch.device(device)
        mean, std = (torch.tensor(v, device=device).view(-1, 1, 1) for v in (self.manifest.mean, self.manifest.std))
        scale, offset = 1 / (255 * std), -mean / std
        count = self.num_batches(batch_size) if rng else -(-len(self) // batch_size)
        chunks = [order[i * batch_size : (i + 1) * batch_size] for i in range(count)]
        draws = None if view is None else view_draws(augment, len(self), view)
        if rng and draws is None:
            for rows in chunks[: which.start]:
                draws_of(augment, len(rows), rng)
        chunks = chunks[which]
        parts = [share.of(len(rows)) for rows in chunks]
        shares = [rows[part] for rows, part in zip(chunks, parts, strict=True)]
        for chunk, part, rows, (images, labels) in zip(chunks, parts, shares, self._raw(shares, device, workers), strict=True):
            if draws is not None:
                images = transformed(images, augment, draws[rows])
            elif rng:
                images = transformed(images, augment, draws_of(augment, len(chunk), rng)[part])
            yield images.to(torch.float32).mul_(scale).add_(offset), labels, rows

    def _check_labels(self, labels: NDArray[np.int64]) -> None:
        """Refuse labels that no class has: a device would fail on them later, or answer wrongly."""
        known = list(self.manifest.open_classes.values()) if self.part == OPEN else range(self.manifest.num_classes)
        if not np.isin(labels, known).all():
            raise InputError("dataset", str(self.file), "has labels of classes that there are not", "Prepare it again")

    @abstractmethod
    def _raw(self, chunks: list[Rows], device: torch.device, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
        """For each of the chunks, its images (B, C, H, W) uint8 and labels (B,) on `device`."""


class _ArraySplit(Split):
    """Images in memory: loaded and moved to the device when first used there."""

    def __init__(self, folder: Path, manifest: Manifest, part: str, rows: Rows | None = None) -> None:
        super().__init__(folder, manifest, part, rows)
        self._resident: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @cached_property
    def labels(self) -> Tensor:
        return self._tensor("labels")

    def _tensor(self, name: str) -> Tensor:
        import torch

        count = self.manifest.sizes[self.part]
        shape, dtype = ((count,), torch.int64) if name == "labels" else ((count, *self.manifest.image_shape), torch.uint8)
        # What is kept must be good for training too, also if inference was first to ask.
        with torch.inference_mode(False):
            tensor: Tensor
            (tensor,) = read_tensors(self.file, [name])
            if tuple(tensor.shape) != shape or tensor.dtype != dtype:
                raise InputError("dataset", str(self.file), f"has other {name} than its manifest says", "Prepare it again")
            if name == "labels":
                self._check_labels(tensor.numpy())
            return tensor if self.rows is None else tensor[torch.from_numpy(self.rows)]

    def _raw(self, chunks: list[Rows], device: torch.device, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
        import torch

        from rco.data.augment import moved

        if device not in self._resident:
            with torch.inference_mode(False):
                self._resident[device] = self._tensor("images").to(device), self.labels.to(device)
        images, labels = self._resident[device]
        for chunk in chunks:
            index = moved(chunk, device)
            yield images.index_select(0, index), labels.index_select(0, index)


@dataclass(frozen=True, kw_only=True)
class _Listed:
    """What a part's JSON file holds: of each image, its path below the data set's root, and its label."""

    paths: tuple[str, ...]
    labels: tuple[int, ...]


class _FileSplit(Split):
    """Images in files: decoded by worker processes while the device computes."""

    @cached_property
    def _listed(self) -> tuple[FileImages, NDArray[np.int64]]:
        listed = read_as(_Listed, self.file, "Prepare it again", surrogates=True)
        if not len(listed.paths) == len(listed.labels) == self.manifest.sizes[self.part]:
            raise InputError("dataset", str(self.file), "lists other files than its manifest says", "Prepare it again")
        for path in listed.paths:
            if PurePath(path).is_absolute() or ".." in PurePath(path).parts:
                raise InputError("dataset", path, f"leads out of the data set ({self.file.name})", "Prepare it again")
        root = self.folder / self.manifest.root
        if not root.is_dir():
            raise InputError(
                "dataset", str(root), "is not on this machine", "Mount it under the same path, or use an s3:// address"
            )
        labels = np.array(listed.labels, np.int64)
        self._check_labels(labels)
        images = FileImages(root, listed.paths, self.manifest.image_shape, self.manifest.resize, self.manifest.decoding)
        # Before room is made for many: the manifest's word on their size may be false.
        dataclasses.replace(images, paths=listed.paths[:1]).check()
        return images, labels

    @cached_property
    def labels(self) -> Tensor:
        import torch

        labels = self._listed[1]
        return torch.from_numpy(labels if self.rows is None else labels[self.rows])

    def _raw(self, chunks: list[Rows], device: torch.device, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
        import torch
        from torch.utils.data import DataLoader

        decoded: DataLoader[Any] = DataLoader(
            _Decoder(self._listed[0], self.rows),  # type: ignore[arg-type]  # it is a Dataset in all but name: its class would need torch
            batch_size=None,
            sampler=chunks,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # the global one must not move with the number of passes
            worker_init_fn=_outlive_signals,
        )
        for chunk, images in zip(chunks, decoded, strict=True):
            if isinstance(images, InputError):
                raise images
            yield images.to(device, non_blocking=True), self.labels[torch.from_numpy(chunk)].to(device, non_blocking=True)


def _outlive_signals(worker: int) -> None:
    """Of a worker process: whoever ends a whole process group leaves it to the process that trains to finish its step; a worker
    ends when that one does."""
    import signal

    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@dataclass(frozen=True)
class _Decoder:
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
