"""Prepared data sets, read as normalised, augmented batches. `rco.data.prepare` writes them.

A prepared data set is a folder:

    manifest.json                               what is in it (`Manifest`)
    open.safetensors or open.json               likewise all images of the open classes, which are in no other part, if any
    train.safetensors, val..., test...          images (N, C, H, W) uint8 and labels (N,) int64, if all fit into 2 GiB;
    train.json, val.json, test.json             else paths of image files, which are decoded as they are needed, and labels
    images/                                     those files, if they came out of an archive or a store and were copied
    train.digests.safetensors, val..., test...  their sizes and digests, if they are left in a store (`rco.data.referred`)

The file of the test part is opened only where that part is asked for. Preparing needs no torch; reading batches does.
More than 400 lines: images in memory and in files are one split, whose order and randomness must be the same.
"""

from __future__ import annotations

import copy
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rco.core.documents import read_as
from rco.core.errors import InputError, choice
from rco.core.tensors import read_tensors
from rco.data.augmentation import Augmentation, as_augmentation
from rco.data.images import FileImages, Rows
from rco.data.listed import Decoder, Listed, outlive_signals
from rco.data.manifest import MANIFEST as MANIFEST
from rco.data.manifest import OPEN as OPEN
from rco.data.manifest import PARTS as PARTS
from rco.data.manifest import Manifest as Manifest
from rco.data.manifest import part_file as part_file
from rco.data.network_input import NetworkInput, Seen
from rco.data.order import balanced_order
from rco.data.share import WHOLE, Share

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Bring(Protocol):
    """What brings image files to this machine that are not in the prepared data set."""

    def __call__(self, folder: Path, manifest: Manifest, part: str, paths: Sequence[str], rows: Rows | None) -> Path:
        """The folder of the files.

        Args:
            folder: of the data set.
            paths: of all files of the part, relative.
            rows: those that are needed; None: all.
        """


class Dataset:
    """A prepared data set."""

    def __init__(self, folder: Path, manifest: Manifest, bring: Bring | None = None) -> None:
        self.folder, self.manifest, self._bring = folder, manifest, bring
        self.input = NetworkInput.of(manifest)
        self._splits: dict[str, Split] = {}
        self._prepared: Dataset | None = None

    @classmethod
    def open(cls, folder: Path, bring: Bring | None = None) -> Dataset:
        """Read the manifest of the folder; images are read when they are asked for.

        Args:
            bring: what brings image files that are elsewhere (`rco.data.referred.open_dataset` knows how).

        Raises:
            InputError: there is no whole prepared data set.
        """
        return cls(folder, read_as(Manifest, folder / MANIFEST, "Prepare it again", surrogates=True), bring)

    @property
    def is_seen(self) -> bool:
        """Whether a network takes these images otherwise than the student (`seen_by`)."""
        return self._prepared is not None

    def seen_by(self, own: NetworkInput) -> Dataset:
        """The same images as a network takes them: of the same random draws, the same views. Nothing is read or held twice.

        Raises:
            InputError: images that are not square, of another size.
        """
        prepared = self._prepared or self
        if own == prepared.input:
            return prepared
        channels, *_ = prepared.manifest.image_shape
        shape = prepared.manifest.image_shape if own.size == prepared.input.size else (channels, own.size, own.size)
        Seen.of(prepared.manifest, own)  # refuses what cannot be
        manifest = dataclasses.replace(prepared.manifest, image_shape=shape, mean=own.mean, std=own.std, kept_size=0)
        seen = Dataset(self.folder, manifest)
        seen.input, seen._prepared = own, prepared
        return seen

    def split(self, part: str) -> Split:
        """One of "train", "val" and "test", or "open" if there are open classes. Asked again, the same object."""
        choice("part", part, tuple(self.manifest.sizes))
        if part not in self._splits:
            prepared = self._prepared
            self._splits[part] = self._open(part) if prepared is None else prepared.split(part).seen_by(self)
        return self._splits[part]

    def probe(self) -> Split:
        """The fixed, stratified part of the validation images on which hardness is measured."""
        return self._open("val", np.array(self.manifest.probe, np.int64))

    def some(self, part: str, most: int) -> Split:
        """A part, or so many of its images, evenly spaced, if it has more."""
        size = self.manifest.sizes[part]
        return self.split(part) if size <= most else self._open(part, np.linspace(0, size - 1, most).astype(np.int64))

    def _open(self, part: str, rows: Rows | None = None) -> Split:
        if self._prepared is not None:
            return self._prepared._open(part, rows).seen_by(self)
        if self.manifest.storage == "files":
            return _FileSplit(self.folder, self.manifest, part, rows, self._bring)
        return _ArraySplit(self.folder, self.manifest, part, rows)


