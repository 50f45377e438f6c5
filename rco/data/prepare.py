"""From a source to a prepared data set: split it, measure it, and write what `rco.data.dataset` reads. Needs no torch."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from joblib import cpu_count
from numpy.typing import NDArray

from rco.core.documents import write_json
from rco.core.errors import InputError
from rco.core.files import sha256_of
from rco.core.tensors import save_arrays
from rco.data import account as accounts
from rco.data.account import Account, Counted
from rco.data.config import DataConfig
from rco.data.dataset import MANIFEST, OPEN, PARTS, Manifest, part_file
from rco.data.decoding import MOST_MEGAPIXELS, Decoding
from rco.data.image_file import SIXTEEN, TRANSPARENT, TURNED
from rco.data.images import FileImages, Images, Pixels, Rows, Survey
from rco.data.manifest import Origin, digests_file
from rco.data.normalisation import normalisation
from rco.data.referred import hand_over
from rco.data.seen import Progress, Seen, digests_of, surveyed, to_be_left_out
from rco.data.sources.base import Source
from rco.data.sources.kinds import open_source
from rco.data.sources.layout import Layout

_SAMPLED = 4096  # images from which the mean and deviation of a set of files are estimated
_BLOCK = 256
_CHANGED = TURNED | TRANSPARENT | SIXTEEN

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


def prepare(config: DataConfig, out: Path, digest: str, *, kept_size: int = 0, refer: bool = False) -> Manifest:
    """Read a source, split it, and write the prepared data set to the folder `out`.

    Every image is read once, and all that cannot be read are named together.

    Args:
        digest: what `source_digest` says; it is recorded.
        kept_size: keep the images at so many pixels, square, for a teacher that takes more of them than the student, whose
            size is `image_size`; 0, or not more: keep them as they are for the student.
        refer: copy no image files out of a store or an archive, but say from where they are brought when they are asked for
            (`rco.data.referred`); else what has been fetched or unpacked is a part of the prepared data set.

    Raises:
        InputError: the source cannot be read or split (see `rco.data.sources`), or is too large for memory.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / MANIFEST).unlink(missing_ok=True)  # it is written last: where there is one, the data set is whole
    size = config.image_size
    if kept_size and not size:
        raise InputError("image_size", 0, "does not say what the student takes, and the teacher takes more", "Set image_size")
    larger = kept_size > size
    config = config.with_values(image_size=kept_size) if larger else config
    with open_source(config, out) as source:
        images, layout = source.images, source.layout
        given = normalisation(config.image_mean, config.image_std, images.shape[0])
        gib = (sum(map(len, layout.parts.values())) + len(layout.open_rows)) * math.prod(images.shape) / 2**30
        in_files = isinstance(images, FileImages) and gib > config.in_memory_gib
        if not in_files and gib > config.in_memory_gib:
            raise InputError(
                "teacher_image_size" if larger else "image_size",
                config.image_size,
                f"makes {config.dataset} {gib:.1f} GiB, but what is not an image folder must fit into "
                f"{config.in_memory_gib:g} GiB (in_memory_gib)",
                "Choose smaller images, or save the data set as an image folder",
            )
        refer = refer and bool(source.address)
        write = partial(_write_files, refer, refer and source.archive is None) if in_files else _write_arrays
        left_out: dict[int, str] = {}
        splits, seen, (root, statistics) = _written(write, images, layout, config, out, None)
        if seen.problems or seen.other_sizes:
            left_out = to_be_left_out(seen, images, config)
            layout = layout.without(np.array(sorted(left_out), np.int64))
            splits, seen, (root, statistics) = _written(write, images, layout, config, out, seen)
            if seen.problems or seen.other_sizes:
                raise InputError("dataset", config.dataset, "changes while it is read", "Prepare it again when it is at rest")
        mean, std = given or statistics
        validation = splits["val"]
        probe = stratified(layout.labels[validation], min(1.0, config.probe_size / len(validation)), (config.data_seed, 2))
        manifest = Manifest(
            source=config.dataset,
            source_digest=digest,
            digest="",
            storage="files" if in_files else "arrays",
            root=root,
            resize=isinstance(images, FileImages) and in_files and images.resize,
            num_classes=len(layout.class_names),
            class_names=layout.class_names,
            image_shape=(images.shape[0], size, size) if larger else images.shape,
            kept_size=kept_size if larger else 0,
            mean=mean,
            std=std,
            sizes={part: len(rows) for part, rows in splits.items()},
            probe=tuple(probe.tolist()),
            open_classes=layout.open_classes,
            decoding=images.decoding if isinstance(images, FileImages) and in_files else Decoding(),
            account=_account(config, images, layout, splits, seen, left_out),
            origin=_origin(source, splits, seen) if refer and in_files else Origin(),
        )
        if isinstance(images, FileImages) and manifest.origin.address:
            hand_over(images.root, manifest.origin)
        changed = sum(int(np.count_nonzero(traits & _CHANGED)) for traits in seen.traits.values())
    manifest = replace(manifest, digest=_digest(manifest, out, changed))
    write_json(out / MANIFEST, manifest.written)
    return manifest


