"""Figures of one run: the teacher's route, the student along it, and the hardness of its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from rco.core.errors import InputError
from rco.reporting.figures.style import (
    AXES_POINTS,
    BLUE,
    GREEN,
    GREY,
    INK,
    LABEL,
    SMALL,
    TICK,
    TITLE,
    VERMILLION,
    WIDTH,
    add_colorbar,
    add_legend,
    column,
    dress,
    label_step,
    new_figure,
    plain_number,
    print_cells,
)


def route_figure(
    history: Sequence[Mapping[str, Any]], checkpoints: Sequence[int], anchors: Sequence[tuple[int, int]]
) -> Figure:
    """The teacher's validation accuracy over its training, with its checkpoints, its learning rate, and the chosen anchors.

    Args:
        history: one row an epoch: epoch, val_accuracy (0 to 1), lr (may be missing: then the lower panel is left out).
        checkpoints: epochs of the checkpoints.
        anchors: (stage, epoch) of each anchor.

    Raises:
        InputError: no history, or a checkpoint or an anchor of an epoch that is not in the history.
    """
    epochs, accuracy = column(history, "epoch"), 100 * column(history, "val_accuracy")
    rates = column(history, "lr")
    accuracy_at = dict(zip(epochs.astype(int).tolist(), accuracy, strict=True))
    for name, wanted in (("checkpoints", checkpoints), ("anchors", [epoch for _, epoch in anchors])):
        if missing := [epoch for epoch in wanted if epoch not in accuracy_at]:
            raise InputError(name, missing, "are epochs without a row in the history", "Give the history of the same training")

    with_rate = bool(np.isfinite(rates).any())
    figure = new_figure(WIDTH, 5.0 if with_rate else 3.8)
    figure.suptitle("The teacher's route and its anchors", fontsize=TITLE, color=INK)
    panels = figure.subplots(2 if with_rate else 1, 1, sharex=True, squeeze=False, height_ratios=[3, 1] if with_rate else None)
    ax = dress(panels[0, 0], y="Validation accuracy (%)")
    ax.plot(epochs, accuracy, color=BLUE, lw=1.4, label="Teacher", zorder=2)
    ax.plot(
        checkpoints,
        [accuracy_at[e] for e in checkpoints],
        "o",
        ms=4.5,
        mfc="white",
        mec=BLUE,
        mew=1.1,
        label="Checkpoint",
        zorder=3,
    )
    ax.plot(
        [e for _, e in anchors],
        [accuracy_at[e] for _, e in anchors],
        "D",
        ms=6.5,
        color=VERMILLION,
        mec="white",
        mew=0.8,
        label="Anchor (numbered by stage)",
        zorder=4,
    )
    margin = 0.02 * max(epochs[-1] - epochs[0], 1)
    ax.set_xlim(epochs[0] - margin, epochs[-1] + margin)
    _number_points(ax, [(epoch, accuracy_at[epoch], str(stage)) for stage, epoch in anchors])
    if with_rate:
        lower = dress(panels[1, 0], y="Learning rate")
        lower.step(epochs, rates, where="mid", color=GREY, lw=1.6)
        known = rates[np.isfinite(rates)]
        if known.min() > 0 and known.max() > 10 * known.min():
            lower.set_yscale("log")
            lower.margins(y=0.12)
            lower.minorticks_off()
            lower.yaxis.set_major_formatter(FuncFormatter(plain_number))
            levels = np.unique(known)
            if len(levels) <= 5 and (levels[1:] > 3 * levels[:-1]).all():
                lower.set_yticks(levels)
        else:
            lower.set_ylim(bottom=0)
        figure.align_ylabels()
    panels[-1, 0].set_xlabel("Teacher epoch", fontsize=LABEL, color=INK)
    panels[-1, 0].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    add_legend(figure)
    return figure


def student_figure(
    history: Sequence[Mapping[str, Any]], stages: Sequence[Mapping[str, Any]], teacher_accuracy: float | None = None
) -> Figure:
    """The student's validation accuracy through all stages, beside that of each stage's anchor.

    Args:
        history: one row an epoch: epoch (counted through all stages, from 1), val_accuracy (0 to 1).
        stages: stage, first_epoch, last_epoch, anchor_epochs and anchor_accuracies (0 to 1, or None; one of each anchor) of
            each stage, in order.
        teacher_accuracy: validation accuracy of the converged teacher, 0 to 1; None: no line.

    Raises:
        InputError: no history, or no stages.
    """
    if not stages:
        raise InputError("stages", stages, "is empty", "Give at least one stage")
    epochs, accuracy = column(history, "epoch"), 100 * column(history, "val_accuracy")
    first, last = column(stages, "first_epoch") - 0.5, column(stages, "last_epoch") + 0.5
    levels = [(s["first_epoch"] - 0.5, s["last_epoch"] + 0.5, a) for s in stages for a in s["anchor_accuracies"]]
    starts, ends = np.array([level[0] for level in levels]), np.array([level[1] for level in levels])
    anchor_accuracy = 100 * np.array([np.nan if level[2] is None else level[2] for level in levels], dtype=float)

    figure = new_figure(WIDTH, 4.4)
    figure.suptitle("The student along the route", fontsize=TITLE, color=INK)
    ax = dress(figure.subplots(), x="Student epoch", y="Validation accuracy (%)")
    ax.set_xlim(first[0], last[-1])
    for boundary in first[1:]:
        ax.axvline(boundary, color=GREY, lw=0.7, zorder=1)
    ax.plot(epochs, accuracy, color=BLUE, lw=1.6, marker="o" if len(epochs) == 1 else "", label="Student", zorder=4)
    # One line with gaps: an anchor's accuracy holds within its stage and means nothing between two.
    ax.plot(
        np.stack([starts, ends, ends], axis=1).ravel(),
        np.stack([anchor_accuracy, anchor_accuracy, np.full_like(starts, np.nan)], axis=1).ravel(),
        color=VERMILLION,
        lw=2.0,
        solid_capstyle="butt",
        label="Anchor of the stage" if np.isfinite(anchor_accuracy).any() else "",
        zorder=3,
    )
    if teacher_accuracy is not None:
        ax.axhline(100 * teacher_accuracy, color=GREEN, lw=1.3, ls=(0, (5, 3)), label="Converged teacher", zorder=2)
    _name_stages(ax, stages, first, last)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    add_legend(figure)
    return figure


def hardness_figure(
    matrix: Sequence[Sequence[float | None]] | NDArray[np.floating],
    checkpoint_epochs: Sequence[int],
    anchors_chosen: Sequence[Sequence[int]],
    row_labels: Sequence[str],
) -> Figure:
    """Heat map of H(i, j) (`rco.strategies.hardness`): the divergence of the student from each checkpoint, stage by stage.

    Args:
        matrix: (R, M) in nats; NaN or None: not measured.
        checkpoint_epochs: (M,), the columns.
        anchors_chosen: for each row the epochs of the anchors chosen in that state; may be shorter than the rows.
        row_labels: (R,), states of the student: "initial", "after stage 1", ...

    Raises:
        InputError: shapes that disagree, or an anchor that is not among the checkpoints.
    """
    values = np.array(matrix, dtype=float)
    rows, columns = len(row_labels), len(checkpoint_epochs)
    if not rows or not columns or values.shape != (rows, columns):
        raise InputError(
            "matrix", values.shape, f"is not of {rows} states and {columns} checkpoints", "Give one value for each pair"
        )
    if len(anchors_chosen) > rows:
        raise InputError("anchors_chosen", anchors_chosen, f"are more than the {rows} rows", "Give at most one for each row")
    column_of = {epoch: j for j, epoch in enumerate(checkpoint_epochs)}
    if missing := [epoch for epochs in anchors_chosen for epoch in epochs if epoch not in column_of]:
        raise InputError("anchors_chosen", missing, "are not among the checkpoints", f"Checkpoints: {list(checkpoint_epochs)}")

    known = values[np.isfinite(values)]
    low, high = (known.min(), known.max()) if known.size else (0.0, 1.0)
    spans = low > 0 and high > 30 * low
    norm = LogNorm(low, high) if spans else Normalize(0, high or 1)
    figure = new_figure(WIDTH, 1.5 + float(np.clip(0.36 * rows, 1.4, 6)))
    ax = dress(figure.subplots(), x="Checkpoint on the teacher's route (epoch)", y="Student", grid=False)
    ax.set_title("Hardness of each checkpoint for the student", fontsize=TITLE, color=INK, pad=10)
    image = ax.imshow(values, cmap="cividis", norm=norm, aspect="auto", interpolation="nearest")
    add_colorbar(ax, image, "Hardness H(i, j) (nats)", WIDTH)
    for i, epochs in enumerate(anchors_chosen):
        for epoch in epochs:
            ax.add_patch(_outline(i, column_of[epoch]))
    if columns <= 12 and rows <= 12:
        print_cells(ax, image, values, _three_digits)
    # Counted from the right, so that the converged teacher always has its label.
    ticks = range(columns - 1, -1, -label_step(columns, 20))
    ax.set_xticks(ticks, [str(checkpoint_epochs[j]) for j in ticks])
    ax.set_yticks(range(rows), row_labels)
    if any(anchors_chosen):
        figure.legend(
            handles=[_outline(0, 0, label="Next anchor")],
            loc="outside lower center",
            frameon=False,
            fontsize=TICK,
            labelcolor=INK,
        )
    return figure


def _number_points(ax: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write each point's name above the axes, moved aside where names would touch, with a line down to the point."""
    left, right = ax.get_xlim()
    room = 15 / AXES_POINTS * (right - left)
    points = sorted(points, key=lambda point: point[0])
    positions = _spread([x for x, _, _ in points], room, left, right)
    above = ax.get_xaxis_transform()
    for (x, y, name), position in zip(points, positions, strict=True):
        ax.annotate(
            name,
            (x, y),
            xytext=(position, 1.05),
            textcoords=above,
            ha="center",
            va="center",
            fontsize=TICK,
            fontweight="bold",
            color=VERMILLION,
            arrowprops={"arrowstyle": "-", "color": VERMILLION, "lw": 0.7, "alpha": 0.55, "shrinkA": 2, "shrinkB": 4},
            annotation_clip=False,
        )


