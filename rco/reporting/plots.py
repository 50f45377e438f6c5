"""Pictures of a run: the teacher's route, the student's way along it, hardness, confusion, reliability, open set.

Every function takes plain data (what JSON holds; None stands for a missing number) and returns a matplotlib `Figure`.
Nothing touches pyplot or any other global state of matplotlib, so these are safe in threads and notebooks.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike, NDArray

from rco.core.errors import InputError
from rco.core.files import atomically
from rco.evaluation.classification import Reliability, expected_gap

# Okabe and Ito's palette, which people with any colour vision can tell apart.
BLUE, VERMILLION, GREEN = "#0072B2", "#D55E00", "#009E73"
_BRANCH_COLOURS = ("#222222", BLUE, "#56B4E9", VERMILLION, "#E69F00", GREEN, "#CC79A7", "#767676")
_DASHES = ("-", "--", ":")
INK, GREY, PALE = "#222222", "#767676", "#DDDDDD"

TITLE, LABEL, TICK, SMALL = 12.0, 10.0, 9.0, 8.0  # points
WIDTH = 8.0  # inches
AXES_POINTS = 0.86 * WIDTH * 72  # about what margins leave of the width


def route_figure(
    history: Sequence[Mapping[str, Any]], checkpoints: Sequence[int], anchors: Sequence[tuple[int, int]]
) -> Figure:
    """The teacher's validation accuracy over its training, with its checkpoints, its learning rate, and the anchors chosen.

    Args:
        history: one row an epoch: epoch, val_accuracy (0 to 1), lr (may be missing: then the lower panel is left out).
        checkpoints: epochs whose weights were kept.
        anchors: (stage, epoch) of each anchor.

    Raises:
        InputError: no history, or a checkpoint or an anchor of an epoch that is not in the history.
    """
    epochs, accuracy = _column(history, "epoch"), 100 * _column(history, "val_accuracy")
    rates = _column(history, "lr")
    at = dict(zip(epochs.astype(int).tolist(), accuracy, strict=True))
    for name, wanted in (("checkpoints", checkpoints), ("anchors", [epoch for _, epoch in anchors])):
        if missing := [epoch for epoch in wanted if epoch not in at]:
            raise InputError(name, missing, "are epochs without a row in the history", "Give the history of the same training")

    with_rate = bool(np.isfinite(rates).any())
    figure = _figure(WIDTH, 5.0 if with_rate else 3.8)
    figure.suptitle("The teacher's route and its anchors", fontsize=TITLE, color=INK)
    panels = figure.subplots(2 if with_rate else 1, 1, sharex=True, squeeze=False, height_ratios=[3, 1] if with_rate else None)
    ax = _dress(panels[0, 0], y="Validation accuracy (%)")
    ax.plot(epochs, accuracy, color=BLUE, lw=1.4, label="Teacher", zorder=2)
    ax.plot(
        checkpoints, [at[e] for e in checkpoints], "o", ms=4.5, mfc="white", mec=BLUE, mew=1.1, label="Checkpoint", zorder=3
    )
    ax.plot(
        [e for _, e in anchors],
        [at[e] for _, e in anchors],
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
    _number(ax, [(epoch, at[epoch], str(stage)) for stage, epoch in anchors])
    if with_rate:
        lower = _dress(panels[1, 0], y="Learning rate")
        lower.step(epochs, rates, where="mid", color=GREY, lw=1.6)
        known = rates[np.isfinite(rates)]
        if known.min() > 0 and known.max() > 10 * known.min():
            lower.set_yscale("log")
            lower.margins(y=0.12)
            lower.minorticks_off()
            lower.yaxis.set_major_formatter(FuncFormatter(_plain))
            levels = np.unique(known)
            if len(levels) <= 5 and (levels[1:] > 3 * levels[:-1]).all():
                lower.set_yticks(levels)
        else:
            lower.set_ylim(bottom=0)
        figure.align_ylabels()
    panels[-1, 0].set_xlabel("Teacher epoch", fontsize=LABEL, color=INK)
    panels[-1, 0].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _legend(figure)
    return figure


def student_figure(
    history: Sequence[Mapping[str, Any]], stages: Sequence[Mapping[str, Any]], teacher_accuracy: float | None = None
) -> Figure:
    """The student's validation accuracy through all stages, beside that of the anchor it learns from.

    Args:
        history: one row an epoch: epoch (counted through all stages, from 1), val_accuracy (0 to 1).
        stages: stage, anchor_epoch, first_epoch, last_epoch, anchor_accuracy (0 to 1; may be missing) of each stage, in order.
        teacher_accuracy: of the converged teacher, 0 to 1.

    Raises:
        InputError: no history, or no stages.
    """
    if not stages:
        raise InputError("stages", stages, "is empty", "Give at least one stage")
    epochs, accuracy = _column(history, "epoch"), 100 * _column(history, "val_accuracy")
    first, last = _column(stages, "first_epoch") - 0.5, _column(stages, "last_epoch") + 0.5
    anchor_accuracy = 100 * _column(stages, "anchor_accuracy")

    figure = _figure(WIDTH, 4.4)
    figure.suptitle("The student along the route", fontsize=TITLE, color=INK)
    ax = _dress(figure.subplots(), x="Student epoch", y="Validation accuracy (%)")
    ax.set_xlim(first[0], last[-1])
    for boundary in first[1:]:
        ax.axvline(boundary, color=GREY, lw=0.7, zorder=1)
    ax.plot(epochs, accuracy, color=BLUE, lw=1.6, marker="o" if len(epochs) == 1 else "", label="Student", zorder=4)
    # One line with gaps: an anchor's accuracy holds within its stage and means nothing between two.
    ax.plot(
        np.stack([first, last, last], axis=1).ravel(),
        np.stack([anchor_accuracy, anchor_accuracy, np.full_like(first, np.nan)], axis=1).ravel(),
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
    _legend(figure)
    return figure


def hardness_figure(
    matrix: Sequence[Sequence[float | None]] | NDArray[np.floating],
    checkpoint_epochs: Sequence[int],
    anchors_chosen: Sequence[int | None],
    row_labels: Sequence[str],
) -> Figure:
    """Heat map of H(i, j) (`rco.strategies.hardness`): how far each checkpoint is from the student, stage by stage.

    Args:
        matrix: (R, M) in nats; NaN or None where it was not measured.
        checkpoint_epochs: (M,), the columns.
        anchors_chosen: for each row the epoch of the anchor chosen from that state, or None; may be fewer than the rows.
        row_labels: (R,), the student states: "initial", "after stage 1", ...

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
    if missing := [epoch for epoch in anchors_chosen if epoch is not None and epoch not in column_of]:
        raise InputError("anchors_chosen", missing, "are not among the checkpoints", f"Checkpoints: {list(checkpoint_epochs)}")

    known = values[np.isfinite(values)]
    low, high = (known.min(), known.max()) if known.size else (0.0, 1.0)
    spans = low > 0 and high > 30 * low
    norm = LogNorm(low, high) if spans else Normalize(0, high or 1)
    figure = _figure(WIDTH, 1.5 + float(np.clip(0.36 * rows, 1.4, 6)))
    ax = _dress(figure.subplots(), x="Checkpoint on the teacher's route (epoch)", y="Student", grid=False)
    ax.set_title("Hardness of each checkpoint for the student", fontsize=TITLE, color=INK, pad=10)
    image = ax.imshow(values, cmap="cividis", norm=norm, aspect="auto", interpolation="nearest")
    _colorbar(ax, image, "Hardness H(i, j) (nats)", WIDTH)
    for i, epoch in enumerate(anchors_chosen):
        if epoch is not None:
            ax.add_patch(_outline(i, column_of[epoch]))
    if columns <= 12 and rows <= 12:
        _print_cells(ax, image, values, _three_digits)
    # Counted from the right, so that the converged teacher always has its label.
    ticks = range(columns - 1, -1, -_step(columns, 20))
    ax.set_xticks(ticks, [str(checkpoint_epochs[j]) for j in ticks])
    ax.set_yticks(range(rows), row_labels)
    if any(epoch is not None for epoch in anchors_chosen):
        figure.legend(
            handles=[_outline(0, 0, label="Next anchor")],
            loc="outside lower center",
            frameon=False,
            fontsize=TICK,
            labelcolor=INK,
        )
    return figure


