"""Figures of a classifier on the test part: confusion and reliability."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from rco.core.errors import InputError
from rco.evaluation.classification import Reliability, expected_gap
from rco.reporting.figures.style import (
    BLUE,
    GREY,
    INK,
    TICK,
    TITLE,
    VERMILLION,
    add_colorbar,
    add_legend,
    dress,
    label_step,
    new_figure,
    print_cells,
)


def confusion_figure(matrix: ArrayLike, class_names: Sequence[str]) -> Figure:
    """The predicted classes of each class's samples, as shares of the class; up to 20 classes with the counts.

    Args:
        matrix: (K, K) counts, [true, predicted].
        class_names: (K,).

    Raises:
        InputError: shapes that disagree.
    """
    counts, classes = np.array(matrix, dtype=float), len(class_names)
    if not classes or counts.shape != (classes, classes):
        raise InputError(
            "matrix", counts.shape, f"is not of {classes} classes", "Give one row and one column for each class name"
        )
    with np.errstate(invalid="ignore"):
        parts = 100 * counts / counts.sum(axis=1, keepdims=True)  # NaN, so blank, for a class without samples
    names = [name if len(name) <= 18 else name[:17] + "…" for name in class_names]
    side = float(np.clip(0.42 * classes, 3.2, 10.0))  # inches
    step = label_step(classes, 120)
    room = 72 * side / classes * step  # points from one name to the next
    size = min(TICK, 0.72 * room)
    longest = max(map(len, names)) * 0.6 * size
    upright = longest > room
    figure = new_figure(side + 1.6 + longest / 72, side + 0.9 + (longest / 72 if upright else 0.2))
    ax = dress(figure.subplots(), x="Predicted class", y="True class", grid=False)
    right = f" (accuracy {100 * counts.trace() / counts.sum():.1f} %)" if counts.any() else ""
    ax.set_title(f"Confusion matrix{right}", fontsize=TITLE, color=INK, pad=10)
    # The square root lifts the few per cent of single confusions off the ground.
    image = ax.imshow(parts, cmap="Blues", norm=PowerNorm(0.5, 0, 100), interpolation="nearest")
    add_colorbar(ax, image, "Share of the true class (%)", side)
    if classes <= 20:
        print_cells(ax, image, np.where(counts > 0, counts, np.nan), "{:.0f}".format)
    text: dict[str, Any] = {"fontsize": size, "parse_math": False}  # a name may hold dollar signs
    ax.set_xticks(range(0, classes, step), names[::step], rotation=90 if upright else 0, **text)
    ax.set_yticks(range(0, classes, step), names[::step], **text)
    ax.tick_params(length=2)
    return figure


def reliability_figure(bins: Reliability | Sequence[Sequence[float | None]]) -> Figure:
    """Accuracy against confidence (Guo et al. 2017, figure 1), above the number of samples in each bin.

    Args:
        bins: confidence, accuracy and samples of each bin: the result of `rco.evaluation.classification.reliability`.
    """
    table = Reliability(*(np.array(column, dtype=float) for column in bins))
    width = 1 / len(table.samples)
    left = np.arange(len(table.samples)) * width
    figure = new_figure(5.2, 5.6)
    figure.suptitle(f"Reliability (expected calibration error {100 * expected_gap(table):.1f} %)", fontsize=TITLE, color=INK)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    dress(upper, y="Accuracy (%)")
    dress(lower, x="Confidence: probability of the predicted class (%)", y="Samples")
    box: dict[str, Any] = {"width": 100 * width, "align": "edge", "zorder": 2}
    upper.bar(100 * left, 100 * table.accuracy, color=BLUE, ec="white", lw=0.6, label="Accuracy", **box)
    upper.bar(
        100 * left,
        100 * (table.confidence - table.accuracy),
        bottom=100 * table.accuracy,
        color="none",
        ec=VERMILLION,
        lw=0.8,
        hatch="////",
        label="Gap to the confidence",
        **(box | {"zorder": 3}),
    )
    upper.plot([0, 100], [0, 100], color=INK, lw=1, ls=(0, (4, 3)), label="Calibrated", zorder=4)
    lower.bar(100 * left, table.samples, color=GREY, ec="white", lw=0.6, **box)
    lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    upper.set(xlim=(0, 100), ylim=(0, 100))
    figure.align_ylabels()
    add_legend(figure)
    return figure
