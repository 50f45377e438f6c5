"""An anchor at work: what it answers to the batches of a training, live or looked up.

Live, the anchor's network runs on every batch. Looked up, with `views` = V, augmentation is a function of (view, image), the
same for every seed of the student, and epoch e shows view (e - 1) mod V of every image. So an anchor's logits of a view are
computed in the first epoch that shows it, and looked up from then on: by the later epochs of the stage, and, if the environment
names a folder for them, by every other stage, seed, and sweep that learns from the same anchor on the same data. The order of
the images stays a function of (seed, epoch).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from rco.core.errors import InputError
from rco.core.settings import jsonable
from rco.core.tensors import load_arrays, save_arrays
from rco.data.augment import moved
from rco.data.augmentation import Augmentation, as_augmentation
from rco.data.dataset import Split
from rco.data.images import Rows
from rco.data.network_input import Seen
from rco.models.taps import Output, observe
from rco.training.config import ComputeConfig
from rco.training.device import autocast, unfilled
from rco.training.distributed import World
from rco.training.lean import lean

#: Names a folder in which stored logits outlive the process. It can be deleted at any time.
FOLDER = "RCO_LOGITS"
_FORMAT = 1
_LARGEST_SHARE = 0.5  # of the machine's memory


class Anchor(Protocol):
    """An anchor at work: the constant target of every step."""

    def prepare_epoch(self, epoch: int) -> int | None:
        """Get ready for an epoch (from 1).

        Returns:
            the view of the images that the epoch must show; None: any.
        """

    def output(self, x: Tensor, rows: Rows, view: int | None) -> Output:
        """The anchor's output for a batch, through which no gradient flows.

        Args:
            x: (B, C, H, W), as the images are kept (`rco.data.network_input`).
            rows: (B,), the numbers of the images in the training part.
            view: what `prepare_epoch` has returned.
        """


class LiveAnchor:
    """An anchor whose network runs on every batch: frozen, and as lean as its tap allows.

    Args:
        network: frozen and moved to the device.
        image_shape: (C, H, W).
        tap: the module whose features are observed; empty: logits alone.
        seen: makes what the network takes of the images as they are kept; None: they are the same.
    """

    def __init__(
        self,
        network: nn.Module,
        image_shape: Sequence[int],
        device: torch.device | str,
        tap: str = "",
        seen: Seen | None = None,
    ) -> None:
        self.seen = seen
        self.tap, self.network = tap, lean(network, image_shape, device, fold=not tap)

    def prepare_epoch(self, epoch: int) -> None:
        """Nothing to do: any view will do."""

    def output(self, x: Tensor, rows: Rows, view: int | None) -> Output:
        """As `Anchor.output`, from a forward pass."""
        if self.seen is not None:
            x = self.seen(x)
        with torch.inference_mode():
            out = observe(self.network, x.contiguous(memory_format=torch.channels_last), self.tap)
        # Autograd cannot save inference tensors for the backward pass.
        return Output(out.logits.clone(), None if out.features is None else out.features.clone())


@dataclass
class StoredLogits:
    """The logits (V, N, K) of one anchor, in float16.

    Attributes:
        anchor: frozen by this.
        train: the images, as the anchor takes them.
        augment: what makes a view of an image, or the name of one that crops alone.
        views: V.
        anchor_id: sha256 of the anchor's weights; empty: nothing is stored beyond this object.
        folder: the files of logits that outlive the process; None: there are none.
        computed: number of views that were computed, not found.
    """

    anchor: nn.Module
    train: Split
    augment: str | Augmentation
    views: int
    compute: ComputeConfig
    batch_size: int
    anchor_id: str = ""
    folder: Path | None = None
    dtype: torch.dtype = torch.float16
    computed: int = 0
    _stored: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.anchor = lean(self.anchor, self.train.manifest.image_shape, self.compute.device)

    def prepare_epoch(self, epoch: int) -> int:
        """Have the logits of the epoch's view at hand; returns the view."""
        view = (epoch - 1) % self.views
        self.prepare(view)
        return view

    def output(self, x: Tensor, rows: Rows, view: int | None) -> Output:
        """As `Anchor.output`, looked up."""
        if view is None:
            raise ValueError("stored logits are of views, and the batch shows none")
        return Output(self.logits(view, rows))

    def prepare(self, view: int) -> None:
        """Have a view's logits at hand: read them, or compute them."""
        if view in self._stored:
            return
        world, path, found = World.current(), self._path(view), None
        if world.main and path is not None and path.is_file():
            found = self._read(path)
        if (found := world.of_main(found)) is not None:
            self._stored[view] = found.to(self.compute.device)
            return
        self._stored[view] = self._compute(view, world)
        self.computed += 1
        if path is not None and world.main:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_arrays(path, {"logits": self._stored[view].cpu().numpy()})

    def logits(self, view: int, rows: Rows) -> Tensor:
        """(B, K) float32 of a prepared view, for images by their number."""
        index = moved(rows, torch.device(self.compute.device))
        return self._stored[view].index_select(0, index).float()

    def _compute(self, view: int, world: World) -> Tensor:
        """Whole batches, those that one process would make, by all workers."""
        mine = world.batches(-(-len(self.train) // self.batch_size))
        batches = [torch.empty(0, self.train.manifest.num_classes, dtype=self.dtype, device=self.compute.device)]
        with torch.inference_mode(), autocast(self.compute), unfilled():
            for x, _, _ in self.train.indexed_batches(
                self.batch_size,
                device=self.compute.device,
                augment=self.augment,
                workers=self.compute.workers,
                view=view,
                skip=mine.start,
                count=mine.stop - mine.start,
            ):
                batches.append(self.anchor(x.contiguous(memory_format=torch.channels_last)).to(self.dtype))
        own = torch.cat(batches).clone()
        return own if world.alone else world.joined(own.cpu()).to(own.device)

    def _read(self, path: Path) -> Tensor | None:
        try:
            arrays, _ = load_arrays(path)
        except InputError:
            return None  # damaged: it is computed again
        logits = arrays.get("logits")
        fits = logits is not None and logits.shape == (len(self.train), self.train.manifest.num_classes)
        return torch.from_numpy(logits) if fits else None

    def _path(self, view: int) -> Path | None:
        """Named by all that the logits depend on: any process may have written the file that has this name."""
        if self.folder is None or not self.anchor_id:
            return None
        augmentation, seen = as_augmentation(self.augment), self.train.seen
        identity = {
            "format": _FORMAT,
            "anchor": self.anchor_id,
            "data": self.train.manifest.digest,
            "part": self.train.part,
            "augment": augmentation.augment if augmentation.crops_alone else jsonable(augmentation),
            "view": view,
            "precision": self.compute.precision,
            "dtype": str(self.dtype),
            **({} if seen is None else {"input": jsonable(seen.own)}),
        }
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{digest[:32]}.safetensors"


def check_size(views: int, images: int, classes: int) -> float:
    """The size of stored logits in MB, which every worker of the task has.

    Raises:
        InputError: more than half of this machine's memory.
    """
    workers = World.current().size
    size = views * images * classes * 2 * workers
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > _LARGEST_SHARE * memory:
        most = int(_LARGEST_SHARE * memory / (2 * images * classes * workers))
        raise InputError(
            "views",
            views,
            f"keeps {size / 2**30:.1f} GiB of logits ({images:,} images, {classes:,} classes"
            + (f", {workers} workers" if workers > 1 else "")
            + "), more than half of the memory",
            f"Use {most} or fewer" if most else "Use 0: compute them anew in every epoch",
        )
    return size / 1e6


def folder_from_environment() -> Path | None:
    """The folder that the environment names for stored logits; None: it names none."""
    named = os.environ.get(FOLDER, "")
    return Path(named) if named else None