def curves_figure(curves: Mapping[str, Sequence[Sequence[float]]], teacher_accuracy: float | None = None) -> Figure:
    """Validation accuracy of every branch of a comparison over the student's epochs: the mean over the seeds, and a band of
    one standard deviation to either side (left out where there are more than eight branches, or one seed).

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
    figure = _figure(WIDTH, 5.0)
    figure.suptitle(
        "Validation accuracy of every branch: mean, and one standard deviation over the seeds", fontsize=TITLE, color=INK
    )
    ax = _dress(figure.subplots(), x="Student epoch, all stages", y="Validation accuracy (%)")
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
    _legend(figure)
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
    figure = _figure(WIDTH, 1.4 + 0.42 * len(rows))
    ax = _dress(figure.subplots(), x="Difference in test accuracy to the reference (points)")
    ax.set_title("Paired differences within seeds, 95 % intervals", fontsize=TITLE, color=INK, pad=10)
    ax.axvline(0, color=GREY, lw=1.0, zorder=1)
    mean, low, high = (100 * _column(rows, f"difference_{name}") for name in ("mean", "low", "high"))
    places = np.arange(len(rows))[::-1]
    ax.hlines(places, low, high, color=BLUE, lw=1.6, zorder=2)
    ax.plot(mean, places, "o", ms=6, color=BLUE, mec="white", mew=0.8, zorder=3)
    ax.set_yticks(places, [f"{row['branch']} − {row['reference']}" for row in rows])
    ax.set_ylim(-0.6, len(rows) - 0.4)
    return figure


def confusion_figure(matrix: ArrayLike, class_names: Sequence[str]) -> Figure:
    """Where each class's samples went, as a share of the class; counts are printed where they are legible.

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
    step = _step(classes, 120)
    room = 72 * side / classes * step  # points from one name to the next
    size = min(TICK, 0.72 * room)
    longest = max(map(len, names)) * 0.6 * size
    upright = longest > room
    figure = _figure(side + 1.6 + longest / 72, side + 0.9 + (longest / 72 if upright else 0.2))
    ax = _dress(figure.subplots(), x="Predicted class", y="True class", grid=False)
    right = f" (accuracy {100 * counts.trace() / counts.sum():.1f} %)" if counts.any() else ""
    ax.set_title(f"Confusion matrix{right}", fontsize=TITLE, color=INK, pad=10)
    # The square root lifts the few per cent of single confusions off the ground.
    image = ax.imshow(parts, cmap="Blues", norm=PowerNorm(0.5, 0, 100), interpolation="nearest")
    _colorbar(ax, image, "Share of the true class (%)", side)
    if classes <= 20:
        _print_cells(ax, image, np.where(counts > 0, counts, np.nan), "{:.0f}".format)
    text: dict[str, Any] = {"fontsize": size, "parse_math": False}  # a name may hold dollar signs
    ax.set_xticks(range(0, classes, step), names[::step], rotation=90 if upright else 0, **text)
    ax.set_yticks(range(0, classes, step), names[::step], **text)
    ax.tick_params(length=2)
    return figure


