"""Figures of a comparison: curves of all branches, and their differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from rco.core.errors import InputError
from rco.reporting.figures.style import BLUE, GREEN, GREY, INK, TITLE, VERMILLION, WIDTH, add_legend, column, dress, new_figure

_BRANCH_COLOURS = ("#222222", BLUE, "#56B4E9", VERMILLION, "#E69F00", GREEN, "#CC79A7", "#767676")
_DASHES = ("-", "--", ":")


def curves_figure(curves: Mapping[str, Sequence[Sequence[float]]], teacher_accuracy: float | None = None) -> Figure:
    """Validation accuracy of every branch of a comparison over the student's epochs: the mean over the seeds, and a band of
    one standard deviation to either side (left out with more than eight branches, or with one seed).

    Args:
        curves: branch -> (S, E), accuracies (0 to 1) by seed and epoch.
        teacher_accuracy: of the converged teacher, 0 to 1.

    Raises:
        InputError: no branches, or seeds of unequal length within one.
    """
    if not curves:
        raise InputError("curves", curves, "is empty", "Give at least one branch")
    tables: dict[str, NDArray[np.float64]] = {}
    for name, rows in curves.items():
        if not rows or len({len(row) for row in rows}) > 1 or not len(rows[0]):
            raise InputError("curves", name, "has seeds of unequal or no length", "Give every epoch of every seed")
        tables[name] = 100 * np.array(rows, dtype=float)
    figure = new_figure(WIDTH, 5.0)
    figure.suptitle(
        "Validation accuracy of every branch: mean, and one standard deviation over the seeds", fontsize=TITLE, color=INK
    )
    ax = dress(figure.subplots(), x="Student epoch, all stages", y="Validation accuracy (%)")
    bands = len(tables) <= len(_BRANCH_COLOURS)
    for i, (name, table) in enumerate(tables.items()):
        epochs, mean = np.arange(1, table.shape[1] + 1), table.mean(axis=0)
        colour, dash = _BRANCH_COLOURS[i % len(_BRANCH_COLOURS)], _DASHES[i // len(_BRANCH_COLOURS) % len(_DASHES)]
        ax.plot(epochs, mean, color=colour, ls=dash, lw=1.6, marker="o" if len(epochs) == 1 else "", label=name, zorder=4)
        if bands and len(table) > 1:
            deviation = table.std(axis=0, ddof=1)
            ax.fill_between(epochs, mean - deviation, mean + deviation, color=colour, alpha=0.13, lw=0, zorder=2)
    if teacher_accuracy is not None:
        ax.axhline(100 * teacher_accuracy, color=INK, lw=1.0, ls=(0, (5, 3)), label="Converged teacher", zorder=3)
    # The first steps up from chance would leave no room for what differs.
    settled = min(float(table.mean(axis=0)[table.shape[1] // 8 :].min()) for table in tables.values())
    top = max(100 * (teacher_accuracy or 0), *(float(table.max()) for table in tables.values()))
    ax.set_ylim(settled - 0.15 * max(top - settled, 1), top + 0.05 * max(top - settled, 1))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    add_legend(figure)
    return figure


def differences_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Paired differences in test accuracy with their intervals, one line a branch.

    Args:
        rows: branch, reference, difference_mean, difference_low, difference_high (0 to 1; None without an interval).

    Raises:
        InputError: no rows.
    """
    if not rows:
        raise InputError("rows", rows, "is empty", "Give at least one difference")
    figure = new_figure(WIDTH, 1.4 + 0.42 * len(rows))
    ax = dress(figure.subplots(), x="Difference in test accuracy to the reference (points)")
    ax.set_title("Paired differences within seeds, 95 % intervals", fontsize=TITLE, color=INK, pad=10)
    ax.axvline(0, color=GREY, lw=1.0, zorder=1)
    mean, low, high = (100 * column(rows, f"difference_{name}") for name in ("mean", "low", "high"))
    positions = np.arange(len(rows))[::-1]
    ax.hlines(positions, low, high, color=BLUE, lw=1.6, zorder=2)
    ax.plot(mean, positions, "o", ms=6, color=BLUE, mec="white", mew=0.8, zorder=3)
    ax.set_yticks(positions, [f"{row['branch']} − {row['reference']}" for row in rows])
    ax.set_ylim(-0.6, len(rows) - 0.4)
    return figure
