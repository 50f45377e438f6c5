"""How far a training is, and the sums of its current epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Progress:
    """A training in `epoch`, after `batches` batches of it, which showed it `images` images in `seconds` seconds.

    The parts of the loss are summed on the device: reading one in every step would make every step wait for the GPU. A sum that
    is not finite stays so; `finite` counts the steps after which each sum was finite, which tells the first step that was not.

    The names of the fields are those in a resume point.
    """

    epoch: int
    batches: int = 0
    images: int = 0
    seconds: float = 0.0
    names: Sequence[str] = ()
    sums: Tensor | None = None  # (P,)
    finite: Tensor | None = None  # (P,) int64

    @classmethod
    def restored(cls, saved: Mapping[str, Any], first: int, last: int, device: torch.device) -> Progress:
        """The progress that `vars` of another one has saved.

        Args:
            first: first epoch of the training.
            last: its last epoch.

        Raises:
            TypeError, ValueError: the training cannot be there.
        """
        progress = cls(**saved)
        progress._check(first, last)
        if progress.sums is not None and progress.finite is not None:
            progress.sums, progress.finite = progress.sums.to(device), progress.finite.to(device)
        return progress

    def add(self, parts: Mapping[str, Tensor], values: Tensor, images: int) -> None:
        """Count a step.

        Args:
            values: (P,), one for each of `parts`, means over `images` images.
        """
        if self.sums is None or self.finite is None:
            self.names = tuple(parts)
            self.sums, self.finite = torch.zeros_like(values), torch.zeros_like(values, dtype=torch.int64)
        self.sums += values * images
        self.finite += torch.isfinite(self.sums)
        self.batches += 1
        self.images += images

    def first_not_finite(self) -> tuple[str, int] | None:
        """The part of the loss that was the first not to be finite, and the step, counted from 1. Waits for the device."""
        steps = [] if self.finite is None else self.finite.tolist()
        if min(steps, default=self.batches) == self.batches:
            return None
        return self.names[steps.index(min(steps))], min(steps) + 1

    def means(self) -> dict[str, float]:
        """The parts' means over the images of the epoch. Waits for the device."""
        return {} if self.sums is None else {n: s / self.images for n, s in zip(self.names, self.sums.tolist(), strict=True)}

    def _check(self, first: int, last: int) -> None:
        counts = (self.epoch, self.batches, self.images)
        if not all(type(count) is int and 0 <= count < 2**40 for count in counts) or not first <= self.epoch <= last + 1:
            raise ValueError(f"it is at {counts}")
        if type(self.seconds) not in (int, float) or not self.seconds >= 0:
            raise ValueError(f"it took {self.seconds} s")
        if not all(isinstance(name, str) for name in self.names):
            raise TypeError("its parts have no names")
        shape = (len(self.names),)
        if (self.sums is None) != (self.finite is None):
            raise ValueError("it has half of its sums")
        if self.sums is not None and self.finite is not None:
            dtypes = self.sums.is_floating_point(), self.finite.dtype
            if dtypes != (True, torch.int64) or {tuple(self.sums.shape), tuple(self.finite.shape)} != {shape}:
                raise ValueError("it has other sums than parts")