def reliability_figure(bins: Reliability | Sequence[Sequence[float | None]]) -> Figure:
    """Accuracy against confidence (Guo et al. 2017, figure 1), above the number of samples in each bin.

    Args:
        bins: confidence, accuracy and samples of each bin, as `rco.evaluation.classification.reliability` gives them.
    """
    table = Reliability(*(np.array(column, dtype=float) for column in bins))
    width = 1 / len(table.samples)
    left = np.arange(len(table.samples)) * width
    figure = _figure(5.2, 5.6)
    figure.suptitle(f"Reliability (expected calibration error {100 * expected_gap(table):.1f} %)", fontsize=TITLE, color=INK)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    _dress(upper, y="Accuracy (%)")
    _dress(lower, x="Confidence: probability of the predicted class (%)", y="Samples")
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
    _legend(figure)
    return figure


def open_set_figure(open_set: Mapping[str, Any]) -> Figure:
    """Verification (ROC) beside identification (rank-1 as the gallery grows) of classes that were never trained on.

    Args:
        open_set: what `rco.evaluation.openset.measure` gave for "teacher" and "student", by these names.
    """
    figure = _figure(WIDTH, 3.9)
    figure.suptitle("Classes never trained on", fontsize=TITLE, color=INK)
    left, right = figure.subplots(1, 2)
    _dress(left, x="False accept rate (log)", y="True accept rate (%)")
    _dress(right, x="Distractors in the gallery (log)", y="Rank-1 identification (%), mean and sd")
    for role, color, style in (("teacher", GREEN, (0, (5, 3))), ("student", BLUE, "solid")):
        measured = open_set[role]
        roc = measured["roc"]
        tar = 100 * np.array(roc["tar"], dtype=float)
        left.step(roc["far"], tar, where="post", color=color, ls=style, lw=1.6, label=role.capitalize())
        sizes = [int(size) for size in measured["rank1"]]
        rates, deviations = (100 * np.array(list(measured[key].values()), dtype=float) for key in ("rank1", "rank1_std"))
        right.errorbar(sizes, rates, yerr=deviations, color=color, ls=style, lw=1.6, marker="o", ms=3.5, capsize=2)
    for ax in (left, right):
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(FuncFormatter(_plain))
        ax.minorticks_off()
        ax.set_ylim(bottom=0, top=104)
    _legend(figure)
    return figure


