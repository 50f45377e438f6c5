"""The route: every checkpoint that one teacher's training kept, in epoch order, as a folder that can be trusted.

    manifest.json           what the teacher is, its data set, and per checkpoint epoch, learning rate, losses, file, sha256
    epoch-0004.safetensors  weights
    probe.safetensors       labels (N,) and every checkpoint's logits (M, N, K) on the data set's probe samples

The index of a route is the same folder without the weights: all that a choice of anchors looks at.
The manifest is written last, so that a folder with a manifest is a finished route.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rco import checkpoint
from rco.config import from_dict
from rco.errors import InputError
from rco.spec import NetworkSpec

MANIFEST, PROBE = "manifest.json", "probe.safetensors"
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
    """

    folder: Path
    network: NetworkSpec
    data_digest: str
    checkpoints: tuple[Checkpoint, ...]
    decay_epochs: tuple[int, ...]
    history: tuple[dict[str, Any], ...]
    probe_sha256: str

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
    ) -> Route:
        """Write probe file and manifest beside checkpoints that are already in `folder`.

        Args:
            probe_labels: (N,).
            probe_logits: (M, N, K), in the order of `checkpoints`.
        """
        if probe_logits.shape[:2] != (len(checkpoints), len(probe_labels)):
            raise ValueError(
                f"probe logits {probe_logits.shape} for {len(checkpoints)} checkpoints and {len(probe_labels)} samples"
            )
        digest = checkpoint.save_arrays(folder / PROBE, {"labels": probe_labels, "logits": probe_logits.astype(np.float32)})
        manifest = {
            "format": FORMAT,
            "network": network.written,
            "data_digest": data_digest,
            "decay_epochs": list(decay_epochs),
            "checkpoints": list(checkpoints),
            "history": list(history),
            "probe_sha256": digest,
        }
        checkpoint.write_json(folder / MANIFEST, manifest)
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
        manifest = checkpoint.read_json(path)
        try:
            if manifest["format"] != FORMAT:
                raise InputError(
                    "route", str(folder), f"has format {manifest['format']}", f"This version reads format {FORMAT}"
                )
            route = cls(
                folder=folder,
                network=from_dict(NetworkSpec, manifest["network"]),
                data_digest=str(manifest["data_digest"]),
                checkpoints=tuple(from_dict(Checkpoint, c) for c in manifest["checkpoints"]),
                decay_epochs=tuple(int(e) for e in manifest["decay_epochs"]),
                history=tuple(dict(row) for row in manifest["history"]),
                probe_sha256=str(manifest["probe_sha256"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                "route", str(path), f"is not a route's manifest ({type(error).__name__}: {error})", "Copy or make it again"
            ) from None
        if not route.checkpoints:
            raise InputError("route", str(folder), "has no checkpoints", "A route needs at least one")
        if list(route.epochs) != sorted(set(route.epochs)) or route.epochs[0] < 1:
            raise InputError(
                "route", list(route.epochs), "has epochs that do not increase from 1", "Order the checkpoints by epoch"
            )
        for c in route.checkpoints:
            if Path(c.file).name != c.file or c.file in ("", ".", ".."):
                raise InputError("route", c.file, "is not a plain file name", "Checkpoints lie beside their manifest")
        return route

    def verify(self) -> None:
        """Check the sha256 of every file.

        Raises:
            InputError: naming the file that is missing or damaged.
        """
        checkpoint.verify(self.folder / PROBE, self.probe_sha256)
        for c in self.checkpoints:
            checkpoint.verify(self.folder / c.file, c.sha256)

    def probe(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Labels (N,) and logits (M, N, K) on the probe samples, verified."""
        checkpoint.verify(self.folder / PROBE, self.probe_sha256)
        arrays, _ = checkpoint.load_arrays(self.folder / PROBE)
        return arrays["labels"], arrays["logits"]

    def write_index(self, folder: Path) -> None:
        """Copy manifest and probe file, without the weights."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in (PROBE, MANIFEST):
            checkpoint.atomically(folder / name, partial(shutil.copyfile, self.folder / name))


def checkpoint_file(epoch: int) -> str:
    """The file name of an epoch's weights."""
    return f"epoch-{epoch:04d}.safetensors"
