"""The route: every checkpoint that one teacher's training kept, in epoch order, as a folder that can be trusted.

    manifest.json           what the teacher is, its data set, and per checkpoint epoch, learning rate, losses, file, sha256
    epoch-0004.safetensors  weights
    probe.safetensors       labels (N,) and every checkpoint's logits (M, N, K) on the data set's probe samples

The index of a route is the same folder without the weights: all that a choice of anchors looks at.
The manifest is written last, so that a folder with a manifest is a finished route.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rco.core.documents import read_as, read_json, write_json
from rco.core.errors import InputError
from rco.core.files import atomically, verify
from rco.core.settings import from_dict, is_number, jsonable
from rco.core.tensors import load_arrays, save_arrays
from rco.models.spec import NetworkSpec

MANIFEST, PROBE, ANCHOR = "manifest.json", "probe.safetensors", "anchor.json"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One point of the route. `lr` and `train_loss` are None where an imported route does not know them."""

    epoch: int
    lr: float | None
    train_loss: float | None
    val_accuracy: float
    file: str
    sha256: str

    def __post_init__(self) -> None:
        if Path(self.file).name != self.file or self.file in ("", ".", "..") or "\0" in self.file:
            raise InputError("file", self.file, "is not a plain file name", "Checkpoints lie beside their manifest")
        for name in ("lr", "train_loss", "val_accuracy"):
            if (value := getattr(self, name)) is not None and not math.isfinite(value):
                raise InputError(name, value, "is not finite", "Make the route again")
        if not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise InputError("sha256", self.sha256, "is not a sha256 in hex", "Make the route again")


@dataclass(frozen=True, kw_only=True)
class Anchor(Checkpoint):
    """What is known of the one checkpoint that a stage learns from: `anchor.json` beside its weights.

    A stage with several anchors has a folder of such folders (`anchor_folders`).

    Attributes:
        model: the teacher's name.
        index: on the route, from 0.
        hardness: H of this anchor for the student before the stage; None where no student was looked at.
        hardness_of_route: of every checkpoint, likewise.
        relative_hardness: against the anchor before; None for the first, and after a stage with several.
    """

    model: str
    index: int
    hardness: float | None = None
    hardness_of_route: tuple[float, ...] = ()
    relative_hardness: float | None = None

    @classmethod
    def read(cls, folder: Path) -> Anchor:
        """Read what `write` wrote.

        Raises:
            InputError: there is none, or it is not one.
        """
        return read_as(cls, folder / ANCHOR, "Run the anchor's selection again")

    def write(self, folder: Path) -> None:
        """Write it beside the weights. What is not known is left out."""
        words = {name: value for name, value in jsonable(self).items() if value not in (None, [])}
        known = {"lr": self.lr, "train_loss": self.train_loss}  # of a checkpoint they are there, and null if nobody knows
        write_json(folder / ANCHOR, {**words, **known})


@dataclass(frozen=True, kw_only=True)
class _Written:
    """The manifest."""

    format: int
    network: NetworkSpec
    data_digest: str
    decay_epochs: tuple[int, ...]
    checkpoints: tuple[Checkpoint, ...]
    history: tuple[dict[str, Any], ...]
    probe_sha256: str
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    crop: float = 1.0

    def __post_init__(self) -> None:
        if not 0.1 <= self.crop <= 1:
            raise InputError("crop", self.crop, "is not a part of an image", "Make the route again")