def _written(
    write: Callable[..., tuple[str, Statistics]],
    images: Images,
    layout: Layout,
    config: DataConfig,
    out: Path,
    before: Seen | None,
) -> tuple[dict[str, Rows], Seen, tuple[str, Statistics]]:
    """Split the layout and write its parts; where something cannot be read, nothing is written, but all of it is noted.

    Args:
        before: what was seen of all files, if they have been read.
    """
    splits, seen = split(layout, config), Seen()
    if layout.open_classes:
        splits[OPEN] = layout.open_rows
    return splits, seen, write(images, layout, splits, out, seen, before)


def _account(
    config: DataConfig, images: Images, layout: Layout, splits: dict[str, Rows], seen: Seen, left_out: dict[int, str]
) -> Account:
    paths = images.paths if isinstance(images, FileImages) else None
    names = {part: _Names(paths, part, rows) for part, rows in splits.items()}
    labels = {part: layout.labels[rows] for part, rows in splits.items()}
    classes = dict(enumerate(layout.class_names))
    opened = {label: name for name, label in layout.open_classes.items()}
    notes = layout.notes
    taken = notes.parts.get("train", "the training images")
    held_out = {
        "test": f"held out of {taken}, test_fraction {config.test_fraction:g}",
        "val": f"held out of {taken}, val_fraction {config.val_fraction:g}",
        OPEN: "the open classes, from everywhere",
        "train": "what is left",
    }
    repeated, relabelled = accounts.duplicates(seen.digests, labels, names)
    files = dict[str, Counted]()
    if isinstance(images, FileImages):
        rows = np.concatenate(list(splits.values()))
        traits = np.concatenate([seen.traits[part] for part in splits])
        files = accounts.of_files(
            traits,
            _Names(images.paths, "", rows),
            resized=images.resize,
            background=images.decoding.alpha_background,
            white=images.decoding.white_level,
            fit=images.decoding.fit,
        )
    why = {reason: Counted.of(names_of) for reason, names_of in notes.left_out.items()}
    if left_out and paths is not None:
        why["they cannot be read (skip_broken)"] = Counted.of([paths[row] for row in sorted(left_out)])
    return Account(
        parts={
            part: accounts.part_account(
                notes.parts.get(part, held_out.get(part, part)), labels[part], opened if part == OPEN else classes
            )
            for part in splits
        },
        class_order=notes.class_order or "the source's own",
        classes=Counted.of(layout.class_names),
        left_out=why,
        files=files,
        duplicates=repeated,
        relabelled=relabelled,
        remarks=notes.remarks,
        normalisation=(
            f"mean {', '.join(config.image_mean)}, deviation {', '.join(config.image_std)}, as image_mean and image_std say"
            if config.image_mean
            else "mean and deviation of the training images"
        ),
    )


