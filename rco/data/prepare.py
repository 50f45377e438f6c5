"""From a source to a prepared data set: split it, measure it, and write what `rco.data.dataset` reads. Needs no torch."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from joblib import cpu_count
from numpy.typing import NDArray

from rco.core.documents import write_json
from rco.core.errors import InputError
from rco.core.files import sha256_of
from rco.core.tensors import save_arrays
from rco.data.config import DataConfig
from rco.data.dataset import MANIFEST, OPEN, PARTS, Manifest, part_file
from rco.data.images import FileImages, Images, Pixels, Rows
from rco.data.sources.kinds import open_source
from rco.data.sources.layout import Layout

IN_MEMORY_GIB = 2
_SAMPLED = 4096  # images from which the mean and deviation of a set of files are estimated
_BLOCK = 256


def prepare(config: DataConfig, out: Path, digest: str) -> Manifest:
    """Read a source, split it, and write the prepared data set to the folder `out`.

    Args:
        digest: what `source_digest` says; it is recorded.

    Raises:
        InputError: the source cannot be read or split (see `rco.data.sources`), or is too large for memory.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / MANIFEST).unlink(missing_ok=True)  # it is written last: where there is one, the data set is whole
    with open_source(config, out) as source:
        images, layout = source.images, source.layout
        splits = split(layout, config)
        if layout.open_classes:
            splits[OPEN] = layout.open_rows
        gib = sum(map(len, splits.values())) * math.prod(images.shape) / 2**30
        files = images if isinstance(images, FileImages) and gib > IN_MEMORY_GIB else None
        if files:
            root, (mean, std) = _write_files(files, layout, splits, out)
        elif gib <= IN_MEMORY_GIB:
            root, (mean, std) = "", _write_arrays(images, layout, splits, out)
        else:
            raise InputError(
                "image_size",
                config.image_size,
                f"makes {config.dataset} {gib:.1f} GiB, but what is not an image folder must fit into {IN_MEMORY_GIB} GiB",
                "Choose smaller images, or save the data set as an image folder",
            )
        validation = splits["val"]
        probe = stratified(layout.labels[validation], min(1.0, config.probe_size / len(validation)), (config.data_seed, 2))
        manifest = Manifest(
            source=config.dataset,
            source_digest=digest,
            digest="",
            storage="files" if files else "arrays",
            root=root,
            resize=files is not None and files.resize,
            num_classes=len(layout.class_names),
            class_names=layout.class_names,
            image_shape=images.shape,
            mean=mean,
            std=std,
            sizes={part: len(rows) for part, rows in splits.items()},
            probe=tuple(probe.tolist()),
            open_classes=layout.open_classes,
        )
    manifest = replace(manifest, digest=_digest(manifest, out))
    write_json(out / MANIFEST, manifest.written)
    return manifest


def split(layout: Layout, config: DataConfig) -> dict[str, Rows]:
    """Rows of "train", "val" and "test"; what the source does not tell apart itself is held out from its training part.

    Every class is in every part. First the test part is taken, then the validation part.
    """
    parts = dict(layout.parts)
    for stream, (part, fraction, leave) in enumerate((("test", config.test_fraction, 2), ("val", config.val_fraction, 1))):
        if part not in parts:
            train = parts["train"]
            held_out = stratified(layout.labels[train], fraction, (config.data_seed, stream), least=1, leave=leave)
            parts[part], parts["train"] = train[held_out], np.delete(train, held_out)
    return {part: parts[part] for part in PARTS}


def stratified(labels: Rows, fraction: float, seed: tuple[int, ...], *, least: int = 0, leave: int = 0) -> Rows:
    """A random part of `labels` (N,) in which every class has its share: sorted positions, a function of the arguments.

    Shares are rounded by largest remainder, so that the part has round(fraction * N) members, each class within one of its
    exact share; then `least` and `leave` are seen to.

    Args:
        least: of every class, take so many at least.
        leave: of every class, leave so many at least.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    counts = np.bincount(labels)
    exact = counts * fraction
    shares = np.floor(exact).astype(np.int64)
    # Ties are drawn by lot: the first classes must not always be the lucky ones.
    by_remainder = np.lexsort((rng.random(len(counts)), shares - exact))
    shares[by_remainder[: int(np.rint(exact.sum())) - shares.sum()]] += 1
    shares = np.clip(shares, least, counts - leave)
    members = [rng.permutation(np.flatnonzero(labels == k))[:share] for k, share in enumerate(shares)]
    return np.sort(np.concatenate(members))


def channel_statistics(blocks: Iterable[Pixels]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of (N, C, H, W) uint8 images, scaled to 0..1.

    Sums are whole numbers, so the result is the same in any order and on any machine. A deviation is at least one level.
    """
    counts: NDArray[np.int64] | int = 0  # (C, 256)
    for block in blocks:
        counts = counts + np.stack([np.bincount(channel.ravel(), minlength=256) for channel in block.swapaxes(0, 1)])
    mean, std = [], []
    for channel in np.asarray(counts).tolist():
        n, s, squares = (sum(count * level**power for level, count in enumerate(channel)) for power in range(3))
        mean.append(s / n / 255)
        std.append(max(math.sqrt(n * squares - s * s) / n, 1) / 255)
    return tuple(mean), tuple(std)


Statistics = tuple[tuple[float, ...], tuple[float, ...]]


def _write_arrays(images: Images, layout: Layout, splits: dict[str, Rows], out: Path) -> Statistics:
    for part, rows in splits.items():
        pixels = images.read(rows, cpu_count())
        save_arrays(out / f"{part}.safetensors", {"images": pixels, "labels": layout.labels[rows]})
        if part == "train":
            statistics = channel_statistics(pixels[i : i + _BLOCK] for i in range(0, len(rows), _BLOCK))
    return statistics


def _write_files(images: FileImages, layout: Layout, splits: dict[str, Rows], out: Path) -> tuple[str, Statistics]:
    images.check(cpu_count())
    train = splits["train"]
    sample = train[np.linspace(0, len(train) - 1, min(len(train), _SAMPLED)).astype(np.int64)]
    statistics = channel_statistics(images.read(sample[i : i + _BLOCK], cpu_count()) for i in range(0, len(sample), _BLOCK))
    root = str(images.root.resolve())
    if images.root.is_relative_to(out):  # came out of a tar or a store, and would be gone when the source is closed
        root = "images"
        shutil.rmtree(out / root, ignore_errors=True)
        os.replace(images.root, out / root)
    for part, rows in splits.items():
        paths = [images.paths[row] for row in rows]
        write_json(out / f"{part}.json", {"paths": paths, "labels": layout.labels[rows].tolist()})
    return root, statistics


def _digest(manifest: Manifest, folder: Path) -> str:
    """Of what is in the data set, not of where it came from; files are known by their source's digest only."""
    known = manifest.source_digest if manifest.storage == "files" else ""
    document = replace(manifest, source="", root="", source_digest=known).written
    document["parts"] = {part: sha256_of(part_file(folder, manifest, part)) for part in manifest.sizes}
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
