"""What a trained model is worth: accuracy, calibration and congruence from its logits; size and speed from the module.

Measures take NumPy arrays and need no torch, so a task that holds kept logits can score them without loading it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rco.core.errors import InputError
from rco.models.predict import Floats, Ints, Split, accuracy, check_logits, evaluation_mode, predict, top_k_accuracy
from rco.strategies.hardness import log_softmax

if TYPE_CHECKING:
    import torch
    from torch import nn


def cross_entropy(logits: Floats, labels: Ints) -> float:
    """H(y, P): mean over samples of -log P(label) at temperature 1, in nats.

    Args:
        logits: (N, K).
        labels: (N,).

    Raises:
        InputError: as `accuracy`.
    """
    check_logits(logits, labels)
    return float(-np.take_along_axis(log_softmax(logits, 1.0), labels[:, None], axis=1).mean())


class Reliability(NamedTuple):
    """Bins of the top probability; bin m of M holds those in ((m - 1) / M, m / M]. Each field: (M,)."""

    confidence: NDArray[np.float64]
    """Mean top probability; NaN where a bin is empty."""
    accuracy: NDArray[np.float64]
    """Part of the predictions that are right; NaN where a bin is empty."""
    samples: NDArray[np.int64]


def reliability(logits: Floats, labels: Ints, bins: int = 15) -> Reliability:
    """Confidence beside accuracy, in equal-width bins of the top probability (Guo et al. 2017, section 2).

    Args:
        logits: (N, K).
        labels: (N,).

    Raises:
        InputError: as `accuracy`, or fewer than one bin.
    """
    check_logits(logits, labels)
    if bins < 1:
        raise InputError("bins", bins, "must be 1 or more", "The literature uses 10 to 20")
    top = np.exp(log_softmax(logits, 1.0).max(axis=1))
    right = logits.argmax(axis=1) == labels
    index = np.searchsorted(np.arange(1, bins + 1) / bins, top, side="left")
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN of an empty bin
        return Reliability(
            np.bincount(index, weights=top, minlength=bins) / count,
            np.bincount(index, weights=right, minlength=bins) / count,
            count,
        )


def calibration_error(logits: Floats, labels: Ints, bins: int = 15) -> float:
    """Expected calibration error, 0 to 1 (Guo et al. 2017, equation 3): |accuracy - confidence| over the bins of `reliability`.

    Args:
        logits: (N, K).
        labels: (N,).

    Raises:
        InputError: as `reliability`.
    """
    return expected_gap(reliability(logits, labels, bins))


def expected_gap(bins: Reliability) -> float:
    """Mean over samples of their bin's |accuracy - confidence|."""
    return float(np.nansum(bins.samples * np.abs(bins.accuracy - bins.confidence)) / bins.samples.sum())


def confusion(logits: Floats, labels: Ints, num_classes: int) -> NDArray[np.int64]:
    """Counts by [true class, predicted class]: (num_classes, num_classes).

    Args:
        logits: (N, num_classes).
        labels: (N,).

    Raises:
        InputError: as `accuracy`, or logits of another number of classes.
    """
    check_logits(logits, labels)
    if logits.shape[1] != num_classes:
        raise InputError(
            "logits", logits.shape, f"are not of {num_classes} classes", "Evaluate a model on the data it was built for"
        )
    pairs = labels.astype(np.int64) * num_classes + logits.argmax(axis=1)
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def per_class_accuracy(logits: Floats, labels: Ints, num_classes: int) -> NDArray[np.float64]:
    """Part of each class's samples that are predicted right (its recall): (num_classes,); NaN for a class without samples.

    Raises:
        InputError: as `confusion`.
    """
    return _recall(confusion(logits, labels, num_classes))


def measure(logits: Floats, labels: Ints, num_classes: int) -> dict[str, Any]:
    """Every measure of one model's logits, JSON-ready.

    Args:
        logits: (N, num_classes).
        labels: (N,).

    Returns:
        n, accuracy, top5 (if there are more than 5 classes), cross_entropy, ece, per_class_accuracy (None for a class without
        samples), confusion ([true][predicted] counts).

    Raises:
        InputError: as `confusion`.
    """
    counts = confusion(logits, labels, num_classes)
    result: dict[str, Any] = {"n": len(labels), "accuracy": accuracy(logits, labels)}
    if num_classes > 5:
        result["top5"] = top_k_accuracy(logits, labels, 5)
    return result | {
        "cross_entropy": cross_entropy(logits, labels),
        "ece": calibration_error(logits, labels),
        "per_class_accuracy": [None if np.isnan(a) else float(a) for a in _recall(counts)],
        "confusion": counts.tolist(),
    }