def save(figure: Figure, path: Path | str, dpi: int = 150) -> None:
    """Write a PNG; `path` holds the whole picture or is not touched."""
    picture = _render(figure, "png", dpi)
    atomically(Path(path), lambda temporary: temporary.write_bytes(picture))


def data_uri(figure: Figure, format: Literal["png", "svg"] = "svg", dpi: int = 150) -> str:
    """The picture as a `data:` address, for the src of an HTML img."""
    mime = {"png": "image/png", "svg": "image/svg+xml"}[format]
    return f"data:{mime};base64,{base64.b64encode(_render(figure, format, dpi)).decode()}"


def _render(figure: Figure, format: str, dpi: int) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=format, dpi=dpi, metadata={"Date": None} if format == "svg" else None)
    return buffer.getvalue()


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _dress(ax: Axes, *, x: str = "", y: str = "", grid: bool = True) -> Axes:
    ax.set_xlabel(x, fontsize=LABEL, color=INK)
    ax.set_ylabel(y, fontsize=LABEL, color=INK)
    ax.tick_params(labelsize=TICK, color=GREY, labelcolor=INK)
    for side, spine in ax.spines.items():
        spine.set(color=GREY, visible=grid and side in ("left", "bottom"))
    if grid:
        ax.grid(color=PALE, lw=0.6, zorder=0)
        ax.set_axisbelow(True)
    return ax


def _legend(figure: Figure) -> None:
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=TICK, labelcolor=INK)


def _colorbar(ax: Axes, image: Any, label: str, width: float) -> None:
    """A bar as high as the axes, which are about `width` inches wide."""
    cax = ax.inset_axes((1 + 0.12 / width, 0, 0.16 / width, 1))
    bar = ax.figure.colorbar(image, cax=cax)
    bar.set_label(label, fontsize=LABEL, color=INK)
    cax.tick_params(which="both", labelsize=TICK, color=GREY, labelcolor=INK)
    cax.yaxis.set_major_formatter(FuncFormatter(_plain))
    bar.outline.set_visible(False)


def _plain(value: float, _: object = None) -> str:
    return f"{value:g}"


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> NDArray[np.float64]:
    if not rows:
        raise InputError("history", rows, "is empty", "Give at least one epoch")
    return np.array([row.get(name) for row in rows], dtype=float)


def _number(ax: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write each point's name above the axes, moved aside where names would touch, with a line down to the point."""
    left, right = ax.get_xlim()
    room = 15 / AXES_POINTS * (right - left)
    points = sorted(points, key=lambda point: point[0])
    places = _spread([x for x, _, _ in points], room, left, right)
    above = ax.get_xaxis_transform()
    for (x, y, name), place in zip(points, places, strict=True):
        ax.annotate(
            name,
            (x, y),
            xytext=(place, 1.05),
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
    """Places at least `room` apart and as near as can be (least squares) to increasing wanted ones, within low to high."""
    # Minus the room that those before it need, "apart" becomes "not decreasing": pool neighbours that are out of order.
    pools: list[tuple[float, int]] = []
    for i, place in enumerate(wanted):
        pools.append((place - i * room, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, n), (b, m) = pools[-2:]
            pools[-2:] = [((a * n + b * m) / (n + m), n + m)]
    level = np.array([place for place, n in pools for _ in range(n)])
    places: NDArray[np.float64] = np.clip(level, low, max(low, high - (len(level) - 1) * room)) + room * np.arange(len(level))
    return places


def _name_stages(ax: Axes, stages: Sequence[Mapping[str, Any]], first: NDArray[np.float64], last: NDArray[np.float64]) -> None:
    """Name each stage above the axes: over its middle if all names fit, else slanted from its start."""
    names = [f"stage {int(s['stage'])}: anchor epoch {int(s['anchor_epoch'])}" for s in stages]
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


def _outline(row: int, column: int, label: str = "") -> Rectangle:
    return Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, ec=VERMILLION, lw=2.2, label=label, zorder=3, clip_on=False)


def _print_cells(ax: Axes, image: Any, values: NDArray[np.float64], show: Any) -> None:
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            red, green, blue, _ = image.to_rgba(image.get_array()[i, j])
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            ax.text(j, i, show(value), ha="center", va="center", fontsize=SMALL, color="white" if dark else INK)


def _three_digits(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:#.3g}"


def _step(count: int, most: int) -> int:
    """Label every so many of `count` things, so that no more than `most` have a label."""
    return -(-count // most)
