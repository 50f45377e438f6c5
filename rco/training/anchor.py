"""Anchor logits that are computed once and used often.

With `views` = V, augmentation is a function of (view, image), the same for every seed of the student, and epoch e shows view
(e - 1) mod V of every image. So an anchor's logits of a view are computed in the first epoch that shows it, and looked up
from then on: by the later epochs of the stage, and, where a folder for it is named, by every other stage, seed, and sweep that
learns from the same anchor on the same data. The order of the images stays a function of (seed, epoch).
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rco.core.errors import InputError
from rco.core.tensors import load_arrays, save_arrays
from rco.data.dataset import Split
from rco.training.config import ComputeConfig
from rco.training.device import autocast
from rco.training.lean import lean

#: Names a folder in which kept logits outlive the process. It can be deleted at any time.
FOLDER = "RCO_LOGITS"
_FORMAT = 1
_MOST = 0.5  # of the machine's memory


@dataclass
class StoredLogits:
    """The logits (V, N, K) of one anchor, in float16.

    Attributes:
        anchor: frozen by this.
        train: the images.
        augment: one of `rco.data.config.AUGMENTATIONS`.
        views: V.
        anchor_id: sha256 of the anchor's weights; empty: nothing is kept beyond this object.
        folder: where logits outlive the process; None: nowhere.
    """

    anchor: nn.Module
    train: Split
    augment: str
    views: int
    compute: ComputeConfig
    batch_size: int
    anchor_id: str = ""
    folder: Path | None = None
    dtype: torch.dtype = torch.float16
    computed: int = 0
    """Views that were computed, not found."""
    _kept: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.anchor = lean(self.anchor, self.train.manifest.image_shape, self.compute.device)

    def view_of(self, epoch: int) -> int:
        """The view that an epoch (from 1) shows."""
        return (epoch - 1) % self.views

    def prepare(self, view: int) -> None:
        """Have a view's logits at hand: read them, or compute them."""
        if view in self._kept:
            return
        path = self._path(view)
        if path is not None and path.is_file() and (found := self._read(path)) is not None:
            self._kept[view] = found
            return
        self._kept[view] = self._compute(view)
        self.computed += 1
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_arrays(path, {"logits": self._kept[view].cpu().numpy()})

    def logits(self, view: int, rows: NDArray[np.int64]) -> Tensor:
        """(B, K) float32 of a prepared view, for images by their number."""
        index = torch.from_numpy(rows).to(self.compute.device, non_blocking=True)
        return self._kept[view].index_select(0, index).float()

    def _compute(self, view: int) -> Tensor:
        answers = []
        with torch.inference_mode(), autocast(self.compute):
            for x, _, _ in self.train.indexed_batches(
                self.batch_size,
                device=self.compute.device,
                augment=self.augment,
                workers=self.compute.workers,
                view=view,
            ):
                answers.append(self.anchor(x.contiguous(memory_format=torch.channels_last)).to(self.dtype))
        return torch.cat(answers).clone()

    def _read(self, path: Path) -> Tensor | None:
        try:
            arrays, _ = load_arrays(path)
        except InputError:
            return None  # damaged: it is made again
        logits = arrays.get("logits")
        fits = logits is not None and logits.shape == (len(self.train), self.train.manifest.num_classes)
        return torch.from_numpy(logits).to(self.compute.device) if fits else None

    def _path(self, view: int) -> Path | None:
        """Named by all that the logits depend on, so that a file under this name is right, whoever wrote it."""
        if self.folder is None or not self.anchor_id:
            return None
        of = {
            "format": _FORMAT,
            "anchor": self.anchor_id,
            "data": self.train.manifest.digest,
            "part": self.train.part,
            "augment": self.augment,
            "view": view,
            "precision": self.compute.precision,
            "dtype": str(self.dtype),
        }
        return self.folder / f"{hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:32]}.safetensors"


def check_size(views: int, images: int, classes: int) -> float:
    """MB that kept logits take.

    Raises:
        InputError: more than half of this machine's memory.
    """
    size = views * images * classes * 2
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > _MOST * memory:
        most = int(_MOST * memory / (2 * images * classes))
        raise InputError(
            "views",
            views,
            f"keeps {size / 2**30:.1f} GiB of logits ({images:,} images, {classes:,} classes), more than half of the memory",
            f"Use {most} or fewer" if most else "Use 0: compute them anew in every epoch",
        )
    return size / 1e6


def folder_from_environment() -> Path | None:
    """The folder that the environment names for kept logits, if it does."""
    named = os.environ.get(FOLDER, "")
    return Path(named) if named else None