def _spread(wanted: Sequence[float], room: float, low: float, high: float) -> NDArray[np.float64]:
    """Positions at least `room` apart, as near as possible (least squares) to increasing wanted ones, between low and high."""
    # With the room of its predecessors subtracted from each, "apart" becomes "not decreasing": pool neighbours out of order.
    pools: list[tuple[float, int]] = []
    for i, position in enumerate(wanted):
        pools.append((position - i * room, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, n), (b, m) = pools[-2:]
            pools[-2:] = [((a * n + b * m) / (n + m), n + m)]
    level = np.array([position for position, n in pools for _ in range(n)])
    positions: NDArray[np.float64] = np.clip(level, low, max(low, high - (len(level) - 1) * room)) + room * np.arange(
        len(level)
    )
    return positions


def _name_stages(ax: Axes, stages: Sequence[Mapping[str, Any]], first: NDArray[np.float64], last: NDArray[np.float64]) -> None:
    """Name each stage above the axes: over its middle if all names fit, else slanted from its start."""
    names = [f"stage {int(s['stage'])}: {_in_words(s['anchor_epochs'])}" for s in stages]
    narrowest = (last - first).min() / (last[-1] - first[0]) * AXES_POINTS
    longest = max(len(name) for name in names) * 0.55 * SMALL
    level = narrowest > longest
    for name, start, end in zip(names, first, last, strict=True):
        ax.annotate(
            name,
            ((start + end) / 2 if level else start, 1.0),
            xycoords=ax.get_xaxis_transform(),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center" if level else "left",
            va="bottom",
            rotation=0 if level else 35,
            rotation_mode="anchor",
            fontsize=SMALL,
            color=INK,
            annotation_clip=False,
        )


def _in_words(epochs: Sequence[int]) -> str:
    return (
        f"anchor epoch {epochs[0]}"
        if len(epochs) == 1
        else f"mean of {len(epochs)} anchors, epochs {epochs[0]} to {epochs[-1]}"
    )


def _outline(row: int, column: int, label: str = "") -> Rectangle:
    return Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, ec=VERMILLION, lw=2.2, label=label, zorder=3, clip_on=False)


def _three_digits(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:#.3g}"
