"""A network's answers for a whole split, and how many of them are right."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from rco.core.errors import InputError, choice

if TYPE_CHECKING:
    import torch
    from torch import nn

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]


class Split(Protocol):
    """The part of `rco.data.dataset.Split` that is used here."""

    def batches(
        self, batch_size: int, *, device: str, seed: int | None, workers: int
    ) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        """(x, y): (B, C, H, W) float32, normalised, and (B,) int64, on `device`; in stored order if `seed` is None."""


def predict(
    model: nn.Module, split: Split, *, batch_size: int = 256, device: str = "cpu", precision: str = "fp32", workers: int = 2
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Logits (N, K) and labels (N,) of a whole split, in its order.

    Args:
        model: lies on `device`. It is run in evaluation mode; every module's own mode is put back afterwards.
        precision: fp32 | bf16 (autocast). Logits are float32 either way.

    Raises:
        InputError: an unknown precision, or a split without images.
    """
    choice("precision", precision, ("fp32", "bf16"))
    import torch

    mixed = torch.autocast(torch.device(device).type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()
    logits, labels = [], []
    with evaluation_mode(model), torch.inference_mode(), mixed:
        for x, y in split.batches(batch_size, device=device, seed=None, workers=workers):
            logits.append(model(x).float())  # stays on the device: fetching it would make every batch wait
            labels.append(y)
    if not logits:
        raise InputError("split", split, "has no images", "Give a split with at least one image")
    return torch.cat(logits).cpu().numpy(), torch.cat(labels).cpu().numpy()


def top_k_accuracy(logits: Floats, labels: Ints, k: int) -> float:
    """Part of the samples (0 to 1) whose label is among the k largest logits.

    Ties go to the lower class, as in argmax: a model that gives one logit to all classes scores no better than one guess.

    Args:
        logits: (N, K).
        labels: (N,).
        k: 1 to K.

    Raises:
        InputError: k out of range, or logits and labels that `accuracy` refuses.
    """
    check_logits(logits, labels)
    if not 1 <= k <= logits.shape[1]:
        raise InputError("k", k, f"must be 1 to {logits.shape[1]}, the number of classes", "Give a smaller k")
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    ahead = (logits > own) | ((logits == own) & (np.arange(logits.shape[1]) < labels[:, None]))
    return float((ahead.sum(axis=1) < k).mean())


def accuracy(logits: Floats, labels: Ints) -> float:
    """Part of the samples (0 to 1) whose largest logit is that of their label.

    Args:
        logits: (N, K).
        labels: (N,).

    Raises:
        InputError: no samples, shapes that disagree, labels outside 0 to K - 1, or logits that are not finite.
    """
    return top_k_accuracy(logits, labels, 1)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode; afterwards every module has its own mode again."""
    # Module by module: `model.train()` would also wake layers that the owner keeps in evaluation mode.
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def check_logits(logits: Floats, labels: Ints) -> None:
    """Raise InputError unless logits (N, K) are finite, and labels (N,) are classes 0 to K - 1."""
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise InputError("logits", logits.shape, f"do not fit labels of {labels.shape}", "Give logits (N, K) and labels (N,)")
    if not logits.size:
        raise InputError("logits", logits.shape, "are of no samples or no classes", "Give at least one of each")
    if not np.isfinite(logits).all():
        raise InputError(
            "logits",
            f"{np.count_nonzero(~np.isfinite(logits))} of {logits.size} values",
            "are not finite",
            "The model has diverged: lower lr",
        )
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise InputError(
            "labels",
            f"{labels.min()} to {labels.max()}",
            f"are not classes 0 to {logits.shape[1] - 1}",
            "Check the labels of the data set",
        )
