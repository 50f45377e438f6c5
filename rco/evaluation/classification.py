"""Measures of a classifier from its logits: accuracy, cross entropy, calibration, confusion, and those of every class.

They take NumPy arrays and need no torch, so a task with stored logits can score them without importing it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rco.core.errors import InputError
from rco.models.predict import Floats, Ints, Split, accuracy, check_logits, predict, top_k_accuracy
from rco.strategies.hardness import log_softmax

if TYPE_CHECKING:
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
    """Part of correct predictions; NaN where a bin is empty."""
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
    correct = logits.argmax(axis=1) == labels
    index = np.searchsorted(np.arange(1, bins + 1) / bins, top, side="left")
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN of an empty bin
        return Reliability(
            np.bincount(index, weights=top, minlength=bins) / count,
            np.bincount(index, weights=correct, minlength=bins) / count,
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
    """Recall of each class: (num_classes,), 0 to 1; NaN for a class without samples.

    Raises:
        InputError: as `confusion`.
    """
    return _recall(confusion(logits, labels, num_classes))


def per_class(logits: Floats, labels: Ints, num_classes: int) -> list[dict[str, Any]]:
    """Precision, recall and F1 (0 to 1) of each class, and n, its samples: num_classes rows, JSON-ready.

    What is 0 / 0 is None: recall of a class without samples, precision of one that is never predicted, F1 of one that is both.

    Raises:
        InputError: as `accuracy`.
    """
    check_logits(logits, labels)
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(
        labels, logits.argmax(axis=1), labels=np.arange(num_classes), zero_division=np.nan
    )
    return [
        {
            **{name: None if np.isnan(v) else float(v) for name, v in zip(("precision", "recall", "f1"), row[:3], strict=True)},
            "n": int(row[3]),
        }
        for row in zip(*columns, strict=True)
    ]


def mean_of_classes(rows: Iterable[Mapping[str, Any]], name: str) -> float:
    """The mean of a column of `per_class` over the classes that have it: of recall the balanced accuracy, of F1 the macro F1
    (as scikit-learn's `balanced_accuracy_score`, and `f1_score` with average="macro")."""
    return fmean(row[name] for row in rows if row[name] is not None)


def measure(logits: Floats, labels: Ints, num_classes: int) -> dict[str, Any]:
    """Every measure of one model's logits, JSON-ready.

    Args:
        logits: (N, num_classes).
        labels: (N,).

    Returns:
        n, accuracy, top5 (if there are more than 5 classes), cross_entropy, ece, balanced_accuracy, macro_f1,
        per_class_accuracy (None for a class without samples), per_class (see there), confusion ([true][predicted] counts).

    Raises:
        InputError: as `confusion`.
    """
    counts = confusion(logits, labels, num_classes)
    classes = per_class(logits, labels, num_classes)
    result: dict[str, Any] = {"n": len(labels), "accuracy": accuracy(logits, labels)}
    if num_classes > 5:
        result["top5"] = top_k_accuracy(logits, labels, 5)
    return result | {
        "cross_entropy": cross_entropy(logits, labels),
        "ece": calibration_error(logits, labels),
        "balanced_accuracy": mean_of_classes(classes, "recall"),
        "macro_f1": mean_of_classes(classes, "f1"),
        "per_class_accuracy": [None if np.isnan(a) else float(a) for a in _recall(counts)],
        "per_class": classes,
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
    """`measure` of the logits of `predict`.

    Raises:
        InputError: as `predict` and `measure`.
    """
    logits, labels = predict(model, split, batch_size=batch_size, device=device, precision=precision, workers=workers)
    return measure(logits, labels, num_classes)


def _recall(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        recall: NDArray[np.float64] = counts.diagonal() / counts.sum(axis=1)
    return recall