@dataclass(frozen=True)
class _Names(Sequence[str]):
    """What images are called: by their files, or by number."""

    paths: Sequence[str] | None
    part: str
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: Any) -> Any:
        return f"{self.part} {i}" if self.paths is None else self.paths[self.rows[i]]


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


def _write_arrays(
    images: Images, layout: Layout, splits: dict[str, Rows], out: Path, seen: Seen, before: Seen | None
) -> tuple[str, Statistics]:
    statistics: Statistics = (), ()
    for part, rows in splits.items():
        if isinstance(images, FileImages):
            pixels = np.empty((len(rows), *images.shape), np.uint8)
            seen.add(part, rows, images.survey(rows, cpu_count(), pixels))
        else:
            pixels = images.read(rows, cpu_count())
            seen.add(part, rows, Survey(digests_of(pixels), np.zeros(len(rows), np.uint8)))
        if seen.problems or seen.other_sizes:
            continue  # of the other parts, all that is wrong is to be said, too
        save_arrays(out / f"{part}.safetensors", {"images": pixels, "labels": layout.labels[rows]})
        if part == "train":
            statistics = channel_statistics(pixels[i : i + _BLOCK] for i in range(0, len(rows), _BLOCK))
    return "", statistics


def _write_files(
    refer: bool,
    with_digests: bool,
    images: FileImages,
    layout: Layout,
    splits: dict[str, Rows],
    out: Path,
    seen: Seen,
    before: Seen | None,
) -> tuple[str, Statistics]:
    progress = Progress(sum(map(len, splits.values())))
    for part, rows in splits.items():
        seen.add(part, rows, before.of(rows) if before else surveyed(images, rows, progress))
    if seen.problems or seen.other_sizes:
        return "", ((), ())
    train = splits["train"]
    sample = train[np.linspace(0, len(train) - 1, min(len(train), _SAMPLED)).astype(np.int64)]
    statistics = channel_statistics(images.read(sample[i : i + _BLOCK], cpu_count()) for i in range(0, len(sample), _BLOCK))
    root = "" if refer else str(images.root.resolve())
    if root and images.root.is_relative_to(out):  # came out of an archive or a store, and would be gone when it is closed
        root = "images"
        shutil.rmtree(out / root, ignore_errors=True)
        os.replace(images.root, out / root)
    for part, rows in splits.items():
        paths = [images.paths[row] for row in rows]
        write_json(out / f"{part}.json", {"paths": paths, "labels": layout.labels[rows].tolist()})
        if with_digests:
            sizes = np.array([(images.root / path).stat().st_size for path in paths], np.int64)
            save_arrays(digests_file(out, part), {"sizes": sizes, "sha256": seen.sha256[part]})
    return root, statistics


def _origin(source: Source, splits: dict[str, Rows], seen: Seen) -> Origin:
    """From where the files can be had again, and what they are then known by."""
    assert isinstance(source.images, FileImages)
    if source.archive is not None:
        return Origin(address=source.address, archive=True, sha256=sha256_of(source.archive))
    paths = source.images.paths
    files = (
        (paths[row], digest.tobytes()) for part in splits for row, digest in zip(splits[part], seen.sha256[part], strict=True)
    )
    known = hashlib.sha256()
    for path, digest in sorted(files):
        known.update(json.dumps([path, digest.hex()]).encode())
    return Origin(address=source.address, sha256=known.hexdigest())


def _digest(manifest: Manifest, folder: Path, changed: int) -> str:
    """Of what is in the data set, not of where it came from; files are known by their source's digest only.

    Args:
        changed: how many files are not read as they are (turned, laid on a background, scaled to 8 bits).
    """
    known = manifest.source_digest if manifest.storage == "files" else ""
    decoding = replace(manifest.decoding, max_megapixels=MOST_MEGAPIXELS)  # it changes nothing in what is there
    document = replace(
        manifest, source="", root="", source_digest=known, decoding=decoding, account=Account(), origin=Origin()
    ).written
    if changed and manifest.storage == "files":
        document["changed"] = changed
    document["parts"] = {part: sha256_of(part_file(folder, manifest, part)) for part in manifest.sizes}
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