@dataclass(frozen=True, kw_only=True)
class Route:
    """A route on disk.

    Attributes:
        network: what all its checkpoints are.
        data_digest: of the prepared data set whose probe samples the logits belong to.
        checkpoints: C_1 ... C_M in epoch order; C_M is the converged teacher.
        decay_epochs: epochs after which the learning rate was decayed.
        history: one row an epoch: epoch, lr, loss, val_accuracy (empty for imported routes).
        probe_sha256: of the probe file.
        mean, std: of each channel of pixels in 0..1, by which the teacher's images were normalised; empty: not known (routes of
            before it was written).
        crop: the part of each side of an image that the teacher saw (`rco.data.network_input`).
    """

    folder: Path
    network: NetworkSpec
    data_digest: str
    checkpoints: tuple[Checkpoint, ...]
    decay_epochs: tuple[int, ...]
    history: tuple[dict[str, Any], ...]
    probe_sha256: str
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    crop: float = 1.0

    @property
    def epochs(self) -> tuple[int, ...]:
        """The epochs of the checkpoints, increasing."""
        return tuple(c.epoch for c in self.checkpoints)

    @classmethod
    def write(
        cls,
        folder: Path,
        *,
        network: NetworkSpec,
        data_digest: str,
        checkpoints: Sequence[Checkpoint],
        decay_epochs: Sequence[int],
        history: Sequence[dict[str, Any]],
        probe_labels: NDArray[np.int64],
        probe_logits: NDArray[np.float32],
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        crop: float = 1.0,
    ) -> Route:
        """Write probe file and manifest beside checkpoints that are already in `folder`.

        Args:
            probe_labels: (N,).
            probe_logits: (M, N, K), in the order of `checkpoints`.
            mean, std, crop: as the attributes; mean and std are (C,) or empty.
        """
        if probe_logits.shape[:2] != (len(checkpoints), len(probe_labels)):
            raise ValueError(
                f"probe logits {probe_logits.shape} for {len(checkpoints)} checkpoints and {len(probe_labels)} samples"
            )
        digest = save_arrays(folder / PROBE, {"labels": probe_labels, "logits": probe_logits.astype(np.float32)})
        manifest = {
            "format": FORMAT,
            "network": network.written,
            "data_digest": data_digest,
            "decay_epochs": list(decay_epochs),
            "checkpoints": list(checkpoints),
            "history": list(history),
            "probe_sha256": digest,
            **({"mean": list(mean), "std": list(std)} if mean else {}),
            **({"crop": crop} if crop != 1 else {}),
        }
        write_json(folder / MANIFEST, manifest)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> Route:
        """Read a route's (or an index's) manifest. Files are verified when they are used, or all at once by `verify`.

        Raises:
            InputError: not a route, an unknown format, or checkpoints out of order.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise InputError(
                "route", str(folder), f"has no {MANIFEST}", "Name the folder that a teacher's training or import-route wrote"
            )
        manifest = read_json(path)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            has = manifest.get("format") if isinstance(manifest, dict) else None
            raise InputError("route", str(folder), f"has format {has!r}", f"This version reads format {FORMAT}")
        try:
            words = from_dict(_Written, manifest)
        except InputError as error:
            problem = f"is not a route's manifest ({error.parameter} {error.problem})"
            raise InputError("route", str(path), problem, "Copy or make it again") from None
        route = cls(
            folder=folder,
            network=words.network,
            data_digest=words.data_digest,
            checkpoints=words.checkpoints,
            decay_epochs=words.decay_epochs,
            history=words.history,
            probe_sha256=words.probe_sha256,
            mean=words.mean,
            std=words.std,
            crop=words.crop,
        )
        if not route.checkpoints:
            raise InputError("route", str(folder), "has no checkpoints", "A route needs at least one")
        if list(route.epochs) != sorted(set(route.epochs)) or route.epochs[0] < 1:
            raise InputError(
                "route", list(route.epochs), "has epochs that do not increase from 1", "Order the checkpoints by epoch"
            )
        channels = route.network.in_channels if route.mean or route.std else 0
        if not len(route.mean) == len(route.std) == channels or not all(map(math.isfinite, (*route.mean, *route.std))):
            raise InputError(
                "route", str(path), f"has a mean and a std that are not of {channels} channels", "Copy or make the route again"
            )
        for row in route.history:
            if type(row.get("epoch")) is not int or not all(v is None or is_number(v) for v in row.values()):
                raise InputError("route", row, "is not a row of a training's history", "Copy or make the route again")
        return route

    def verify(self) -> None:
        """Check the sha256 of every file.

        Raises:
            InputError: naming the file that is missing or damaged.
        """
        verify(self.folder / PROBE, self.probe_sha256)
        for c in self.checkpoints:
            verify(self.folder / c.file, c.sha256)

    def probe(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Labels (N,) and logits (M, N, K) on the probe samples, verified."""
        path = self.folder / PROBE
        verify(path, self.probe_sha256)
        arrays, _ = load_arrays(path)
        labels, logits = arrays.get("labels"), arrays.get("logits")
        if (
            labels is None
            or logits is None
            or labels.dtype != np.int64
            or logits.dtype != np.float32
            or labels.ndim != 1
            or logits.shape != (len(self.checkpoints), len(labels), self.network.num_classes)
        ):
            raise InputError("route", str(path), "does not hold labels and logits of every checkpoint", "Make the route again")
        return labels, logits

    def write_index(self, folder: Path) -> None:
        """Copy manifest and probe file, without the weights."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in (PROBE, MANIFEST):
            atomically(folder / name, partial(shutil.copyfile, self.folder / name))


def anchor_folders(folder: Path) -> list[Path]:
    """The folders of a stage's anchors, in the order of their epochs: this one, or those in it."""
    return sorted((path.parent for path in folder.glob(f"*/{ANCHOR}")), key=lambda path: (len(path.name), path.name)) or [
        folder
    ]


def anchor_folder(epoch: int) -> str:
    """The name of an anchor's folder beside those of others."""
    return f"epoch-{epoch:04d}"


def checkpoint_file(epoch: int) -> str:
    """The file name of an epoch's weights."""
    return f"epoch-{epoch:04d}.safetensors"