class Split(ABC):
    """One part of a prepared data set.

    Args:
        folder: of the data set.
        part: "train", "val", "test" or "open".
        rows: only these images of the part.

    Attributes:
        manifest: of the images as a network takes them.
        seen: makes them of the images as they are kept; None: they are the same.
    """

    def __init__(self, folder: Path, manifest: Manifest, part: str, rows: Rows | None = None) -> None:
        self.folder, self.manifest, self.part, self.rows = folder, manifest, part, rows
        self.file = part_file(folder, manifest, part)
        self._kept, self.seen = manifest, Seen.of(manifest, NetworkInput.of(manifest))

    def __len__(self) -> int:
        return self.manifest.sizes[self.part] if self.rows is None else len(self.rows)

    def seen_by(self, data: Dataset) -> Split:
        """The same images as the network of another view of the data set takes them; what is held of them is held once."""
        other = copy.copy(self)
        other.manifest, other.seen = data.manifest, Seen.of(self._kept, data.input)
        return other

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
        augment: str | Augmentation = "none",
        workers: int = 2,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Pass over the images once.

        Args:
            batch_size: images in a batch; the last one may be shorter. In training, what would be a last batch of one image
                is left out (unless all are of one): BatchNorm cannot learn from it.
            device: where batches lie, and where they are augmented. Arrays are moved there once, and stay.
            seed: None: all images in order, as they are. Else for training: order and augmentation are functions of
                (seed, epoch), the same on every device, with any number of workers, and for any batch size.
            augment: what happens to each image; or, by its name, a crop alone (`rco.data.augmentation.AUGMENTATIONS`).
            workers: processes that decode files; 0: this one. Arrays need none.

        Yields:
            (x, y): (B, C, H, W) float32, normalised by the manifest's mean and std, and (B,) int64; of mixed images (B, K)
            float32, the share of each class.

        Raises:
            InputError: an unknown augmentation, or one without a seed, or that does not go with these images; during the
                pass, a file that cannot be read.
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
        augment: str | Augmentation = "none",
        workers: int = 2,
        view: int | None = None,
        skip: int = 0,
        count: int | None = None,
        share: Share = WHOLE,
        balanced: bool = False,
        kept: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor, Rows]]:
        """As `batches`, and which images they are.

        Args:
            view: augmentation is then a function of (view, image), whatever seed and epoch; these still make the order.
            skip: batches to leave out at the beginning, unread; those that follow are the same as ever.
            count: batches to yield then, at most; None: all.
            share: of every batch, the part to yield; the images in it are the same as in the whole.
            balanced: show every class as often, and not every image once (`balanced_order`); needs a seed.
            kept: yield images as they are kept, of which each network's own are made by `seen`.

        Yields:
            (x, y, rows): rows is (B,), the numbers of the images in this part.
        """
        augmentation = as_augmentation(augment)
        augmentation.require_channels(self.manifest.image_shape[0])
        if seed is None and view is None and augmentation != Augmentation():
            raise InputError("augment", augment, "is random, but there is no seed", "Give a seed, or augment = none")
        if augmentation.mixes and (view is not None or seed is None):
            raise InputError(
                "augment", augment, "mixes images, whose partners are not those of a view", "Mix none, or show no view"
            )
        rng = None if seed is None else np.random.default_rng((seed, epoch))
        last = None if count is None else skip + count
        if rng is None:
            order = np.arange(len(self))
        elif balanced:
            order = balanced_order(self.labels.numpy(), rng)
        else:
            order = rng.permutation(len(self))
        shown = _Shown(order, seed, epoch, view, slice(skip, last), share)
        batches = self._batches(batch_size, device, rng, shown, augmentation, workers)
        if kept or (seen := self.seen) is None:
            return batches
        return ((seen(x), y, rows) for x, y, rows in batches)

    def _batches(
        self,
        batch_size: int,
        device: str | torch.device,
        rng: np.random.Generator | None,
        shown: _Shown,
        augmentation: Augmentation,
        workers: int,
    ) -> Iterator[tuple[Tensor, Tensor, Rows]]:
        import torch

        from rco.data.augment import draws_of, transformed, view_draws
        from rco.data.policies import ImageDraws, erased, mixed, with_policy

        device = torch.device(device)
        mean, std = (torch.tensor(v, device=device).view(-1, 1, 1) for v in (self._kept.mean, self._kept.std))
        scale, offset = 1 / (255 * std), -mean / std
        order, view, crop = shown.order, shown.view, augmentation.augment
        count = self.num_batches(batch_size) if rng else -(-len(self) // batch_size)
        sizes = [min(batch_size, len(self) - i * batch_size) for i in range(count)]
        draws = None if view is None else view_draws(crop, len(self), view)[order]
        if rng and draws is None and augmentation.mixes:  # a partner is of the next batch
            draws = draws_of(crop, len(self), rng)
        if rng and draws is None:
            for size in sizes[: shown.which.start]:
                draws_of(crop, size, rng)
        batches = range(count)[shown.which]
        parts = [shown.share.of(sizes[i]) for i in batches]
        # Of each batch, the places in the order that are this share; where images are mixed, and the place after them.
        places = [i * batch_size + np.arange(part.start, part.stop) for i, part in zip(batches, parts, strict=True)]
        if augmentation.mixes:
            places = [np.append(own, (own[-1] + 1) % len(self)) for own in places]
        rows_of = [order[own] for own in places]
        raw = self._raw(rows_of, device, workers)
        for i, part, own, rows, (images, labels) in zip(batches, parts, places, rows_of, raw, strict=True):
            if draws is not None:
                images = transformed(images, crop, draws[own])
            elif rng:
                images = transformed(images, crop, draws_of(crop, sizes[i], rng)[part])
            if augmentation.crops_alone:
                yield images.to(torch.float32).mul_(scale).add_(offset), labels, rows
                continue
            drawn = ImageDraws.of(
                augmentation, rows if view is not None else own, seed=shown.seed or 0, epoch=shown.epoch, view=view
            )
            x = with_policy(images, augmentation, drawn).to(torch.float32).mul_(scale).add_(offset)
            x = erased(x, augmentation, drawn)
            if augmentation.mixes:
                x, labels = mixed(x[:-1], labels[:-1], x[1:], labels[1:], drawn.first(len(rows) - 1), self.manifest.num_classes)
                rows = rows[:-1]
            yield x, labels, rows

    def _check_labels(self, labels: NDArray[np.int64]) -> None:
        """Refuse labels that no class has: a device would fail on them later, or answer wrongly."""
        known = list(self.manifest.open_classes.values()) if self.part == OPEN else range(self.manifest.num_classes)
        if not np.isin(labels, known).all():
            raise InputError("dataset", str(self.file), "has labels of classes that there are not", "Prepare it again")

    @abstractmethod
    def _raw(self, chunks: list[Rows], device: torch.device, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
        """For each of the chunks, its images (B, C, H, W) uint8 and labels (B,) on `device`."""


@dataclass(frozen=True)
class _Shown:
    """Which images a pass shows, and what their randomness is a function of: see `Split.indexed_batches`."""

    order: Rows
    seed: int | None
    epoch: int
    view: int | None
    which: slice
    share: Share


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
        shape, dtype = ((count,), torch.int64) if name == "labels" else ((count, *self._kept.kept_shape), torch.uint8)
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


class _FileSplit(Split):
    """Images in files: decoded by worker processes while the device computes."""

    def __init__(
        self, folder: Path, manifest: Manifest, part: str, rows: Rows | None = None, bring: Bring | None = None
    ) -> None:
        super().__init__(folder, manifest, part, rows)
        self._bring = bring

    @cached_property
    def _listed(self) -> tuple[tuple[str, ...], NDArray[np.int64]]:
        """Paths and labels of the whole part."""
        listed = read_as(Listed, self.file, "Prepare it again", surrogates=True)
        if not len(listed.paths) == len(listed.labels) == self.manifest.sizes[self.part]:
            raise InputError("dataset", str(self.file), "lists other files than its manifest says", "Prepare it again")
        for path in listed.paths:
            if PurePath(path).is_absolute() or ".." in PurePath(path).parts:
                raise InputError("dataset", path, f"leads out of the data set ({self.file.name})", "Prepare it again")
        labels = np.array(listed.labels, np.int64)
        self._check_labels(labels)
        return listed.paths, labels

    @cached_property
    def _images(self) -> FileImages:
        paths = self._listed[0]
        images = FileImages(self._root(paths), paths, self._kept.kept_shape, self.manifest.resize, self.manifest.decoding)
        # Before room is made for many: the manifest's word on their size may be false.
        first = 0 if self.rows is None or not len(self.rows) else int(self.rows[0])
        dataclasses.replace(images, paths=paths[first : first + 1]).check()
        return images

    def _root(self, paths: Sequence[str]) -> Path:
        """The folder of the files, all of which are there then that this split shows."""
        if self.manifest.origin.address:
            if self._bring is None:
                raise InputError(
                    "dataset",
                    str(self.folder),
                    f"has its image files in {self.manifest.origin.address}",
                    "Open it with rco.data.referred.open_dataset, which brings them",
                )
            return self._bring(self.folder, self.manifest, self.part, paths, self.rows)
        root = self.folder / self.manifest.root
        if not root.is_dir():
            raise InputError(
                "dataset", str(root), "is not on this machine", "Mount it under the same path, or use an s3:// address"
            )
        return root

    @cached_property
    def labels(self) -> Tensor:
        import torch

        labels = self._listed[1]
        return torch.from_numpy(labels if self.rows is None else labels[self.rows])

    def _raw(self, chunks: list[Rows], device: torch.device, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
        import torch
        from torch.utils.data import DataLoader

        decoded: DataLoader[Any] = DataLoader(
            Decoder(self._images, self.rows),  # type: ignore[arg-type]  # it is a Dataset in all but name: its class would need torch
            batch_size=None,
            sampler=chunks,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # the global one must not move with the number of passes
            worker_init_fn=outlive_signals,
        )
        for chunk, images in zip(chunks, decoded, strict=True):
            if isinstance(images, InputError):
                raise images
            yield images.to(device, non_blocking=True), self.labels[torch.from_numpy(chunk)].to(device, non_blocking=True)