def evaluate(
    model: nn.Module,
    split: Split,
    *,
    num_classes: int,
    batch_size: int = 256,
    device: str = "cpu",
    precision: str = "fp32",
    workers: int = 2,
) -> dict[str, Any]:
    """`measure` of what `predict` gives.

    Raises:
        InputError: as `predict` and `measure`.
    """
    logits, labels = predict(model, split, batch_size=batch_size, device=device, precision=precision, workers=workers)
    return measure(logits, labels, num_classes)


def parameter_count(model: nn.Module) -> int:
    """Trainable or not, shared ones once; buffers are not parameters."""
    return sum(p.numel() for p in model.parameters())


def count_macs(model: nn.Module, image_shape: Sequence[int]) -> int:
    """Multiply-accumulates of one image in matrix products, convolutions and attention; all else is not counted.

    One blank image is run where the model lies, in evaluation mode. The model stays as it was.

    Args:
        image_shape: (C, H, W).
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    image = _blank(model, (1, *image_shape))
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    fused = torch.backends.mha.get_fastpath_enabled()
    # Fused attention is one operator, which the counter takes for nothing at all (of evaluation mode), or which it does not
    # know on every device (of older versions): have it spelt out as matrix products.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        spelt_out = sdpa_kernel(SDPBackend.MATH)
        with evaluation_mode(model), torch.no_grad(), spelt_out, FlopCounterMode(display=False) as counter:
            torch.func.functional_call(model, buffers, (image,))
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return int(counter.get_total_flops()) // 2  # the counter takes a multiply and an add for two


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass."""

    median_ms: float
    p95_ms: float
    repeats: int
    """Passes timed: fewer than asked for where the time ran out. A p95 of few passes is their slowest."""


def latency(
    model: nn.Module,
    image_shape: Sequence[int],
    *,
    device: str = "cpu",
    batch_size: int = 1,
    repeats: int = 100,
    warmup: int = 10,
    seconds: float = 1.0,
) -> Latency:
    """Time the forward pass of a batch that lies on the device already, in evaluation mode, with the process's thread count.

    Args:
        model: stays as it was; timed as a copy if it lies on another device.
        image_shape: (C, H, W).
        repeats: most passes timed.
        warmup: most passes before them, which are not timed.
        seconds: warm-up and timing together end after this time, but not before one pass of each.

    Raises:
        InputError: repeats, warmup or batch_size below 1.
    """
    for name, value in (("repeats", repeats), ("warmup", warmup), ("batch_size", batch_size)):
        if value < 1:
            raise InputError(name, value, "must be 1 or more", "Give a whole number above 0")
    import torch

    images = _blank(model, (batch_size, *image_shape)).to(device)
    if any(t.device != images.device for t in (*model.parameters(), *model.buffers())):
        from copy import deepcopy

        model = deepcopy(model).to(device)

    def timed() -> float:
        start = time.perf_counter()
        model(images)
        if images.is_cuda:
            torch.cuda.synchronize(images.device)  # kernels run on after the call has returned
        return time.perf_counter() - start

    started = time.perf_counter()
    times: list[float] = []
    with evaluation_mode(model), torch.inference_mode():
        for done in range(warmup):
            if done and time.perf_counter() - started > seconds / 2:
                break
            timed()
        while not times or (len(times) < repeats and time.perf_counter() - started < seconds):
            times.append(timed())
    median, p95 = 1000 * np.percentile(times, (50, 95))
    return Latency(median_ms=float(median), p95_ms=float(p95), repeats=len(times))


def _blank(model: nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
    import torch

    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return torch.zeros(shape, device=like.device, dtype=like.dtype)


def _recall(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        recall: NDArray[np.float64] = counts.diagonal() / counts.sum(axis=1)
    return recall
